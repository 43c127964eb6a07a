"""The selection in shapes that do not depend on the data, against sorting all scores, whatever the chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_problems import Problem, first_largest, problems

from sae_lens_crosscoder.training.sparse import chunk_encoder
from sae_lens_crosscoder.training.sparse.chunk_encoder import ChunkEncoder
from sae_lens_crosscoder.training.sparse.encoder import ScoredPairs
from sae_lens_crosscoder.training.sparse.selection import LargestOfBatch, largest_of_rows, positive_pairs
from sae_lens_crosscoder.training.sparse.ties import positions_of_largest

chunk_sizes = st.sampled_from([1, 100, 1000, 2**25])


@contextmanager
def encoder_in_chunks(problem: Problem, n_scores: int) -> Iterator[ChunkEncoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_encoder, "_CHUNK", n_scores)
        yield ChunkEncoder(problem.x, problem.W_enc, problem.b_enc, problem.norms)


def assert_kept(found: ScoredPairs, expected: list[int], n: int, problem: Problem) -> None:
    """The n pairs rise, those of positive score are the expected ones, and the others have code 0."""
    assert len(found) == n
    assert (found.flat.diff() > 0).all()
    positive = found.scores > 0
    assert found.flat[positive].tolist() == expected
    scores = problem.scores.flatten()[found.flat]
    torch.testing.assert_close(found.scores, scores, rtol=1e-12, atol=1e-12)
    norms = problem.norms[found.flat % problem.scores.shape[1]]
    torch.testing.assert_close(found.acts * norms, scores, rtol=1e-12, atol=1e-12)
    assert (found.acts[~positive] == 0).all()


@given(problems, st.integers(1, 60), chunk_sizes)
@settings(max_examples=150)
def test_of_a_batch_the_largest_stay(problem: Problem, n: int, n_scores: int) -> None:
    n = min(n, problem.scores.numel())
    with encoder_in_chunks(problem, n_scores) as encoder:
        found = LargestOfBatch().select(encoder, slice(0, encoder.d_sae), n)
    assert_kept(found, first_largest(problem.scores.flatten(), n), n, problem)


@given(problems, st.integers(1, 30), chunk_sizes)
def test_latents_are_selected_among_themselves_if_asked_for(problem: Problem, n: int, n_scores: int) -> None:
    n = min(n, 4 * len(problem.scores))
    apart = torch.zeros_like(problem.scores)
    apart[:, 3:7] = problem.scores[:, 3:7]
    with encoder_in_chunks(problem, n_scores) as encoder:
        found = LargestOfBatch().select(encoder, slice(3, 7), n)
    assert_kept(found, first_largest(apart.flatten(), n), n, problem)
    assert set((found.flat % encoder.d_sae).tolist()) <= {3, 4, 5, 6}


@given(problems, st.integers(1, 12), chunk_sizes)
@settings(max_examples=150)
def test_of_every_row_the_largest_stay(problem: Problem, k: int, n_scores: int) -> None:
    n_rows, d_sae = problem.scores.shape
    k = min(k, d_sae)
    with encoder_in_chunks(problem, n_scores) as encoder:
        found = largest_of_rows(encoder, k)
    expected = [i * d_sae + j for i, row in enumerate(problem.scores) for j in first_largest(row, k)]
    assert_kept(found, expected, n_rows * k, problem)
    assert (found.flat // d_sae).tolist() == [i for i in range(n_rows) for _ in range(k)]


@given(problems, chunk_sizes)
def test_all_positive_pairs_are_found_unless_they_are_too_many(problem: Problem, n_scores: int) -> None:
    positive = (problem.scores > 0).flatten()
    share = positive.double().mean().item()
    with encoder_in_chunks(problem, n_scores) as encoder:
        found = positive_pairs(encoder, share + 1e-9)
        assert found is not None
        assert found.flat.tolist() == positive.nonzero().view(-1).tolist()
        assert share == 0 or positive_pairs(encoder, share - 1e-9) is None


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0, 2.5]), min_size=1, max_size=30), st.integers(0, 30))
def test_positions_of_equal_scores_are_the_first(scores: list[float], k: int) -> None:
    k = min(k, len(scores))
    both = [scores, scores[::-1]]
    expected = [sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]) for row in both]
    assert positions_of_largest(torch.tensor(both), k).tolist() == expected


def test_scores_that_are_not_a_number_give_positions_that_exist() -> None:
    scores = torch.tensor([1.0, float("nan"), 2.0])
    assert positions_of_largest(scores, 2).max() < 3


def test_rounded_products_are_those_of_rounded_inputs() -> None:
    problem = Problem(0, (40, 6, 21), "random")
    parts = [part.float() for part in (problem.x, problem.W_enc, problem.b_enc, problem.norms)]
    rounded = ChunkEncoder(*parts, precision="bfloat16").scores(slice(5, 9), slice(2, 20))
    x, W_enc = (part.bfloat16().double() for part in parts[:2])
    exact = (x @ W_enc + parts[2].double()) * parts[3].double()
    # On a CPU the product is rounded once more.
    torch.testing.assert_close(rounded.double(), exact[5:9, 2:20], rtol=0.01, atol=0.03)
    unrounded = ChunkEncoder(*parts).scores(slice(5, 9), slice(2, 20))
    assert not torch.equal(unrounded, rounded)


def test_what_is_selected_has_the_dtype_of_the_weights() -> None:
    problem = Problem(0, (40, 6, 21), "random")
    half = ChunkEncoder(*(part.bfloat16() for part in (problem.x, problem.W_enc, problem.b_enc, problem.norms)))
    for found in (LargestOfBatch().select(half, slice(0, 21), 30), largest_of_rows(half, 3)):
        assert found.scores.dtype == found.acts.dtype == torch.bfloat16
