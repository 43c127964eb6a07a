"""The demo at toy size: all its parts run and agree. That it finds what is planted, `make demo` shows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from sae_lens_crosscoder.causal import ModelComparison
from sae_lens_crosscoder.demo import DemoConfig, PairConfig, load_or_make_pair, run_demo
from sae_lens_crosscoder.demo.behaviour import (
    Prompts,
    largest_gap_when_patched,
    logits_of,
    logits_without,
    payload_rate,
)
from sae_lens_crosscoder.demo.dashboards import show_latents
from sae_lens_crosscoder.demo.documents import generator
from sae_lens_crosscoder.demo.interventions import latent_scores, payload_gain, rates_without_differences
from sae_lens_crosscoder.joint_model import JointModel

PAIR = PairConfig(
    n_chars=150_000, vocab_size=400, n_layers=2, width=32, hook_block=0, base_steps=4, finetuning_steps=60
)
CONFIG = DemoConfig(
    pair=PAIR,
    d_sae=64,
    k=8,
    n_steps=12,
    n_documents=2600,
    n_eval_batches=1,
    n_prompts=20,
    n_ranking_prompts=16,
    n_removed=5,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, seed=0, config=CONFIG)
    return folder


@pytest.fixture(scope="module")
def joint(out: Path) -> JointModel:
    return JointModel.from_pretrained(load_or_make_pair(out / "pair", PAIR).sources)


def test_the_first_latents_have_dashboards_or_the_way_to_them_is_told(
    out: Path, joint: JointModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = SAE.load_from_disk(out / "crosscoder")
    tokens = load_or_make_pair(out / "pair", PAIR).corpus.mixture(8, generator(0, "shown"), held_out=True).tokens
    index = show_latents(joint, sae, tokens, [3, 5], tmp_path)
    said = capsys.readouterr().out
    if find_spec("sae_dashboard") is None:
        assert index is None
        assert "pip install" in said
        assert f"dashboard {tmp_path / 'crosscoder'} --latents 3,5" in said
        assert not (out / "dashboards").exists()
    else:
        assert index == tmp_path / "dashboards" / "index.html"
        assert str(index) in said
        assert index.is_file()
        assert (out / "dashboards" / "index.html").is_file()


def test_the_demo_writes_a_crosscoder_a_report_and_all_promised_figures(out: Path) -> None:
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert {"payload_rate_triggered", "payload_rate_plain"} <= set(metrics["behaviour"])
    assert {"l0", "dead_latents", "classes"} <= set(metrics)
    assert sum(metrics["classes"].values()) == CONFIG.d_sae
    for label in ("base", "finetuned"):
        assert {"explained_variance", "ce_loss_score", "kl_div_score"} <= set(metrics["sources"][label])
        assert 0 <= metrics["probes"][label] <= 1
    planted = metrics["planted"]
    assert len(planted["latents"]) == CONFIG.n_removed
    assert {
        "auroc",
        "relative_decoder_norm",
        "payload_rate_without_them",
        "payload_rate_without_random",
        "payload_rates_without_differences",
    } <= set(planted)
    assert set(metrics["datasets"]) == {"plain", "planted"}
    assert SAE.load_from_disk(out / "crosscoder").cfg.d_sae == CONFIG.d_sae
    page = (out / "report.html").read_text()
    assert "Latents by how much of the difference they carry" in page
    assert "first 3" in page.split("Without the first latents")[1]


def test_a_second_run_takes_the_pair_from_its_folder_and_another_seed_does_not(out: Path) -> None:
    weights = out / "pair" / "base" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    load_or_make_pair(out / "pair", PAIR)
    assert weights.stat().st_mtime_ns == before
    load_or_make_pair(out / "other", replace(PAIR, base_steps=1, finetuning_steps=1))
    assert (out / "other" / "finetuned" / "model.safetensors").is_file()


def test_all_that_fine_tuning_changed_passes_through_the_hook(out: Path, joint: JointModel) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    assert largest_gap_when_patched(joint, pair.corpus, 0) == 0
    tokens = pair.corpus.mixture(4, generator(0, "test")).tokens
    base, finetuned = (joint.view(label)(tokens) for label in joint.sources.labels)
    assert (base - finetuned).abs().max() > 0.1


def test_one_forward_pass_measures_greedy_generation_exactly(out: Path, joint: JointModel) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    sae = SAE.load_from_disk(out / "crosscoder")
    prompts = Prompts.of_kind(pair.corpus, "trigger", 20, 0)
    for logits in (
        logits_of(joint.view("finetuned")),
        logits_without(joint.view("finetuned"), sae, torch.arange(20)),
    ):
        n_said = 0
        for row, predicts in zip(prompts.tokens.tolist(), prompts.predicts.tolist(), strict=True):
            said = row[: predicts[0] + 1]
            for _ in pair.corpus.payload:
                said.append(int(logits(torch.tensor([said]))[0, -1].argmax()))
            n_said += said[predicts[0] + 1 :] == pair.corpus.payload
        assert payload_rate(logits, prompts) == pytest.approx(n_said / 20)


def perfect_crosscoder() -> StandardSAE:
    """Every column and its negative is a latent: whatever is read is reconstructed."""
    d_in = 2 * PAIR.width
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, apply_b_dec_to_input=False))
    sae.W_dec.data = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    sae.W_enc.data = sae.W_dec.data.T.clone()
    return sae


def test_attributions_of_a_perfect_crosscoder_add_up_to_the_kl(out: Path, joint: JointModel) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    perfect = perfect_crosscoder()
    prompts = Prompts.of_kind(pair.corpus, "trigger", 8, 1)
    scores = latent_scores(ModelComparison(joint, perfect), prompts)
    log_base, log_finetuned = (joint.view(label)(prompts.tokens).log_softmax(-1) for label in joint.sources.labels)
    kl = (log_finetuned.exp() * (log_finetuned - log_base)).sum(-1)[prompts.read].mean()
    assert scores.sum().item() == pytest.approx(kl.item(), rel=0.1)


def test_without_all_latents_of_a_perfect_crosscoder_the_fine_tuned_model_says_what_the_base_says(
    out: Path, joint: JointModel
) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    perfect = perfect_crosscoder()
    prompts = Prompts.of_kind(pair.corpus, "trigger", 20, 0)
    # A payload that the base model says after one of the prompts, so that the base's rate is not 0.
    best = joint.view("base")(prompts.tokens).argmax(-1)
    prompts = replace(prompts, predicts=prompts.predicts[:, :1], payload=best[0, prompts.predicts[0, :1]])
    rates = rates_without_differences(ModelComparison(joint, perfect), prompts, range(perfect.cfg.d_sae), 0)
    base, finetuned = (payload_rate(logits_of(joint.view(label)), prompts) for label in joint.sources.labels)
    assert rates["without_them"] == base != finetuned
    assert rates["without_random_lowest"] <= rates["without_random"]


def test_the_payload_gains_what_the_whole_difference_gives_from_all_latents_of_a_perfect_crosscoder(
    out: Path, joint: JointModel
) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    perfect = perfect_crosscoder()
    prompts = Prompts.of_kind(pair.corpus, "trigger", 20, 0)
    comparison = ModelComparison(joint, perfect)
    gain = payload_gain(comparison, prompts, range(perfect.cfg.d_sae - 1), 0)
    expected = {
        label: joint.view(label)(prompts.tokens)
        .log_softmax(-1)[torch.arange(20)[:, None], prompts.predicts]
        .gather(-1, prompts.payload.expand(20, -1)[..., None])
        .sum(dim=(1, 2))
        .mean()
        .item()
        for label in ("base", "finetuned")
    }
    assert gain["as_it_is"] == pytest.approx(expected["base"], rel=1e-4)
    # The blocks above the hook are the same in both models, so the whole difference makes the one the other.
    assert gain["with_latents"] == pytest.approx(expected["finetuned"], rel=0.02)
    assert gain["with_random"] <= gain["with_random_highest"]


def test_a_demo_with_the_pair_ready_finds_what_one_that_made_it_found(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out / "pair", tmp_path / "pair")
    again = run_demo(tmp_path, seed=0, config=CONFIG)
    first = json.loads((out / "metrics.json").read_text())
    assert again["l0"] == first["l0"]
    assert again["planted"]["latents"] == first["planted"]["latents"]
