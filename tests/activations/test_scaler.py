from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import source

from sae_lens_crosscoder import Sources, SourceScaler
from sae_lens_crosscoder.errors import ConfigError, DataError

SOURCES = Sources((source("base", d_in=4), source("chat", d_in=9)))


def batches(*tensors: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(tensors)


def rows_of_norm(base: float, chat: float, n: int = 1) -> torch.Tensor:
    """n rows whose base part has one norm and whose chat part another, by one non-zero column each."""
    rows = torch.zeros(n, 13)
    rows[:, 2], rows[:, 4] = base, -chat
    return rows


def estimated() -> SourceScaler:
    scaler = SourceScaler(SOURCES)
    # Means over tokens, not over batches: (3 * 2 + 1 * 6) / 4 = 3 and (3 * 9 + 1 * 45) / 4 = 18.
    scaler.estimate_scaling_factor(13, batches(rows_of_norm(2, 9, 3), rows_of_norm(6, 45)), 2)
    return scaler


def test_factors_are_the_root_of_the_width_over_the_mean_norm():
    factors = estimated().scaling_factor
    assert factors is not None
    assert factors.tolist() == [math.sqrt(4) / 3, math.sqrt(9) / 18]


def test_scaled_activations_have_mean_norm_root_of_the_width_in_every_source():
    x = torch.cat([torch.randn(200, 4) * 50 + 3, torch.randn(200, 9) * 0.01], dim=-1)
    scaler = SourceScaler(SOURCES)
    scaler.estimate_scaling_factor(13, batches(*x.split(30)), 7)
    norms = [part.norm(dim=-1).mean() for part in scaler.scale(x).split([4, 9], dim=-1)]
    torch.testing.assert_close(torch.stack(norms), torch.tensor([2.0, 3.0]))


def test_unscaling_undoes_scaling_and_neither_changes_the_dtype():
    scaler = estimated()
    x = torch.randn(5, 2, 13)
    assert torch.equal(scaler.scale(x)[..., :4], x[..., :4] * torch.tensor(2 / 3))
    torch.testing.assert_close(scaler.unscale(scaler.scale(x)), x)
    assert scaler(x.bfloat16()).dtype == torch.bfloat16


def test_before_its_estimate_a_scaler_changes_nothing():
    x = torch.randn(5, 13)
    scaler = SourceScaler(SOURCES)
    assert torch.equal(scaler(x), x)
    assert torch.equal(scaler.unscale(x), x)


def test_factors_that_are_loaded_take_the_place_of_those_in_use(tmp_path: Path):
    scaler, other = estimated(), SourceScaler(SOURCES)
    x = torch.ones(1, 13)
    before = scaler.scale(x)
    other.estimate_scaling_factor(13, batches(rows_of_norm(8, 72)), 1)
    other.save(str(tmp_path / "scaler.json"))
    scaler.load(tmp_path / "scaler.json")
    assert torch.equal(scaler.scale(x), other.scale(x))
    torch.testing.assert_close(scaler.scale(x), before * torch.tensor([3 / 8] * 4 + [18 / 72] * 9))


def test_factors_follow_the_activations_to_their_device():
    scaler = estimated()
    x = torch.ones(2, 13)
    scaler.scale(x)
    assert scaler.scale(x.to("meta")).device.type == "meta"  # which every machine has beside its CPU
    assert scaler.scale(x).device.type == "cpu"


def test_only_the_asked_number_of_batches_is_taken():
    given = batches(*[rows_of_norm(1, 1)] * 5)
    SourceScaler(SOURCES).estimate_scaling_factor(13, given, 2)
    assert len(list(given)) == 3


def test_norms_are_summed_in_double_precision():
    scaler = SourceScaler(Sources((source("base", d_in=3), source("chat", d_in=5))))
    norms = [1.0 + i / 3 for i in range(50)]
    rows = torch.ones(50, 8, dtype=torch.float64)
    rows[:, :3] = torch.tensor([[0.0, norm, 0.0] for norm in norms], dtype=torch.float64)
    scaler.estimate_scaling_factor(8, batches(*rows.split(1)), len(norms))
    assert scaler.scaling_factor is not None
    expected = [math.sqrt(3) / (math.fsum(norms) / len(norms)), 1.0]
    assert scaler.scaling_factor.tolist() == pytest.approx(expected, rel=1e-14)


def test_norms_of_float16_activations_do_not_overflow():
    scaler = SourceScaler(SOURCES)
    scaler.estimate_scaling_factor(13, batches(torch.full((4, 13), 30000.0, dtype=torch.float16)), 1)
    assert scaler.scaling_factor is not None
    # Norms of 60,000 and 90,000, of which float16 holds the first.
    torch.testing.assert_close(scaler.scaling_factor, torch.tensor([2 / 60000, 3 / 90000], dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_source_without_a_norm_is_named(value: float):
    with pytest.raises(
        DataError, match=r"activations of source 'chat' have mean norm .*NaN, infinite or constantly zero"
    ):
        SourceScaler(SOURCES).estimate_scaling_factor(13, batches(rows_of_norm(1, value)), 1)


def test_factors_are_saved_and_loaded_exactly(tmp_path: Path):
    scaler, loaded = estimated(), SourceScaler(SOURCES)
    scaler.save(str(tmp_path / "scaler.json"))
    loaded.load(tmp_path / "scaler.json")
    assert loaded.scaling_factor is not None
    assert torch.equal(loaded.scaling_factor, scaler.scaling_factor)
    assert json.loads((tmp_path / "scaler.json").read_text())["labels"] == ["base", "chat"]


def test_a_scaler_without_factors_is_saved_and_loaded_as_one(tmp_path: Path):
    loaded = estimated()
    SourceScaler(SOURCES).save(str(tmp_path / "scaler.json"))
    loaded.load(tmp_path / "scaler.json")
    assert loaded.scaling_factor is None


def test_the_factors_of_other_sources_are_refused(tmp_path: Path):
    estimated().save(str(tmp_path / "scaler.json"))
    other = SourceScaler(Sources((source("chat", d_in=4), source("base", d_in=9))))
    with pytest.raises(ConfigError, match=r"scales of sources \['base', 'chat'\], but this run has \['chat', 'base'\]"):
        other.load(tmp_path / "scaler.json")


def test_a_difference_has_one_factor_for_its_columns():
    scaler = SourceScaler(Sources((source("base", d_in=4), source("chat", d_in=4)), "difference"))
    scaler.estimate_scaling_factor(4, batches(torch.tensor([[3.0, 4.0, 0.0, 0.0]])), 1)
    assert scaler.scaling_factor is not None
    assert scaler.scaling_factor.tolist() == [2 / 5]
