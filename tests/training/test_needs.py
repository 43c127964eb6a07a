from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import batchtopk_config, run_config, standard_config, tiny_pair, token_dataset
from safetensors.torch import load_file

from sae_lens_crosscoder import CrosscoderTrainingRunner
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training import needs as needs_module
from sae_lens_crosscoder.training.needs import RunNeeds, check_needs


def test_the_needs_are_those_of_the_arithmetic(tmp_path: Path) -> None:
    cfg = run_config(
        batchtopk_config(d_sae=1000),
        tmp_path,
        n_batches_in_buffer=100,
        buffer_dtype="bfloat16",
        n_checkpoints=10,
        n_kept_checkpoints=2,
        save_final_checkpoint=True,
    )
    needs = RunNeeds.of(cfg)
    assert needs.weights == 4 * (2 * 32 * 1000 + 1000 + 32)
    assert needs.buffer == (100 + 4) * 16 * 32 * 2
    assert needs.batch == 64 * 32 * 4
    assert needs.checkpoints == 2 + 1 + 1
    assert needs.training == 4 * needs.weights + 3 * needs.batch
    assert RunNeeds.of(run_config(standard_config(), n_checkpoints=4)).checkpoints == 0


@pytest.mark.parametrize("fields", [{}, {"prefetch_llm_batches": 3}, {"activations_mixing_fraction": 1.0}], ids=str)
def test_the_buffer_takes_what_was_told(fields: dict[str, Any]) -> None:
    cfg = run_config(batchtopk_config(), buffer_dtype="bfloat16", seqpos_slice=(2, 14), **fields)
    store = CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).activations_store
    assert RunNeeds.of(cfg).buffer == store.buffer.pool.nbytes


def test_a_checkpoint_takes_what_was_told_and_the_weights_too(tmp_path: Path) -> None:
    cfg = run_config(batchtopk_config(d_sae=2000), tmp_path, n_checkpoints=1)
    needs = RunNeeds.of(cfg)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    (checkpoint,) = tmp_path.glob("checkpoints/*/*")
    written = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert needs.checkpoint == pytest.approx(written, rel=0.1)
    weights = load_file(checkpoint / "sae_weights.safetensors")
    assert needs.weights == pytest.approx(sum(tensor.nbytes for tensor in weights.values()), rel=0.01)


@pytest.mark.parametrize(
    ("resource", "fields", "message"),
    [
        ("available_memory", {}, r"takes at least .* of memory on cpu, where 1.0 MB are free: .* the buffer has"),
        ("free_disk", {"n_checkpoints": 3}, r"writes up to .* to the disk of .*, where 1.0 MB are free: 3 checkpoints"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_with_numbers_before_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resource: str, fields: dict[str, Any], message: str
) -> None:
    cfg = run_config(batchtopk_config(d_sae=20_000), tmp_path, **fields)
    check_needs(cfg)
    monkeypatch.setattr(needs_module, resource, lambda *_: 1_000_000)
    with pytest.raises(ConfigError, match=message):
        CrosscoderTrainingRunner(cfg, token_dataset())


def test_a_sharded_dictionary_is_divided_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = run_config(batchtopk_config(d_sae=4096), n_data_shards=4, dictionary_layout="sharded")
    alone, of_four = RunNeeds.of(cfg), RunNeeds.of(cfg, 4)
    assert alone.training - of_four.training == 3 * alone.weights
    assert alone.checkpoint == of_four.checkpoint
    monkeypatch.setattr(needs_module, "available_memory", lambda _: of_four.training + of_four.buffer)
    check_needs(cfg, 4)
    with pytest.raises(ConfigError, match="The run takes at least"):
        check_needs(cfg)
