"""Frequencies, sizes, quantiles and groups, against the same on dense activations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from dictionaries import identity_sae, make_sources, random_activations, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_crosscoder.diffing import LatentStatistics, LatentStatisticsResult, TokenBatch, run_pass
from sae_lens_crosscoder.errors import ConfigError, DataError

GROUPS = {"dataset": ["web", "chat"], "role": ["template", "user", "assistant"]}
BOUND = 2 ** (1 / 32)


def measure(codes: Tensor, groups: dict[str, Tensor] | None = None, batch_size: int = 3) -> LatentStatisticsResult:
    """Statistics of given latent activations."""
    accumulator = LatentStatistics({kind: GROUPS[kind] for kind in groups or {}})
    x = torch.cat([codes, torch.zeros_like(codes)], dim=1).double()
    batches = (
        TokenBatch(x[i : i + batch_size], groups={k: g[i : i + batch_size] for k, g in (groups or {}).items()})
        for i in range(0, len(x), batch_size)
    )
    run_pass(identity_sae(codes.shape[1]), batches, [accumulator], make_sources(2, codes.shape[1]))
    return accumulator.compute()


# Latent 0 fires on three of four tokens, latent 1 on one, latent 2 never.
CODES = torch.tensor([[1.0, 0.0, 0.0], [2.0, 8.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
ROLES = torch.tensor([0, 0, 1, 1])


def test_frequency_and_size_by_hand():
    result = measure(CODES)
    assert result.n_tokens == 4
    assert result.n_active.tolist() == [3, 1, 0]
    assert result.frequency.tolist() == [0.75, 0.25, 0.0]
    assert result.max.tolist() == [3.0, 8.0, 0.0]
    assert result.mean_active[:2].tolist() == [2.0, 8.0]
    assert result.mean_active[2].isnan()
    assert result.quantile(0.5)[2].isnan()


def test_groups_by_hand():
    role = measure(CODES, {"role": ROLES}).groups["role"]
    assert role.names == ("template", "user", "assistant")
    assert role.n_tokens.tolist() == [2, 2, 0]
    assert role.frequency[0, :2].tolist() == [1.0, 0.5]
    assert role.mean[:, :2].tolist() == [[1.5, 1.5], [4.0, 0.0], [0.0, 0.0]]
    assert role.mean[:, 2].isnan().all()
    assert role.frequency[:, 2].isnan().all()
    assert role.mass_share[:2].tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert role.mass_share[2].isnan().all()
    assert role.mass_share_of("template")[:2].tolist() == [0.5, 1.0]
    assert role.mass_share_of("user", "assistant")[:2].tolist() == [0.5, 0.0]
    with pytest.raises(ConfigError, match="no groups"):
        role.mass_share_of("system")


def test_several_kinds_of_groups_are_counted_side_by_side():
    result = measure(CODES, {"role": ROLES, "dataset": torch.tensor([1, 0, 1, 1])})
    assert result.groups["dataset"].mass_share[0].tolist() == [2 / 6, 4 / 6]
    assert result.groups["role"].mass_share[0].tolist() == [0.5, 0.5, 0.0]


# The stated range, without its ends, where a rounded logarithm may fall into the neighbouring bin.
sizes = st.floats(2.0**-11.9, 2.0**19.9)


@settings(deadline=None, max_examples=50)
@given(st.lists(sizes, min_size=1, max_size=60), st.floats(0.001, 1.0))
def test_quantiles_are_within_the_stated_bound_of_the_exact_ones(values: list[float], q: float):
    result = measure(torch.tensor(values, dtype=torch.float64)[:, None], batch_size=7)
    exact = float(np.quantile(np.array(values), q, method="inverted_cdf"))
    quantile = result.quantile(q).item()
    assert exact / BOUND * (1 - 1e-9) <= quantile <= exact * BOUND * (1 + 1e-9)
    assert quantile <= max(values)


def test_every_latent_has_quantiles_of_its_own():
    median, largest = measure(CODES).quantile(0.5), measure(CODES).quantile(1.0)
    assert 2 / BOUND <= median[0] <= 2 * BOUND
    assert 8 / BOUND <= median[1] <= 8
    assert 3 / BOUND <= largest[0] <= 3
    assert largest[1] == median[1]


@pytest.mark.parametrize(("q", "exact"), [(0.55, 11.0), (0.5, 10.0), (0.551, 12.0), (1e-6, 1.0), (1.0, 20.0)])
def test_a_share_that_is_a_whole_number_of_activations_asks_for_no_more(q: float, exact: float):
    # 0.55 * 20 is 11.000000000000002.
    result = measure(torch.arange(1.0, 21.0)[:, None])
    assert exact / BOUND <= result.quantile(q).item() <= exact * BOUND


def test_activations_beyond_the_range_of_the_histogram_count_at_its_ends():
    result = measure(torch.tensor([[1e-6], [1e-6], [1e9]]))
    assert result.quantile(0.5).item() == pytest.approx(2**-12, rel=0.03)
    assert result.quantile(1.0).item() == pytest.approx(2**20, rel=0.03)
    assert result.max.item() == pytest.approx(1e9)
    assert measure(torch.tensor([[1e-6]])).quantile(0.5).item() == pytest.approx(1e-6)


@pytest.mark.parametrize("q", [0.0, 1.1, -0.5])
def test_a_quantile_is_asked_for_by_a_share(q: float):
    with pytest.raises(ConfigError, match=r"share in \(0, 1\]"):
        measure(CODES).quantile(q)


def tokens() -> TokenBatch:
    generator = torch.Generator().manual_seed(5)
    groups = {kind: torch.randint(len(names), (200,), generator=generator) for kind, names in GROUPS.items()}
    return TokenBatch(random_activations(), groups=groups)


def part(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    return TokenBatch(batch.x[start:stop], groups={kind: ids[start:stop] for kind, ids in batch.groups.items()})


def same(first: LatentStatisticsResult, second: LatentStatisticsResult) -> None:
    assert first.n_tokens == second.n_tokens
    assert torch.equal(first.histogram, second.histogram)
    torch.testing.assert_close(first.max, second.max)
    torch.testing.assert_close(first.mean_active, second.mean_active)
    for kind, group in first.groups.items():
        for name in ("n_tokens", "frequency", "mean", "mass_share"):
            torch.testing.assert_close(getattr(group, name), getattr(second.groups[kind], name))


def test_the_groups_are_those_of_dense_activations():
    sae, batch = random_sae(), tokens()
    accumulator = LatentStatistics(GROUPS)
    run_pass(sae, [batch], [accumulator], make_sources())
    result, codes = accumulator.compute(), sae.encode(batch.x)
    torch.testing.assert_close(result.max, codes.amax(dim=0))
    for kind, names in GROUPS.items():
        for i in range(len(names)):
            own = codes[batch.groups[kind] == i]
            torch.testing.assert_close(result.groups[kind].mean[:, i], own.mean(dim=0))
            torch.testing.assert_close(result.groups[kind].frequency[:, i], (own > 0).double().mean(dim=0))
            torch.testing.assert_close(result.groups[kind].mass_share[:, i], own.sum(dim=0) / codes.sum(dim=0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 200), max_size=5))
def test_statistics_do_not_depend_on_how_the_tokens_are_cut_or_merged(cuts: list[int]):
    sae, batch = random_sae(), tokens()
    whole, cut, merged = LatentStatistics(GROUPS), LatentStatistics(GROUPS), LatentStatistics(GROUPS)
    run_pass(sae, [batch], [whole], make_sources())
    parts = [part(batch, a, b) for a, b in itertools.pairwise([0, *sorted(cuts), 200])]
    run_pass(sae, parts, [cut], make_sources())
    for one in parts:
        accumulator = LatentStatistics(GROUPS)
        run_pass(sae, [one], [accumulator], make_sources())
        merged.merge(accumulator)
    same(whole.compute(), cut.compute())
    same(whole.compute(), merged.compute())


def test_missing_and_unnamed_groups_and_empty_streams_are_refused():
    sae, x = random_sae(), random_activations(5)
    with pytest.raises(DataError, match="does not say which 'dataset'"):
        run_pass(sae, [x], [LatentStatistics(GROUPS)], make_sources())
    for number in (-1, 3):
        batch = TokenBatch(x, groups={"role": torch.full((5,), number)})
        with pytest.raises(DataError, match=r"3 names \(template, user, assistant\)"):
            run_pass(sae, [batch], [LatentStatistics({"role": GROUPS["role"]})], make_sources())
    with pytest.raises(DataError, match="No tokens"):
        LatentStatistics().compute()


def test_accumulators_of_other_groups_are_not_merged():
    one, other = LatentStatistics(GROUPS), LatentStatistics()
    run_pass(random_sae(), [tokens()], [one, other], make_sources())
    with pytest.raises(ConfigError, match="merge only parts of one stream"):
        one.merge(other)
