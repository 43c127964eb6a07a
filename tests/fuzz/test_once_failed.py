"""Input that once ended in an error of somebody else, or in none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fuzz.cases import copy_of, read_cache, saved, scratch
from fuzz.test_hostile_text import read

from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, DataError
from sae_lens_crosscoder.fields import read_config_file
from sae_lens_crosscoder.training.parent import load_parent


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("yaml", "a: 2001-13-45"),
        ("yaml", "a: !!timestamp soon"),
        ("yaml", "a: !!int x"),
        ("yaml", "a: !!bool x"),
        ("yaml", "a: !!float x"),
        ("json", "[" * 100_000),
        ("json", '{"a": ' + "1" * 5_000 + "}"),
    ],
)
def test_configuration_files(suffix: str, content: str) -> None:
    path = scratch() / f"once.{suffix}"
    path.write_text(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(path)


def in_json(path: Path, value: Any, *place: str | int) -> None:
    values = json.loads(path.read_text())
    inner = values
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("manifest-00000.json", "x", ("shards", 0, "n_sequences")),
        ("manifest-00000.json", 0, ("shards", 0, "n_sequences")),
        ("manifest-00000.json", 10**18, ("shards", 0, "n_sequences")),
        ("manifest-00000.json", None, ("shards", 0, "number")),
        ("manifest-00000.json", "x", ("ended_at_sequence",)),
        ("manifest-00000.json", [[]], ("shards",)),
        ("cache.json", 0, ("n_sequences_a_shard",)),
        ("cache.json", "x", ("n_sequences",)),
        ("cache.json", None, ("dtype",)),
    ],
)
def test_headers_of_caches(name: str, value: Any, place: tuple[str | int, ...]) -> None:
    copy = copy_of(saved() / "cache")
    in_json(copy / name, value, *place)
    with pytest.raises(DataError):
        read_cache(copy)


def test_a_shard_with_fewer_sequences_than_its_manifest_says() -> None:
    copy = copy_of(saved() / "cache")
    values = json.loads((copy / "manifest-00000.json").read_text())
    short, whole = values["shards"][-1], values["shards"][0]
    short["n_sequences"] = whole["n_sequences"] + 1
    (copy / "manifest-00000.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="a manifest was changed"):
        read_cache(copy)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"scaling_factor": ["x"]}', '{"scaling_factor": {"a": 1}}'])
def test_activation_scales_of_a_parent(content: str) -> None:
    copy = copy_of(saved() / "checkpoint")
    (copy / "activation_scaler.json").write_text(content)
    with pytest.raises(DataError):
        load_parent(str(copy))


def test_a_cut_sparsity_of_a_parent() -> None:
    copy = copy_of(saved() / "output")
    (copy / "sparsity.safetensors").write_bytes((copy / "sparsity.safetensors").read_bytes()[:20])
    with pytest.raises(CrosscoderError):
        load_parent(str(copy))


@pytest.mark.parametrize("stages", [1, "D", {"a": 1}])
def test_stages_that_are_none(stages: Any) -> None:
    copy = copy_of(saved() / "checkpoint")
    in_json(copy / "cfg.json", stages, "metadata", "parent_stages")
    with pytest.raises(CrosscoderError):
        load_parent(str(copy))


@pytest.mark.parametrize("about", [b"{", b"[]", b"{}", b'{"columns": {"x": {}}}', b'{"columns": {"class": {"a": 1}}}'])
def test_descriptions_in_tables_of_latents(about: bytes) -> None:
    copy = copy_of(saved() / "table")
    table = pq.read_table(copy / "latents.parquet")
    pq.write_table(table.replace_schema_metadata({b"sae_lens_crosscoder": about}), copy / "latents.parquet")
    with pytest.raises(DataError, match="is damaged"):
        LatentTable.load(copy)


@pytest.mark.parametrize("id", [-1, 300, 2**40])
def test_token_ids_that_no_model_has(id: int) -> None:
    with pytest.raises(DataError, match=r"the models read 0 to 299: the data were tokenized for other models"):
        read({"input_ids": [[id] * 16] * 16})
