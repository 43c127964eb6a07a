"""Ratios, filters, flags and ranks, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from sae_lens_crosscoder.diffing import LatentScalingResult, ScalingThresholds
from sae_lens_crosscoder.errors import ConfigError, ShapeError

NAN = math.nan
# Against a probe whose betas are 1, nu is the other source's beta.
NU_ERROR = [0.0, 0.1, 0.3, 0.2, -0.2, 2.1, NAN, 0.2]
NU_RECONSTRUCTION = [0.0, 0.6, 0.1, 0.5, 0.0, 0.0, NAN, 0.7]


def result(**others: tuple[list[float], list[float]]) -> LatentScalingResult:
    others = others or {"base": (NU_ERROR, NU_RECONSTRUCTION)}
    beta: dict[str, dict[str, Tensor]] = {
        label: {
            "error": torch.tensor(error, dtype=torch.float64),
            "reconstruction": torch.tensor(reconstruction, dtype=torch.float64),
            "activation": torch.tensor(error, dtype=torch.float64) / 2,
        }
        for label, (error, reconstruction) in others.items()
    }
    ones = torch.ones(8, dtype=torch.float64)
    beta["chat"] = {"error": ones, "reconstruction": ones, "activation": ones}
    return LatentScalingResult("chat", beta, torch.ones(8, dtype=torch.long), n_tokens=1)


def test_latents_outside_the_range_and_undefined_ones_are_not_kept():
    assert result().kept().tolist() == [True, True, True, True, False, False, False, True]
    assert result().kept(ScalingThresholds(nu_low=-0.3, nu_high=3.0)).tolist() == [True] * 6 + [False, True]


def test_latents_at_the_ends_of_the_range_are_kept():
    ends = [-0.1, 2.0, -0.1 - 1e-9, 2.0 + 1e-9] * 2
    assert result(base=(ends, [0.0] * 8)).kept().tolist() == [True, True, False, False] * 2
    assert result(base=([0.0] * 8, ends)).kept().tolist() == [True, True, False, False] * 2


def test_flags_and_ranks_follow_the_thresholds_that_are_given():
    wide = ScalingThresholds(nu_low=-0.3, nu_high=3.0, complete_shrinkage_above=0.05, latent_decoupling_above=0.65)
    flags = result().flags(torch.ones(8, dtype=torch.bool), wide)
    assert flags.complete_shrinkage.nonzero().flatten().tolist() == [1, 2, 3, 5, 7]
    assert flags.latent_decoupling.nonzero().flatten().tolist() == [7]
    assert flags.confirmed.nonzero().flatten().tolist() == [0, 4]
    assert flags.unreliable.nonzero().flatten().tolist() == [6]
    assert flags.thresholds == wide
    # Errors -.2, 0, .1, .2, .2, .3, 2.1 of latents 4, 0, 1, 3, 7, 2, 5; reconstructions 0, 0, 0, .1, .5, .6, .7.
    ranks = result().rank_sum(thresholds=wide)
    assert ranks[[4, 0, 1, 3, 7, 2, 5]].tolist() == [1 + 2, 2 + 2, 3 + 6, 4.5 + 5, 4.5 + 7, 6 + 4, 7 + 2]


def test_flags_sort_the_exclusive_latents_and_no_others():
    exclusive = torch.tensor([True, True, True, True, True, True, True, False])
    flags = result().flags(exclusive)
    assert flags.confirmed.nonzero().flatten().tolist() == [0, 3]
    assert flags.latent_decoupling.nonzero().flatten().tolist() == [1]
    assert flags.complete_shrinkage.nonzero().flatten().tolist() == [2]
    assert flags.unreliable.nonzero().flatten().tolist() == [4, 5, 6]
    assert flags.counts == {"confirmed": 2, "complete_shrinkage": 1, "latent_decoupling": 1, "unreliable": 3}
    assert "> 0.2;" in flags.thresholds.describe()


def test_a_latent_can_be_an_artefact_of_both_kinds():
    flags = result(base=([0.9] * 8, [0.9] * 8)).flags(torch.ones(8, dtype=torch.bool))
    assert flags.counts == {"confirmed": 0, "complete_shrinkage": 8, "latent_decoupling": 8, "unreliable": 0}


def test_the_rank_sum_adds_ranks_and_shares_ties():
    ranks = result().rank_sum()
    # Errors 0, .1, .3, .2, .2 rank 1, 2, 5, 3.5, 3.5; reconstructions 0, .6, .1, .5, .7 rank 1, 4, 2, 3, 5.
    assert ranks[[0, 1, 2, 3, 7]].tolist() == [2.0, 6.0, 7.0, 6.5, 8.5]
    assert ranks[[4, 5, 6]].isnan().all()
    among = torch.tensor([False, True, True, False, True, False, False, False])
    assert result().rank_sum(among)[[1, 2]].tolist() == [1.0 + 2.0, 2.0 + 1.0]
    assert result().rank_sum(among).isnan().sum() == 6


def test_with_several_other_sources_nu_is_asked_for_by_name():
    several = result(base=([0.5] * 8, [0.25] * 8), third=([0.75] * 8, [1.0] * 8))
    assert several.nu("error", "base").tolist() == [0.5] * 8
    assert several.nu("reconstruction", "third").tolist() == [1.0] * 8
    assert several.flags(torch.ones(8, dtype=torch.bool), source="base").counts["latent_decoupling"] == 0
    rising, constant = [i / 10 for i in range(8)], [0.5] * 8
    ranked = result(base=(rising, constant), third=(rising[::-1], constant))
    assert ranked.rank_sum(source="base").tolist() == [i + 4.5 for i in range(1, 9)]
    assert ranked.rank_sum(source="third").tolist() == [i + 4.5 for i in range(8, 0, -1)]
    for source in (None, "chat", "fourth"):
        with pytest.raises(ConfigError, match=r"one of 'base', 'third'.*name one of them"):
            several.nu("error", source)


def test_the_properties_are_the_ratios_of_the_one_other_source():
    torch.testing.assert_close(result().nu_error, torch.tensor(NU_ERROR, dtype=torch.float64), equal_nan=True)
    torch.testing.assert_close(
        result().nu_reconstruction, torch.tensor(NU_RECONSTRUCTION, dtype=torch.float64), equal_nan=True
    )
    torch.testing.assert_close(result().nu_activation, torch.tensor(NU_ERROR, dtype=torch.float64) / 2, equal_nan=True)


def test_masks_of_another_length_and_unknown_targets_are_refused():
    with pytest.raises(ShapeError, match="8 latents"):
        result().flags(torch.ones(7, dtype=torch.bool))
    with pytest.raises(ShapeError, match="8 latents"):
        result().rank_sum(torch.ones(9, dtype=torch.bool))
    with pytest.raises(ConfigError, match="no target 'norm'"):
        result().nu("norm")


@pytest.mark.parametrize("fields", [{"nu_low": 0.2}, {"nu_high": 0.5}, {"latent_decoupling_above": 2.5}])
def test_lines_outside_the_kept_range_are_refused(fields: dict[str, float]):
    with pytest.raises(ConfigError, match=r"The lines 0\.2 and (0\.5|2\.5) must lie inside the range"):
        ScalingThresholds(**fields)
