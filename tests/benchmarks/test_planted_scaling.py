from __future__ import annotations

import pytest
import torch
from perfect_crosscoder import CFG, SCALES, perfect
from planted_pair import PlantedPair
from planted_scaling import auroc, nu_separation
from planted_training import PlantedRun


def run_of(shrunk: int) -> PlantedRun:
    """The perfect crosscoder of a planted pair, in which the base's side of some shared features is shrunk away."""
    pair = PlantedPair.plant(CFG, seed=0)
    vectors = torch.cat([torch.eye(16), torch.eye(16)], dim=-1)
    vectors[8:12, 16:] = 0
    vectors[12:, :16] = 0
    pair.dictionary.feature_vectors.data = vectors
    sae = perfect(pair)
    sae.W_dec.data[:shrunk, :16] = 0
    torch.manual_seed(1)
    return PlantedRun(pair, sae, SCALES, None, pair.sample(4000))


def test_nu_tells_shared_features_whose_base_side_was_shrunk_away_from_real_exclusive_ones() -> None:
    run = run_of(shrunk=3)
    assert run.judgement().is_exclusive.sum() == 11
    assert run.judgement().is_real.sum() == 8
    separation = nu_separation(run)
    assert separation["nu_error"] == 1.0
    assert separation["larger_nu"] == 1.0


def test_without_false_exclusive_latents_there_is_nothing_to_separate() -> None:
    assert nu_separation(run_of(shrunk=0)) == dict.fromkeys(("nu_error", "nu_reconstruction", "larger_nu"))


def test_auroc_by_hand() -> None:
    assert auroc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert auroc(torch.tensor([torch.nan]), torch.tensor([0.0])) == 0
    assert auroc(torch.tensor([]), torch.tensor([0.0])) is None
