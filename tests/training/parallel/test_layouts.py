from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import batchtopk_config, paired_store, run_config, token_dataset

from sae_lens_crosscoder.activations.batches import ShardedBatches, TrainingBatches
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.ranks import Ranks
from sae_lens_crosscoder.training.checkpoints import store_state
from sae_lens_crosscoder.training.parallel.joining import own_device
from sae_lens_crosscoder.training.parallel.layouts import check_data_shards, check_processes


def test_an_unknown_layout_is_refused(unchecked_types: None) -> None:
    with pytest.raises(ConfigError, match=r"dictionary_layout='split' is unknown. Use one of replicated, sharded"):
        run_config(batchtopk_config(), dictionary_layout="split")


@pytest.mark.parametrize("n", [0, 3])
def test_data_shards_that_do_not_divide_a_batch_are_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=f"train_batch_size_tokens=64 cannot be divided among n_data_shards={n}"):
        run_config(batchtopk_config(), n_data_shards=n)


def test_a_cache_is_read_as_one_shard() -> None:
    check_data_shards(1, 64, is_cached=True)
    with pytest.raises(ConfigError, match="a cache is read as one stream"):
        check_data_shards(2, 64, is_cached=True)


def test_processes_that_cannot_share_the_data_shards_are_refused() -> None:
    check_processes(2, 4)
    with pytest.raises(ConfigError, match="3 processes cannot share n_data_shards=4 equally"):
        check_processes(3, 4)
    check_processes(1, 4, compiles=True)
    with pytest.raises(ConfigError, match="compile_sae=True with 2 processes"):
        check_processes(2, 4, compiles=True)


def test_the_layout_is_no_part_of_the_result_and_the_data_shards_are() -> None:
    def fingerprint(**fields: object) -> str:
        return run_config(batchtopk_config(), **fields).fingerprint

    assert fingerprint(dictionary_layout="sharded") == fingerprint()
    assert fingerprint(n_data_shards=2) != fingerprint()


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device='cuda:0' would put 2 processes on one GPU"):
        own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on a machine with 1 GPUs"):
        own_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cuda") == "cuda:1"
    assert own_device("cpu") == "cpu"


def test_shards_read_different_documents_and_together_all() -> None:
    data = token_dataset(24)
    seen = [
        {tuple(row["input_ids"]) for row in paired_store(data=data, shard=shard, n_shards=3).dataset}
        for shard in range(3)
    ]
    assert [len(rows) for rows in seen] == [8, 8, 8]
    assert set.union(*seen) == {tuple(row) for row in data["input_ids"]}


def test_a_batch_has_an_equal_part_of_every_shard_in_their_order() -> None:
    data = token_dataset(60)

    def stores() -> list[TrainingBatches]:
        return [TrainingBatches(paired_store(data=data, shard=shard, n_shards=2)) for shard in range(2)]

    batch = next(ShardedBatches(stores(), Ranks(), gathers=True))
    first, second = (next(shard) for shard in stores())
    assert torch.equal(batch, torch.cat([first, second]))
    assert not torch.equal(first, second)


def test_a_checkpoint_with_fewer_data_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "activations_store_state.safetensors").touch()
    assert store_state(tmp_path, 0).name == "activations_store_state.safetensors"
    with pytest.raises(ConfigError, match="holds no state of data shard 1"):
        store_state(tmp_path, 1)
