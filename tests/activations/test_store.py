from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from helpers import (
    CONTEXT,
    D_VOCAB,
    fresh_tokenizer,
    paired_store,
    store_config,
    text_dataset,
    tiny_pair,
    token_dataset,
)

from sae_lens_crosscoder import DatasetConfig, JointModel, PairedActivationsStore
from sae_lens_crosscoder.activations import SequenceFormat, excluded_token_ids
from sae_lens_crosscoder.errors import ConfigError, DataError


def all_tokens(n_rows: int = 200) -> torch.Tensor:
    return torch.tensor(token_dataset(n_rows)["input_ids"][:])


def joint_rows(model: JointModel, tokens: torch.Tensor) -> torch.Tensor:
    """Joint activations of all tokens in order, by each model's own cache."""
    parts = [
        m.run_with_cache(tokens, names_filter=s.hook_name)[1][s.hook_name]
        for s, m in zip(model.sources, model.source_models, strict=True)
    ]
    joint = parts[1] - parts[0] if model.sources.combine == "difference" else torch.cat(parts, dim=-1)
    return joint.flatten(0, 1)


def served(store: PairedActivationsStore, n_batches: int) -> torch.Tensor:
    return torch.cat(list(islice(store, n_batches)))


def test_unshuffled_batches_are_the_joint_activations_of_the_data_in_order():
    model = tiny_pair()
    batches = served(paired_store(model, mix_fraction=0.0), 12)
    torch.testing.assert_close(batches, joint_rows(model, all_tokens())[: 12 * 32])


def test_a_difference_store_serves_the_second_model_minus_the_first():
    model = tiny_pair(combine="difference")
    batches = served(paired_store(model, mix_fraction=0.0), 4)
    assert batches.shape == (128, 16)
    torch.testing.assert_close(batches, joint_rows(model, all_tokens())[:128])


def test_shuffled_batches_hold_every_row_of_the_data_at_most_as_often_as_the_data_do():
    model = tiny_pair(dtype=torch.float64)
    batches = served(paired_store(model, dtype="float64"), 20)
    # Tokens with the same prefix have the same row: BOS, and some at the second position.
    rows, counts = joint_rows(model, all_tokens()).mul(1e8).round().long().unique(dim=0, return_counts=True)
    nearest = torch.cdist(batches, rows.double() / 1e8).min(dim=1)
    assert nearest.values.max() < 1e-6
    in_order = nearest.indices.tolist()
    assert all(n <= counts[i] for i, n in Counter(in_order).items())
    assert torch.cdist(batches[:1], joint_rows(model, all_tokens())[:1]).item() > 1e-3, "not shuffled"
    assert len(in_order) == 640


def test_excluded_tokens_are_dropped():
    model = tiny_pair()
    tokens = all_tokens()
    dropped = (0, int(tokens[0, 3]), int(tokens[1, 5]))
    keep = ~torch.isin(tokens.flatten(), torch.tensor(dropped))
    batches = served(paired_store(model, mix_fraction=0.0, excluded_tokens=dropped), 12)
    torch.testing.assert_close(batches, joint_rows(model, tokens)[keep][: 12 * 32])
    assert not keep[:CONTEXT].all()


def test_a_planted_norm_outlier_of_either_model_is_dropped_and_nothing_else():
    model = tiny_pair()
    tokens = all_tokens()
    planted = {0: int(tokens[0, 4]), 1: int(tokens[2, 7])}
    for position, token in planted.items():
        model.source_models[position].W_E.data[token] = 30.0  # type: ignore[union-attr, index]
    # A random model writes about the same norm everywhere, so only the planted tokens are outliers.
    keep = ~torch.isin(tokens.flatten(), torch.tensor(list(planted.values())))
    batches = served(paired_store(model, mix_fraction=0.0, max_norm_multiple=8.0), 12)
    torch.testing.assert_close(batches, joint_rows(model, tokens)[keep][: 12 * 32])
    unfiltered = served(paired_store(model, mix_fraction=0.0), 12)
    assert batches.norm(dim=-1).max() < 20 < unfiltered.norm(dim=-1).max()


def test_excluded_tokens_do_not_move_the_median_that_outliers_are_measured_by():
    model = tiny_pair()
    tokens = all_tokens()
    tokens[:, :10] = 0  # most tokens are excluded, and their norm is huge
    planted = int(tokens[0, 12])
    for source_model in model.source_models:
        source_model.W_E.data[0] = 1e4  # type: ignore[union-attr, index]
        source_model.W_E.data[planted] = 30.0  # type: ignore[union-attr, index]
    keep = (tokens != 0).flatten() & (tokens != planted).flatten()
    data = Dataset.from_dict({"input_ids": tokens.tolist()})
    store = paired_store(model, data, mix_fraction=0.0, excluded_tokens=(0,), max_norm_multiple=8.0)
    torch.testing.assert_close(served(store, 12), joint_rows(model, tokens)[keep][: 12 * 32])


def test_a_bfloat16_buffer_serves_rounded_rows_in_the_batches_dtype():
    model = tiny_pair()
    store = paired_store(model, mix_fraction=0.0, buffer_dtype="bfloat16")
    batches = served(store, 4)
    assert (store.buffer.pool.dtype, batches.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(batches, joint_rows(model, all_tokens())[:128].bfloat16().float())


@pytest.mark.parametrize("positions", [(2, 9), (None, -4), (1, None, 3)])
def test_only_the_positions_of_the_slice_are_served(positions: tuple[int | None, ...]):
    model = tiny_pair()
    store = paired_store(model, mix_fraction=0.0, seqpos_slice=positions, buffer_tokens=64, excluded_tokens=(0,))
    tokens = all_tokens()
    rows = joint_rows(model, tokens).reshape(200, CONTEXT, 32)[:, slice(*positions)]
    keep = tokens[:, slice(*positions)].flatten() != 0
    torch.testing.assert_close(served(store, 4), rows.reshape(-1, 32)[keep][:128])


def test_get_activations_of_a_slice_is_what_saelens_asks_a_store_for():
    model = tiny_pair()
    tokens = all_tokens(3)
    activations = paired_store(model, seqpos_slice=(1, 5), buffer_tokens=32).get_activations(tokens)
    assert torch.equal(activations, model(tokens)[:, 1:5])


def test_get_activations_is_what_saelens_asks_a_store_for():
    model = tiny_pair()
    assert torch.equal(paired_store(model).get_activations(all_tokens(3)), model(all_tokens(3)))


# ------------------------------------------------------------------------------- data and mixtures


def test_held_out_sequences_stand_at_the_head_and_are_never_served():
    model = tiny_pair()
    store = paired_store(model, mix_fraction=0.0, n_eval_sequences=6)
    tokens = all_tokens()
    assert torch.equal(store.eval_sequences["data"], tokens[:6])
    torch.testing.assert_close(served(store, 4), joint_rows(model, tokens[6:])[:128])


def test_every_data_set_of_a_mixture_holds_out_its_own_sequences():
    tokenizer = fresh_tokenizer()
    store = PairedActivationsStore(
        tiny_pair(tokenizer=tokenizer),
        [text_dataset(200), token_dataset(60)],
        [DatasetConfig(label="words", weight=0.75), DatasetConfig(label="ids", weight=0.25)],
        store_config(n_eval_sequences=5),
    )
    assert {label: tuple(rows.shape) for label, rows in store.eval_sequences.items()} == {
        "words": (5, CONTEXT),
        "ids": (5, CONTEXT),
    }
    assert torch.equal(store.eval_sequences["ids"], all_tokens(60)[:5])
    assert (store.dataset_labels, store.dataset_weights) == (["words", "ids"], [0.75, 0.25])
    ids = {tuple(row) for row in all_tokens(60).tolist()}
    drawn = [tuple(row.tolist()) in ids for _ in range(60) for row in store.get_batch_tokens()]
    assert sum(drawn) / len(drawn) == pytest.approx(0.25, abs=0.09)


def test_the_end_of_the_data_is_said_and_tokens_are_seen_again():
    model = tiny_pair()
    store = paired_store(model, token_dataset(8), mix_fraction=0.0, buffer_tokens=32)
    with pytest.warns(
        UserWarning, match=r"ended after 8 sequences \(128 tokens\); epoch 2 begins, and tokens are seen again"
    ):
        batches = served(store, 6)
    rows = joint_rows(model, all_tokens(8))
    torch.testing.assert_close(batches, torch.cat([rows, rows])[: 6 * 32])
    assert store.n_epochs_finished == 1


def test_a_data_set_too_small_for_one_forward_pass_is_refused():
    with pytest.raises(DataError, match=r"'data' gives 5 full sequences of 16 tokens, but 2 are held out .* and 4 go"):
        paired_store(data=token_dataset(5), n_eval_sequences=2)


def test_documents_too_short_for_a_sequence_are_refused():
    data = Dataset.from_dict({"text": ["owl"]})
    with pytest.raises(DataError, match="gives 0 full sequences"):
        paired_store(tiny_pair(tokenizer=fresh_tokenizer()), data)


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="'data' is empty"):
        paired_store(data=Dataset.from_dict({"input_ids": []}))


def test_weights_that_do_not_add_up_are_refused():
    configs = [DatasetConfig(label="a", weight=0.5), DatasetConfig(label="b", weight=0.1)]
    with pytest.raises(ConfigError, match=r"add up to 0.6, not 1"):
        PairedActivationsStore(tiny_pair(), [token_dataset(), token_dataset()], configs, store_config())


def test_a_buffer_smaller_than_a_batch_is_refused():
    with pytest.raises(ConfigError, match="buffer holds 16 tokens but a training batch has 32"):
        next(paired_store(buffer_tokens=16))


def run_description(*datasets: DatasetConfig) -> Any:
    return SimpleNamespace(dataset_configs=list(datasets), store_config=lambda tokenizer: store_config())


def test_data_sets_in_memory_must_be_those_of_the_configuration():
    cfg = run_description(DatasetConfig(label="words", weight=0.5), DatasetConfig(label="ids", weight=0.5))
    given = {"words": token_dataset(), "id": token_dataset()}
    with pytest.raises(ConfigError, match="data sets 'words', 'id', but the configuration describes 'words', 'ids'"):
        PairedActivationsStore.from_config(tiny_pair(), cfg, given)


def test_data_sets_in_memory_are_taken_by_label_whatever_their_order():
    cfg = run_description(DatasetConfig(label="a", weight=0.5), DatasetConfig(label="b", weight=0.5))
    data = {"b": token_dataset(seed=1), "a": token_dataset(seed=2)}
    store = PairedActivationsStore.from_config(tiny_pair(), cfg, data)
    assert store.dataset_labels == ["a", "b"]
    by_order = PairedActivationsStore.from_config(tiny_pair(), cfg, dict(reversed(data.items())))
    assert torch.equal(store.get_batch_tokens(), by_order.get_batch_tokens())


def test_data_sets_are_opened_by_path(tmp_path: Path):
    token_dataset().save_to_disk(tmp_path / "ids")
    store = PairedActivationsStore.from_config(tiny_pair(), run_description(DatasetConfig(path=str(tmp_path / "ids"))))
    assert store.dataset_labels == ["ids"]
    assert torch.equal(store.get_batch_tokens(), all_tokens()[:4])


def test_text_of_any_length_is_packed_into_the_context():
    form = SequenceFormat(12, prepend_bos=True)
    store = paired_store(tiny_pair(tokenizer=fresh_tokenizer()), text_dataset(), sequence_format=form)
    tokens = store.get_batch_tokens()
    assert tokens.shape == (4, 12)
    assert tokens[:, 0].tolist() == [0, 0, 0, 0]


# ----------------------------------------------------------------------------------------- excluded


def test_excluding_special_tokens_means_those_that_saelens_means():
    tokenizer = fresh_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(5)
    assert excluded_token_ids(True, tokenizer) == (0, 5)
    assert excluded_token_ids(False, tokenizer) == ()
    assert excluded_token_ids([7, 3], None) == (7, 3)


def test_excluding_special_tokens_without_a_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="exclude_special_tokens=True needs a tokenizer"):
        excluded_token_ids(True, None)


@pytest.mark.filterwarnings("ignore:The data set ended")
@pytest.mark.parametrize("fields", [{"excluded_tokens": tuple(range(D_VOCAB))}, {"max_norm_multiple": 1e-6}])
def test_data_of_which_every_token_is_dropped_are_refused(monkeypatch: pytest.MonkeyPatch, fields: Any):
    begin_epoch = PairedActivationsStore._begin_epoch

    def begin_few_epochs(self: PairedActivationsStore, n_epochs_finished: int) -> None:
        assert n_epochs_finished < 5, "the data were read five times and gave nothing"
        begin_epoch(self, n_epochs_finished)

    monkeypatch.setattr(PairedActivationsStore, "_begin_epoch", begin_few_epochs)
    with pytest.raises(DataError):
        next(paired_store(data=token_dataset(8), **fields))


# ------------------------------------------------------------------------------------------- resuming


@pytest.mark.filterwarnings("ignore:The data set ended")
def test_a_saved_store_goes_on_beyond_the_first_thousand_documents(tmp_path: Path):
    def store() -> PairedActivationsStore:
        return paired_store(data=token_dataset(1200), mix_fraction=0.0, batch_size_tokens=128, batch_size_prompts=20)

    unbroken = store()
    served(unbroken, 130)
    unbroken.save(str(tmp_path / "state.safetensors"))
    resumed = store()
    resumed.load(str(tmp_path / "state.safetensors"))
    assert torch.equal(served(resumed, 15), served(unbroken, 15))


@pytest.mark.filterwarnings("ignore:The data set ended")
def test_a_saved_store_goes_on_within_a_large_row_group_of_a_parquet_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    token_dataset(1200).to_parquet(tmp_path / "ids.parquet", batch_size=1200)

    def store() -> PairedActivationsStore:
        data = datasets.load_dataset("parquet", data_files=str(tmp_path / "ids.parquet"), split="train", streaming=True)
        return paired_store(data=data, mix_fraction=0.0, batch_size_tokens=128, batch_size_prompts=20)

    unbroken = store()
    served(unbroken, 130)
    unbroken.save(str(tmp_path / "state.safetensors"))
    resumed = store()
    resumed.load(str(tmp_path / "state.safetensors"))
    assert torch.equal(served(resumed, 15), served(unbroken, 15))


def test_a_batch_that_was_put_back_is_read_to_where_batches_are(tmp_path: Path):
    store = paired_store()
    store.put_back(next(store))
    store.save(str(tmp_path / "state.safetensors"))
    elsewhere = paired_store(device="meta")  # holds no numbers, and stands for a GPU
    elsewhere.load(str(tmp_path / "state.safetensors"))
    assert next(elsewhere).device.type == "meta"


def test_the_state_of_another_kind_of_store_is_refused(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"n_dataset_processed": torch.tensor(3)}, tmp_path / "state.safetensors")
    with pytest.raises(ConfigError, match="was not written by a PairedActivationsStore"):
        paired_store().load(str(tmp_path / "state.safetensors"))
