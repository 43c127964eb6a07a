from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CONTEXT,
    cache_of,
    fresh_tokenizer,
    paired_store,
    source,
    store_config,
    text_dataset,
    tiny_model,
    tiny_pair,
    token_dataset,
)
from other_tokenizers import other_bpe

from sae_lens_crosscoder import DatasetConfig, JointModel, PairedActivationsStore, Sources
from sae_lens_crosscoder.activations import SequenceFormat, TrainingBatches
from sae_lens_crosscoder.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")


def served(store: PairedActivationsStore, n_batches: int) -> torch.Tensor:
    return torch.cat(list(islice(store, n_batches)))


def n_sequences_harvested(store: PairedActivationsStore) -> list[int]:
    """Grows by the number of sequences whenever the models run."""
    counts: list[int] = []
    source_activations = store.model.source_activations

    def counting(tokens: torch.Tensor) -> list[torch.Tensor]:
        counts.append(len(tokens))
        return source_activations(tokens)

    store.model.source_activations = counting  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"excluded_tokens": (0, 5, 7)},
        {"seqpos_slice": (2, 11), "buffer_tokens": 72},
        {"max_norm_multiple": 1.1},
        {"buffer_dtype": "bfloat16"},
        {"n_eval_sequences": 4},
    ],
    ids=str,
)
def test_batches_from_a_cache_are_those_from_the_models_which_then_run_once_only(tmp_path: Path, fields: Any):
    cache_of(tmp_path, paired_store(n_eval_sequences=fields.get("n_eval_sequences", 0)), n_sequences=80)
    store = paired_store(cached_activations_path=str(tmp_path), **fields)
    counts = n_sequences_harvested(store)
    assert torch.equal(served(store, 12), served(paired_store(**fields), 12))
    assert counts == [1]


def test_differences_are_cached_too(tmp_path: Path):
    model = tiny_pair(combine="difference")
    cache_of(tmp_path, paired_store(model))
    assert torch.equal(
        served(paired_store(model, cached_activations_path=str(tmp_path)), 9), served(paired_store(model), 9)
    )


def test_so_are_models_that_each_read_tokens_of_their_own(tmp_path: Path):
    sources = Sources((source("base"), source("chat")), token_alignment="character_offsets")
    models = [tiny_model(0, tokenizer=fresh_tokenizer()), tiny_model(1, tokenizer=other_bpe())]

    def text_store(**fields: Any) -> PairedActivationsStore:
        return paired_store(
            JointModel(sources, models), text_dataset(), sequence_format=SequenceFormat(CONTEXT), **fields
        )

    cache_of(tmp_path, text_store(), n_sequences=80)
    store = text_store(cached_activations_path=str(tmp_path))
    counts = n_sequences_harvested(store)
    batches = served(store, 8)
    assert counts == [1]
    assert torch.equal(batches, served(text_store(), 8))


def test_a_second_epoch_has_the_same_rows_in_another_order(tmp_path: Path):
    cache_of(tmp_path, paired_store(mix_fraction=0.0))
    store = paired_store(cached_activations_path=str(tmp_path), mix_fraction=0.0)
    first, second, third = (served(store, 20) for _ in range(3))
    assert store.n_epochs_finished == 2
    by_row = [rows[rows[:, 0].argsort()] for rows in (first, second, third)]
    assert torch.equal(by_row[0], by_row[1])
    assert torch.equal(by_row[0], by_row[2])
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("n_before", [3, 25], ids=["first epoch", "second epoch"])
def test_a_saved_store_goes_on_in_the_cache(tmp_path: Path, n_before: int, in_background: bool):
    cache_of(tmp_path / "cache", paired_store())

    def store() -> PairedActivationsStore:
        return paired_store(cached_activations_path=str(tmp_path / "cache"), n_ahead_prompts=8)

    plain = served(store(), n_before + 30)
    broken = store()
    batches = TrainingBatches(broken, in_background)
    head = torch.cat(list(islice(batches, n_before)))
    with batches.paused():
        broken.save(str(tmp_path / "state.safetensors"))
    batches.close()
    resumed = store()
    resumed.load(str(tmp_path / "state.safetensors"))
    assert torch.equal(torch.cat([head, served(resumed, 30)]), plain)


def test_a_thread_that_waits_for_the_cache_can_be_closed(tmp_path: Path):
    cache_of(tmp_path, paired_store(), rank=0, world_size=2)
    store = paired_store(cached_activations_path=str(tmp_path))
    batches = TrainingBatches(store, in_background=True)
    next(batches)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 30  # the reader's own patience is ten minutes
    assert all(thread.name != "harvest" for thread in threading.enumerate())


# ------------------------------------------------------------------------------------------ errors


def test_a_checkpoint_of_the_models_is_refused_by_a_run_on_a_cache_and_the_other_way_round(tmp_path: Path):
    cache_of(tmp_path / "cache", paired_store())
    stores = [paired_store(), paired_store(cached_activations_path=str(tmp_path / "cache"))]
    words = ("the models, .* a cache", "a cache, .* the models")
    for store, other, said in zip(stores, stores[::-1], words, strict=True):
        next(store)
        store.save(str(tmp_path / "state.safetensors"))
        with pytest.raises(ConfigError, match=f"activations came from {said}"):
            other.load(str(tmp_path / "state.safetensors"))


def test_a_cache_of_something_else_is_refused_by_the_field_that_differs(tmp_path: Path):
    cache_of(tmp_path, paired_store())
    reads = {"cached_activations_path": str(tmp_path)}
    other_hook = JointModel(
        Sources((source("base"), source("chat", hook_name="blocks.2.hook_resid_pre"))), [tiny_model(0), tiny_model(1)]
    )
    with pytest.raises(
        ConfigError, match=r"sources\.1\.hook_name is 'blocks\.1\.hook_resid_pre' in the cache, this run"
    ):
        paired_store(other_hook, **reads)
    with pytest.raises(ConfigError, match=r"combine is 'concat' in the cache, this run has 'difference'"):
        paired_store(tiny_pair(combine="difference"), **reads)
    with pytest.raises(ConfigError, match=r"first_sequences\.0 is"):
        paired_store(data=token_dataset(seed=4), **reads)
    with pytest.raises(ConfigError, match=r"sequences\.context_size is 16 in the cache, this run has 12"):
        paired_store(sequence_format=SequenceFormat(12, prepend_bos=False), **reads)
    with pytest.raises(ConfigError, match=r"autocast_lm is False in the cache, this run has True"):
        paired_store(autocast_lm=True, **reads)
    with pytest.raises(ConfigError, match=r"datasets\.0\.path is '' in the cache, this run has 'elsewhere'"):
        PairedActivationsStore(tiny_pair(), [token_dataset()], [DatasetConfig(path="elsewhere")], store_config(**reads))


def test_names_of_sources_and_seeds_do_not_matter_to_a_cache(tmp_path: Path):
    cache_of(tmp_path, paired_store())
    sources = tuple(replace(source, label=f"m-{source.label}") for source in tiny_pair().sources)
    renamed = JointModel(Sources(sources), [tiny_model(0), tiny_model(1)])
    assert len(served(paired_store(renamed, label="x", seed=7, cached_activations_path=str(tmp_path)), 3)) == 96


def test_a_cache_that_holds_what_the_run_evaluates_on_is_refused(tmp_path: Path):
    cache_of(tmp_path, paired_store(n_eval_sequences=2))
    paired_store(n_eval_sequences=2, cached_activations_path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluates on the first 3 sequences .* leaves out only 2"):
        paired_store(n_eval_sequences=3, cached_activations_path=str(tmp_path))


def test_models_with_other_weights_than_the_caches_are_refused(tmp_path: Path):
    cache_of(tmp_path, paired_store(), dtype="bfloat16")
    next(paired_store(cached_activations_path=str(tmp_path)))  # rounding is no other weight
    model = tiny_pair()
    model.source_models[1].W_E.data += 0.1 * torch.randn_like(model.source_models[1].W_E)  # type: ignore[union-attr, operator, arg-type]
    with pytest.raises(ConfigError, match=r"holds other activations than source 'chat' gives now"):
        next(paired_store(model, cached_activations_path=str(tmp_path)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_was_fine_tuned_by_a_hundredth_of_its_norm_is_refused(tmp_path: Path, dtype: str):
    cache_of(tmp_path, paired_store(), dtype=dtype)
    model = tiny_pair()
    tokens = torch.arange(CONTEXT)[None]
    before = model.source_activations(tokens)[1]
    weights = model.source_models[1].W_E  # pyright: ignore[reportAttributeAccessIssue]
    weights.data *= 1 + 0.013 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    change = (model.source_activations(tokens)[1] - before).norm() / before.norm()
    assert change.item() == pytest.approx(0.01, abs=0.002)
    with pytest.raises(ConfigError, match=r"holds other activations than source 'chat' gives now"):
        next(paired_store(model, cached_activations_path=str(tmp_path)))


def test_models_in_bfloat16_may_differ_by_as_much_as_their_kernels_do(tmp_path: Path):
    model = tiny_pair()
    cache_of(tmp_path, paired_store(model))
    for rounded in model.source_models:
        rounded.to(torch.bfloat16)
    served(paired_store(model, cached_activations_path=str(tmp_path)), 1)
