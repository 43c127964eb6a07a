from __future__ import annotations

import pytest
import torch
from perfect_crosscoder import CFG, SCALES, perfect
from planted_metrics import Judgement, judge
from planted_pair import PlantedPair
from sae_lens import StandardSAE


@pytest.fixture
def pair() -> PlantedPair:
    pair = PlantedPair.plant(CFG, seed=0)
    vectors = torch.cat([torch.eye(16), torch.eye(16)], dim=-1)
    vectors[:8, :16] *= 0.5
    vectors[8:12, 16:] = 0
    vectors[12:, :16] = 0
    pair.dictionary.feature_vectors.data = vectors
    return pair


def judged(sae: StandardSAE, pair: PlantedPair) -> Judgement:
    torch.manual_seed(1)
    return judge(sae, SCALES, pair, pair.sample(4000))


def test_a_perfect_crosscoder_has_full_recall_and_no_false_exclusives(pair: PlantedPair) -> None:
    result = judged(perfect(pair), pair)
    assert result.recall_exclusive == 1.0
    assert result.false_exclusive_rate == 0.0
    assert result.explained_variance == pytest.approx(1.0, abs=1e-5)
    assert result.l0 == pytest.approx(2.0, rel=0.05)
    assert result.is_exclusive.tolist() == result.is_real.tolist() == [False] * 8 + [True] * 8
    assert result.details == {
        "n_exclusive_latents": 8,
        "n_real_exclusive_latents": 8,
        "n_one_sided_features": 0,
        "n_decoupled_features": 0,
        "n_shared_latents": 8,
        "n_dead_latents": 0,
    }


def test_a_shared_feature_that_lost_one_side_is_a_false_exclusive(pair: PlantedPair) -> None:
    sae = perfect(pair)
    sae.W_dec.data[:2, :16] = 0
    result = judged(sae, pair)
    assert result.recall_exclusive == 1.0
    assert result.false_exclusive_rate == pytest.approx(2 / 10)
    assert result.details["n_one_sided_features"] == 2
    assert result.details["n_decoupled_features"] == 0
    assert result.explained_variance < 0.999


def test_a_shared_feature_split_into_two_exclusive_latents_is_decoupled(pair: PlantedPair) -> None:
    sae = perfect(pair)
    sae.W_dec.data[0, :16], sae.W_dec.data[15, 16:] = 0, 0
    sae.W_dec.data[15, :16] = 0.5 * torch.eye(16)[0]
    sae.W_enc.data[:, 15] = sae.W_enc.data[:, 0]
    result = judged(sae, pair)
    assert result.recall_exclusive == pytest.approx(7 / 8)
    assert result.false_exclusive_rate == pytest.approx(2 / 9)
    assert result.details["n_decoupled_features"] == 1
    assert result.details["n_one_sided_features"] == 0


def test_latents_with_the_wrong_firing_or_the_wrong_model_are_not_the_planted_ones(pair: PlantedPair) -> None:
    shuffled = perfect(pair)
    shuffled.W_enc.data = shuffled.W_enc.data.roll(1, dims=-1)
    result = judged(shuffled, pair)
    assert (result.recall_exclusive, result.false_exclusive_rate) == (0.0, 1.0)
    swapped = perfect(pair)
    swapped.W_dec.data[8:] = swapped.W_dec.data[8:].roll(16, dims=-1)
    result = judged(swapped, pair)
    assert (result.recall_exclusive, result.false_exclusive_rate) == (0.0, 1.0)


def test_dead_latents_do_not_count_and_without_exclusive_latents_none_are_false(pair: PlantedPair) -> None:
    sae = perfect(pair)
    sae.b_enc.data[8:] = -1e3
    result = judged(sae, pair)
    assert result.details["n_exclusive_latents"] == 0
    assert result.details["n_dead_latents"] == 8
    assert (result.recall_exclusive, result.false_exclusive_rate) == (0.0, 0.0)


def test_explained_variance_weighs_both_models_alike(pair: PlantedPair) -> None:
    # Without the base, what stays is the fine-tuned side's share of the variance in units of the scales.
    sae = perfect(pair)
    sae.W_dec.data[:, :16] = 0
    torch.manual_seed(1)
    features, x = pair.sample(4000)
    result = judge(sae, SCALES, pair, (features, x))
    scaled = x * torch.tensor(SCALES).repeat_interleave(16)
    variances = scaled.var(dim=0, correction=0)
    lost = scaled[:, :16].pow(2).mean(dim=0).sum()
    assert result.explained_variance == pytest.approx((1 - lost / variances.sum()).item(), abs=1e-4)
