"""Which pairs stay, against torch.topk over all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_problems import Problem, first_largest, problems

from sae_lens_crosscoder.training.parallel.division import Division
from sae_lens_crosscoder.training.sparse import encoder as encoder_module
from sae_lens_crosscoder.training.sparse.chunk_encoder import ChunkEncoder
from sae_lens_crosscoder.training.sparse.encoder import PairEncoder, ScoredPairs, true_positions
from sae_lens_crosscoder.training.sparse.selection import (
    LargestOfBatch,
    largest_of_ranks,
    largest_of_rows,
    positive_pairs,
)
from sae_lens_crosscoder.training.sparse.ties import largest


@given(problems, st.integers(1, 60), st.sampled_from([0.0, 1e-9, 0.5, 3.0, 1e6]))
@settings(max_examples=150, deadline=None)
def test_of_a_batch_the_largest_stay_wherever_the_selection_starts(problem: Problem, n: int, start: float) -> None:
    selection = LargestOfBatch()
    selection.start = start
    everything = slice(0, problem.scores.shape[1])
    expected = first_largest(problem.scores.flatten(), n)
    for _ in range(2):  # the second time from the bound of the first
        found = selection.select(problem.encoder(), everything, n)
        assert found.flat.tolist() == expected
        torch.testing.assert_close(found.scores, problem.scores.flatten()[found.flat], rtol=1e-12, atol=1e-12)
    values = problem.scores.flatten()
    top = values.topk(min(n, len(values))).values
    torch.testing.assert_close(found.scores.sort(descending=True).values, top[top > 0], rtol=1e-12, atol=1e-12)


@given(problems, st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_of_every_row_the_largest_stay(problem: Problem, k: int) -> None:
    k = min(k, problem.scores.shape[1])
    found = largest_of_rows(problem.encoder(), k)
    d_sae = problem.scores.shape[1]
    expected = [i * d_sae + j for i, row in enumerate(problem.scores) for j in first_largest(row, k)]
    assert found.flat.tolist() == expected


@given(problems, st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_latents_are_selected_among_themselves_if_asked_for(problem: Problem, n: int) -> None:
    found = LargestOfBatch().select(problem.encoder(), slice(3, 7), n)
    apart = torch.zeros_like(problem.scores)
    apart[:, 3:7] = problem.scores[:, 3:7]
    assert found.flat.tolist() == first_largest(apart.flatten(), n)


def test_a_start_above_all_scores_is_given_up_however_small_they_are() -> None:
    problem = Problem(0, (17, 9, 64), "random")
    problem.norms *= 1e-3
    problem.scores *= 1e-3
    selection = LargestOfBatch()
    selection.start = 1e6
    n_positive = int((problem.scores > 0).sum())
    for n in (20, n_positive, n_positive + 5):
        found = selection.select(problem.encoder(), slice(0, 64), n)
        assert found.flat.tolist() == first_largest(problem.scores.flatten(), n)


def test_no_pair_stays_where_none_is_wanted() -> None:
    assert len(LargestOfBatch().select(Problem(0, (5, 3, 8), "random").encoder(), slice(0, 8), 0)) == 0


@given(problems, st.sampled_from([1, 256]))
@settings(max_examples=50, deadline=None)
def test_all_positive_pairs_are_found_unless_they_are_too_many(problem: Problem, n_rows: int) -> None:
    positive = (problem.scores > 0).flatten()
    n_positive, n_pairs = int(positive.sum()), positive.numel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "_ROWS", n_rows)
        found = positive_pairs(problem.encoder(), 1.0)
        assert found is not None
        assert found.flat.tolist() == positive.nonzero().view(-1).tolist()
        assert (found.scores > 0).all()
        assert n_positive == 0 or positive_pairs(problem.encoder(), (n_positive - 0.5) / n_pairs) is None


def test_as_many_positive_pairs_as_the_share_are_not_too_many() -> None:
    for seed in range(20):
        problem = Problem(seed, (8, 9, 64), "random")
        n_positive = int((problem.scores > 0).sum())
        for encoder in (problem.encoder(), ChunkEncoder(problem.x, problem.W_enc, problem.b_enc, problem.norms)):
            assert positive_pairs(encoder, n_positive / 512) is not None
            assert positive_pairs(encoder, (n_positive - 1) / 512) is None


def test_a_dense_batch_is_given_up_after_its_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "_ROWS", 2)
    problem = Problem(0, (40, 6, 21), "all equal")
    screened: list[slice] = []
    screen = PairEncoder.screen

    def counting(self: PairEncoder, rows: slice, latents: slice) -> torch.Tensor:
        screened.append(rows)
        return screen(self, rows, latents)

    monkeypatch.setattr(PairEncoder, "screen", counting)
    assert positive_pairs(problem.encoder(), 0.4) is None
    assert screened == [slice(0, 2)]
    assert positive_pairs(problem.encoder(), 0.6) is None
    assert len(screened) == 21  # less than twice as dense: the candidates may not all be positive


class OneOfTwoRanks(Division):
    """The division on a rank, whose counterpart has scores of its own, which come after."""

    def __init__(self, others: torch.Tensor) -> None:
        super().__init__()
        self.others = others

    def largest_of_rows(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        return largest(torch.cat([scores, self.others], dim=1), k)[:, :k]


@given(problems, st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_of_several_ranks_the_largest_of_every_row_stay(problem: Problem, k: int) -> None:
    d_sae = problem.scores.shape[1]
    others = problem.scores.flip(0)[:, :5].round()  # equal to scores of this rank only where those are exact
    everything = torch.cat([problem.scores, others], dim=1)
    expected = [i * d_sae + j for i, row in enumerate(everything) for j in first_largest(row, k) if j < d_sae]
    encoder = problem.encoder()
    found = largest_of_ranks(largest_of_rows(encoder, k), encoder, OneOfTwoRanks(others), k)
    assert found.flat.tolist() == expected
    torch.testing.assert_close(found.scores, problem.scores.flatten()[found.flat], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_chunks", [False, True])
def test_tensors_are_made_where_the_batch_is(in_chunks: bool) -> None:
    problem = Problem(0, (17, 9, 64), "random")
    division = OneOfTwoRanks(problem.scores[:, :5])

    def found() -> list[ScoredPairs | None]:
        parts = (problem.x, problem.W_enc, problem.b_enc, problem.norms)
        encoder = ChunkEncoder(*parts) if in_chunks else PairEncoder(*parts)
        of_rows = largest_of_rows(encoder, 4)
        selection, everything = LargestOfBatch(), slice(0, 64)
        return [
            *(selection.select(encoder, everything, n) for n in (0, 40)),
            of_rows,
            largest_of_ranks(of_rows, encoder, division, 4),
            positive_pairs(encoder, 1.0),
        ]

    expected = found()
    with torch.device("meta"):  # holds no numbers, and stands for any other device than the batch's
        elsewhere = found()
    for pairs, others in zip(expected, elsewhere, strict=True):
        assert pairs is not None
        assert others is not None
        assert torch.equal(pairs.flat, others.flat)
        assert torch.equal(pairs.scores, others.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(problems)
@settings(max_examples=50, deadline=None)
def test_a_screened_bound_is_never_below_the_score(dtype: torch.dtype, problem: Problem) -> None:
    encoder = problem.encoder()
    encoder._dtype = dtype
    encoder._rounding = torch.finfo(dtype).eps / 2
    everything = slice(0, encoder.d_sae)
    for rows in encoder.chunks:
        bounds = encoder.screen(rows, everything).double()
        scores = problem.scores[rows]
        assert (bounds * (1 + 2 * encoder._rounding) >= scores * (1 - 1e-12)).logical_or(scores == 0).all()


@pytest.mark.parametrize(("of_inputs", "of_weights"), [(1e11, 1e-23), (1e-21, 1e11), (1e-12, 1e-12), (1e15, 1e15)])
def test_a_bound_holds_where_squares_are_too_small_for_float32(of_inputs: float, of_weights: float) -> None:
    for seed in range(20):
        problem = Problem(seed, (17, 9, 64), "random")
        x, W_enc = (problem.x * of_inputs).float(), (problem.W_enc * of_weights).float()
        b_enc, norms = torch.zeros(64), torch.ones(64)
        scores = torch.relu(x.double() @ W_enc.double())
        for dtype in (torch.float32, torch.bfloat16):
            encoder = PairEncoder(x, W_enc, b_enc, norms)
            encoder._dtype, encoder._rounding = dtype, torch.finfo(dtype).eps / 2
            bounds = encoder.screen(slice(0, 17), slice(0, 64)).double()
            assert (bounds * (1 + 2 * encoder._rounding) >= scores).logical_or(scores == 0).all()


def test_a_long_batch_is_cut_while_it_is_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "_ROWS", 8)
    problem = Problem(0, (64, 8, 32), "random")
    scored: list[int] = []
    score = PairEncoder.score

    def counting(self: PairEncoder, flat: torch.Tensor, bounds: torch.Tensor) -> ScoredPairs:
        scored.append(len(flat))
        return score(self, flat, bounds)

    monkeypatch.setattr(PairEncoder, "score", counting)
    selection = LargestOfBatch()
    found = selection.select(problem.encoder(), slice(0, 32), 20)
    assert found.flat.tolist() == first_largest(problem.scores.flatten(), 20)
    first, scored[:] = sum(scored), []
    selection.select(problem.encoder(), slice(0, 32), 20)
    n_positive = int((problem.scores > 0).sum())
    assert 20 <= sum(scored) < first < n_positive


def test_of_batches_alike_little_more_is_scored_than_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    score = PairEncoder.score

    def counting(self: PairEncoder, flat: torch.Tensor, bounds: torch.Tensor) -> ScoredPairs:
        passes.append(len(flat))
        return score(self, flat, bounds)

    def scored(selection: LargestOfBatch, size: float, n: int = 500) -> list[int]:
        passes.clear()
        encoder = PairEncoder(problem.x, problem.W_enc, problem.b_enc, size * problem.norms)
        assert len(selection.select(encoder, slice(0, 64), n)) == n
        return list(passes)

    monkeypatch.setattr(PairEncoder, "score", counting)
    monkeypatch.setattr(encoder_module, "multiplies_bfloat16", lambda: False)  # wider bounds have more candidates
    problem = Problem(0, (256, 8, 64), "random")
    selection = LargestOfBatch()
    assert sum(scored(selection, 1.0)) > 10 * 500
    for _ in range(30):
        (n_scored,) = scored(selection, 1.0)
        assert 500 < n_scored < 1.6 * 500
    assert n_scored < 1.25 * 500
    # Smaller scores than were expected cost a second pass, and the next starts are lower for it.
    assert len(scored(selection, 0.8)) == 2
    assert len(scored(selection, 1.0)) == 1
    (n_scored,) = scored(selection, 1.0)
    assert 1.25 * 500 < n_scored < 2.2 * 500
    for _ in range(10):
        scored(selection, 1.0)
        scored(selection, 0.85)
    assert len(scored(selection, 1.0)) == len(scored(selection, 0.85)) == 1


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5]), min_size=1, max_size=30), st.integers(0, 31))
def test_of_equal_scores_the_first_stay(scores: list[float], k: int) -> None:
    kept = largest(torch.tensor([scores, scores[::-1]]), k)
    assert kept[0].nonzero().view(-1).tolist() == first_largest(torch.tensor(scores), k)
    assert kept[1].nonzero().view(-1).tolist() == first_largest(torch.tensor(scores[::-1]), k)


@given(st.integers(0, 1000), st.sampled_from([(3, 5), (4, 8), (16, 33)]), st.sampled_from([0.0, 0.01, 0.5, 1.0]))
@settings(deadline=None)
def test_true_positions_are_those_of_nonzero(seed: int, shape: tuple[int, int], share: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    assert torch.equal(true_positions(mask), mask.view(-1).nonzero().view(-1))
