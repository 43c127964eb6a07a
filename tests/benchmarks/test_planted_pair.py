from __future__ import annotations

import pytest
import torch
from planted_pair import SHARED, PairConfig, PlantedPair

QUIET = PairConfig(strength_jitter=0.0, noise=0.0, mean_norm=0.0)


def planted_norms(pair: PlantedPair) -> torch.Tensor:
    return torch.stack([part.norm(dim=-1) for part in pair.vectors()], dim=-1)


def test_exclusive_features_write_into_their_own_model_only() -> None:
    pair = PlantedPair.plant(PairConfig(n_shared=12, n_exclusive=3, width=16), seed=0)
    norms = planted_norms(pair)
    assert pair.owners.tolist() == [SHARED] * 12 + [0] * 3 + [1] * 3
    torch.testing.assert_close(norms[12:15], torch.tensor([[1.0, 0.0]] * 3))
    torch.testing.assert_close(norms[15:], torch.tensor([[0.0, 1.0]] * 3))


def test_shared_features_have_unequal_norms_and_directions_at_the_given_cosine() -> None:
    pair = PlantedPair.plant(PairConfig(cosine=0.7, max_norm_ratio=4.0), seed=1)
    shared = pair.owners == SHARED
    base, finetuned = (part[shared] for part in pair.vectors())
    cosines = torch.nn.functional.cosine_similarity(base, finetuned)
    torch.testing.assert_close(cosines, torch.full_like(cosines, 0.7))
    norms = planted_norms(pair)[shared]
    torch.testing.assert_close(norms.amax(dim=-1), torch.ones(len(norms)))
    weaker = norms.amin(dim=-1)
    assert 0.25 <= weaker.min() < 0.3
    assert 0.9 < weaker.max() <= 1.0
    assert 0.35 < (norms[:, 0] < norms[:, 1]).float().mean() < 0.65


def test_there_are_more_features_than_dimensions_and_none_would_be_classified_wrongly() -> None:
    pair = PlantedPair.plant(PairConfig(), seed=0)
    norms = planted_norms(pair)
    for model in range(2):
        assert int((norms[:, model] > 0).sum()) > 2 * pair.cfg.width
    shares = norms[pair.owners == SHARED] / norms[pair.owners == SHARED].sum(dim=-1, keepdim=True)
    assert shares.max() < 0.81


def test_activations_are_the_sum_of_the_active_features() -> None:
    pair = PlantedPair.plant(QUIET, seed=2)
    features, x = pair.sample(50)
    base, finetuned = pair.vectors()
    torch.testing.assert_close(x, torch.cat([features @ base, QUIET.finetuned_scale * (features @ finetuned)], dim=-1))


def test_strengths_jitter_between_the_models_and_noise_and_the_mean_are_as_large_as_stated() -> None:
    cfg = PairConfig(width=16, n_shared=1, n_exclusive=0, n_active=1, mean_norm=2.0, finetuned_scale=1.0, noise=0.1)
    pair = PlantedPair.plant(cfg, seed=0)
    assert pair.dictionary.bias.norm().item() == pytest.approx(2.0)
    features = torch.full((20_000, 1), 3.0)
    x = pair.dictionary(features) - pair.dictionary.bias
    for part, vector in zip(x.split(16, dim=-1), pair.vectors(), strict=True):
        strengths = part @ vector[0] / vector[0].pow(2).sum()
        expected = ((3.0 * cfg.strength_jitter) ** 2 + (0.1 / vector[0].norm().item()) ** 2) ** 0.5
        assert strengths.mean().item() == pytest.approx(3.0, abs=0.02)
        assert strengths.std().item() == pytest.approx(expected, rel=0.03)


def test_as_many_features_are_active_as_stated_and_they_are_correlated() -> None:
    pair = PlantedPair.plant(PairConfig(n_active=5), seed=3)
    features, _ = pair.sample(40_000)
    active = (features > 0).float()
    assert active.sum(dim=-1).mean().item() == pytest.approx(5.0, rel=0.02)
    correlations = torch.corrcoef(active.T).fill_diagonal_(0)
    # Of independent features with so many tokens none would correlate by more than about 0.03.
    assert correlations.max() > 0.15


def test_the_seed_decides_the_pair() -> None:
    first, again, other = (PlantedPair.plant(PairConfig(), seed) for seed in (4, 4, 5))
    assert torch.equal(first.dictionary.feature_vectors, again.dictionary.feature_vectors)
    assert torch.equal(first.generator.firing_probabilities, again.generator.firing_probabilities)
    assert not torch.equal(first.dictionary.feature_vectors, other.dictionary.feature_vectors)
    assert torch.equal(next(first.batches(8)).isfinite(), torch.ones(8, 128, dtype=torch.bool))
