"""The strongest places of every latent, against sorting all of them."""

from __future__ import annotations

import random

import pytest
import torch
from dictionaries import identity_sae, make_sources, random_activations, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_crosscoder.diffing import ContextTable, TokenBatch, TopContexts, run_pass
from sae_lens_crosscoder.errors import ConfigError, DataError

Place = tuple[float, int, int]


def stream(codes: Tensor, sequence_ids: Tensor, positions: Tensor, order: list[int], batch_size: int):
    x = torch.cat([codes, torch.zeros_like(codes)], dim=1).double()
    for rows in torch.tensor(order).split(batch_size):
        yield TokenBatch(x[rows], sequence_ids[rows], positions[rows])


def places(table: ContextTable, latent: int) -> list[Place]:
    """The table's row without its empty end, which has to be all that follows."""
    rows = list(
        zip(
            table.values[latent].tolist(),
            table.sequence_ids[latent].tolist(),
            table.positions[latent].tolist(),
            strict=True,
        )
    )
    n = sum(row[1] >= 0 for row in rows)
    assert all(row[1] == row[2] == -1 and row[0] != row[0] for row in rows[n:])
    return rows[:n]


def expected(codes: Tensor, sequence_ids: Tensor, positions: Tensor, k: int, per_sequence: int) -> list[list[Place]]:
    """By sorting everything, one latent after the other."""
    result: list[list[Place]] = []
    for column in codes.T.tolist():
        ranked = sorted(
            (-value, s, p)
            for value, s, p in zip(column, sequence_ids.tolist(), positions.tolist(), strict=True)
            if value > 0
        )
        taken: dict[int, int] = {}
        kept: list[Place] = []
        for value, sequence_id, position in ranked:
            taken[sequence_id] = taken.get(sequence_id, 0) + 1
            if taken[sequence_id] <= per_sequence:
                kept.append((-value, sequence_id, position))
        result.append(kept[:k])
    return result


def test_the_strongest_place_of_every_sequence_by_hand():
    codes = torch.tensor([[1.0, 0.0], [5.0, 0.0], [4.0, 2.0], [3.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    sequence_ids, positions = torch.tensor([7, 7, 7, 8, 9, 9]), torch.tensor([0, 1, 2, 0, 0, 1])
    for batch_size in (1, 2, 6):
        top = TopContexts(k=3)
        batches = stream(codes, sequence_ids, positions, list(range(6)), batch_size)
        run_pass(identity_sae(2), batches, [top], make_sources(2, 2))
        assert places(top.compute(), 0) == [(5.0, 7, 1), (4.0, 9, 0), (3.0, 8, 0)]
        assert places(top.compute(), 1) == [(2.0, 7, 2)]


def test_weak_places_are_kept_while_there_is_room():
    codes, numbers = torch.tensor([[0.25], [0.5], [0.125]]), torch.arange(3)
    for batch_size in (1, 3):
        top = TopContexts(k=4)
        run_pass(identity_sae(1), stream(codes, numbers, numbers, [0, 1, 2], batch_size), [top], make_sources(2, 1))
        assert places(top.compute(), 0) == [(0.5, 1, 1), (0.25, 0, 0), (0.125, 2, 2)]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.integers(1, 12), st.integers(1, 40))
def test_the_places_are_those_of_sorting_everything_whatever_the_order_and_the_batches(
    seed: int, k: int, per_sequence: int, n_sequences: int, batch_size: int
):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values, so that most places tie with others.
    codes = torch.randint(0, 4, (40, 3), generator=generator).double()
    sequence_ids = torch.randint(0, n_sequences, (40,), generator=generator)
    positions = torch.arange(40)
    order = random.Random(seed).sample(range(40), 40)
    whole, first, second = (TopContexts(k, per_sequence) for _ in range(3))
    sources, sae = make_sources(2, 3), identity_sae(3)
    run_pass(sae, stream(codes, sequence_ids, positions, order, batch_size), [whole], sources)
    run_pass(sae, stream(codes, sequence_ids, positions, order[:25], batch_size), [first], sources)
    run_pass(sae, stream(codes, sequence_ids, positions, order[25:], batch_size), [second], sources)
    first.merge(second)
    exact = expected(codes, sequence_ids, positions, k, per_sequence)
    for top in (whole, first):
        table = top.compute()
        assert [places(table, latent) for latent in range(3)] == exact


def test_what_was_computed_does_not_change_with_what_is_added_later():
    codes, numbers = torch.tensor([[1.0], [2.0]]), torch.arange(2)
    top, sources = TopContexts(k=1), make_sources(2, 1)
    run_pass(identity_sae(1), stream(codes, numbers, numbers, [0], 1), [top], sources)
    early = top.compute()
    run_pass(identity_sae(1), stream(codes, numbers, numbers, [1], 1), [top], sources)
    assert places(early, 0) == [(1.0, 0, 0)]
    assert places(top.compute(), 0) == [(2.0, 1, 1)]


def test_an_empty_accumulator_takes_over_what_is_merged_into_it():
    top, empty = TopContexts(k=2), TopContexts(k=2)
    numbers = torch.arange(200)
    run_pass(random_sae(), [TokenBatch(random_activations(), numbers, numbers)], [top], make_sources())
    empty.merge(top)
    top.merge(TopContexts(k=2))
    torch.testing.assert_close(empty.compute().values, top.compute().values, equal_nan=True)


def test_a_saved_state_is_taken_to_the_device_that_goes_on():
    top, other, numbers = TopContexts(k=2), TopContexts(k=2), torch.arange(200)
    run_pass(random_sae(), [TokenBatch(random_activations(), numbers, numbers)], [top], make_sources())
    other.load_state_dict(top.state_dict(), torch.device("meta"))  # which every machine has beside its CPU
    table = other.compute()
    assert {table.values.device.type, table.sequence_ids.device.type, table.positions.device.type} == {"meta"}


def test_what_cannot_be_done_is_refused():
    x, numbers = random_activations(), torch.arange(200)
    for batch in (x, TokenBatch(x, sequence_ids=numbers), TokenBatch(x, positions=numbers)):
        with pytest.raises(DataError, match="where its tokens stand"):
            run_pass(random_sae(), [batch], [TopContexts()], make_sources())
    with pytest.raises(DataError, match="No tokens"):
        TopContexts().compute()
    for limits in ({"k": 0}, {"per_sequence": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            TopContexts(**limits)
    one, other = TopContexts(2), TopContexts(3)
    run_pass(random_sae(), [TokenBatch(x, numbers, numbers)], [one, other], make_sources())
    with pytest.raises(ConfigError, match="merge only parts of one stream"):
        one.merge(other)
