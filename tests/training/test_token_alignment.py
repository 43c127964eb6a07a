"""Runs on two models with tokenizers and widths of their own, from folders on disk, as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CONTEXT, batchtopk_config, gpt2_folder, run_config, text_dataset, tiny_tokenizer, token_dataset
from other_tokenizers import metaspace
from sae_lens import SAE, StandardTrainingSAEConfig

from sae_lens_crosscoder import (
    CrosscoderRunnerConfig,
    CrosscoderTrainer,
    CrosscoderTrainingRunner,
    JointModel,
    Sources,
    cli,
)
from sae_lens_crosscoder.errors import ConfigError, DataError, TrainingInterrupted, VocabularyError

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny GPT-2s with different tokenizers and widths, and text."""
    folder = tmp_path_factory.mktemp("models")
    gpt2_folder(folder / "bytes", seed=0, d_model=16, tokenizer=tiny_tokenizer())
    gpt2_folder(folder / "pieces", seed=1, d_model=24, tokenizer=metaspace())
    gpt2_folder(folder / "narrow", seed=1, d_model=16, tokenizer=metaspace())
    text_dataset().save_to_disk(str(folder / "text"))
    return folder


def config(folder: Path, out: Path | None, chat: str = "pieces", d_in: int = 24, **fields: Any) -> Any:
    sources = [
        {
            "label": label,
            "model_name": str(folder / name),
            "hook_name": "transformer.h.1",
            "d_in": width,
            "model_class_name": "AutoModelForCausalLM",
        }
        for label, name, width in (("base", "bytes", 16), ("chat", chat, d_in))
    ]
    values = {
        "sources": sources,
        "dataset_path": str(folder / "text"),
        "token_alignment": "character_offsets",
        "exclude_special_tokens": True,
        "prepend_bos": True,
        **fields,
    }
    return run_config(values.pop("sae", None) or batchtopk_config(d_in=16 + d_in), out, **values)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_crosscoder_of_two_tokenizers_is_trained_saved_and_measured_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = CrosscoderTrainingRunner(config(folder, tmp_path))
    runner.run()
    out = tmp_path / "output"
    metrics = read_json(out / "metrics.json")
    shares = metrics["token_alignment"]["kept_share"]
    assert shares == runner.model.kept_shares(runner.activations_store.eval_sequences["text"])
    assert 0.1 < min(shares.values()) < 1
    for label in ("base", "chat"):
        assert {"ce_loss_score", "kl_div_score", "explained_variance"} <= set(metrics["sources"][label])

    sae = SAE.load_from_disk(out)
    sources = Sources.from_metadata(sae.cfg.metadata)
    assert sources.token_alignment == "character_offsets"
    joint = JointModel.from_pretrained(sources)
    assert sae.encode(joint(joint.to_tokens("the old owl"))).shape[1] == 32

    assert cli.main(["eval", str(out), "--out", str(tmp_path / "again.json")]) == 0
    again = read_json(tmp_path / "again.json")
    assert again["token_alignment"] == metrics["token_alignment"]
    assert again["sources"]["chat"] == pytest.approx(metrics["sources"]["chat"], rel=1e-5)
    printed = capsys.readouterr().out
    assert f"measured at {shares['base']:.1%} of the tokens of base, {shares['chat']:.1%} of the tokens" in printed


def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(
    float64: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **fields: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        sae = batchtopk_config(d_in=40, dtype="float64")
        cfg = config(folder, tmp_path / name, sae=sae, dtype="float64", prefetch_llm_batches=2, **fields)
        return {n: t.clone() for n, t in CrosscoderTrainingRunner(cfg).run().state_dict().items()}

    unbroken = run("unbroken")
    step = CrosscoderTrainer.step

    def stopping(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        self.stop_requested = self.n_training_steps == 4
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CrosscoderTrainer, "step", stopping)
        with pytest.raises(TrainingInterrupted):
            run("broken")
    (checkpoint,) = (tmp_path / "broken").glob(f"checkpoints/*/{5 * 64}")
    resumed = run("broken", resume_from_checkpoint=str(checkpoint))
    for name, tensor in unbroken.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-12, msg=name)


def test_a_difference_of_two_tokenizers_is_trained(folder: Path, tmp_path: Path) -> None:
    sae = StandardTrainingSAEConfig(d_in=16, d_sae=24)
    cfg = config(folder, tmp_path, chat="narrow", d_in=16, sae=sae, combine="difference")
    CrosscoderTrainingRunner(cfg).run()
    assert SAE.load_from_disk(tmp_path / "output").cfg.d_in == 16
    assert "kl_div_score" in read_json(tmp_path / "output" / "metrics.json")["sources"]["chat"]


def test_a_configuration_keeps_the_alignment(folder: Path) -> None:
    cfg = config(folder, None)
    again = CrosscoderRunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again.token_alignment == "character_offsets"
    assert again.joint_sources == cfg.joint_sources
    stored = cfg.store_config(None)
    assert (stored.excluded_tokens, stored.excludes_special_tokens) == ((), True)


# ----------------------------------------------------------------------------------------- errors


def test_without_it_models_of_two_tokenizers_are_refused_with_a_hint(folder: Path) -> None:
    with pytest.raises(VocabularyError, match=r"differ in .* token_alignment='character_offsets'\.$"):
        CrosscoderTrainingRunner(config(folder, None, token_alignment="same_ids"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_special_tokens": [0]}, "exclude_special_tokens as a list"),
        ({"sequence_separator_token": 3}, "sequence_separator_token=3"),
        ({"seqpos_slice": (2, None)}, "seqpos_slice"),
    ],
)
def test_options_that_need_the_same_ids_are_refused_before_any_model_is_loaded(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(Path("nowhere"), None, **fields)


def test_tokenized_data_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="each model tokenizes the text itself"):
        CrosscoderTrainingRunner(config(folder, None), token_dataset(context=CONTEXT))


def test_a_model_in_memory_that_reads_the_same_ids_is_refused(folder: Path) -> None:
    cfg = config(folder, None, chat="bytes", d_in=16)
    same_ids = JointModel.from_pretrained(Sources(cfg.joint_sources.sources))
    with pytest.raises(ConfigError, match=r"\(concat, same_ids\), which are not .*\(concat, character_offsets\)"):
        CrosscoderTrainingRunner(cfg, text_dataset(), same_ids)
