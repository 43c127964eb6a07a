"""An accumulator that goes on from another's state has seen that one's tokens too."""

from __future__ import annotations

import pytest
import torch
from dictionaries import make_sources, random_activations, random_sae
from torch import Tensor

from sae_lens_crosscoder.diffing import LatentScaling, LatentStatistics, TokenBatch, TopContexts, run_pass
from sae_lens_crosscoder.diffing.linear_decoder import LinearDecoder
from sae_lens_crosscoder.errors import DataError

CPU = torch.device("cpu")
GROUPS = {"half": ["first", "second"]}
Accumulator = LatentScaling | LatentStatistics | TopContexts


def make(kind: str) -> Accumulator:
    return {"scaling": LatentScaling("chat"), "statistics": LatentStatistics(GROUPS), "contexts": TopContexts(k=4)}[
        kind
    ]


def load(accumulator: Accumulator, state: dict[str, Tensor]) -> None:
    if isinstance(accumulator, LatentScaling):
        accumulator.load_state_dict(state, LinearDecoder.of(random_sae()), make_sources())
    else:
        accumulator.load_state_dict(state, CPU)


def add(accumulator: Accumulator, start: int, stop: int) -> None:
    rows = torch.arange(start, stop)
    groups = {"half": (rows >= 100).long()}
    batch = TokenBatch(random_activations()[start:stop], rows // 10, rows % 10, groups)
    run_pass(random_sae(), [batch], [accumulator], make_sources())


def findings(accumulator: Accumulator) -> dict[str, Tensor]:
    """All numbers of the result, by name."""
    found: dict[str, Tensor] = {}

    def gather(prefix: str, value: object) -> None:
        if isinstance(value, Tensor | int):
            found[prefix] = torch.as_tensor(value)
        elif isinstance(value, dict):
            for key, part in value.items():
                gather(f"{prefix}.{key}", part)
        elif hasattr(value, "__dict__"):
            gather(prefix, vars(value))

    gather("", accumulator.compute())
    return found


def assert_same(one: Accumulator, other: Accumulator) -> None:
    first, second = findings(one), findings(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, equal_nan=True, msg=name)


@pytest.mark.parametrize("kind", ["scaling", "statistics", "contexts"])
class TestEveryAccumulator:
    def test_that_goes_on_from_a_state_is_as_one_that_saw_everything(self, kind: str):
        whole, before, after = make(kind), make(kind), make(kind)
        add(whole, 0, 200)
        add(before, 0, 120)
        load(after, before.state_dict())
        assert_same(after, before)
        add(after, 120, 200)
        assert_same(after, whole)

    def test_leaves_the_state_that_it_went_on_from_as_it_was(self, kind: str):
        before, after = make(kind), make(kind)
        add(before, 0, 120)
        state = before.state_dict()
        copy = {name: tensor.clone() for name, tensor in state.items()}
        load(after, state)
        add(after, 120, 200)
        for name, tensor in copy.items():
            assert torch.equal(state[name].nan_to_num(), tensor.nan_to_num()), name

    def test_has_no_state_before_the_first_batch_and_forgets_with_an_empty_one(self, kind: str):
        accumulator = make(kind)
        assert accumulator.state_dict() == {}
        add(accumulator, 0, 120)
        assert accumulator.state_dict() != {}
        load(accumulator, {})
        assert accumulator.state_dict() == {}
        with pytest.raises(DataError, match="No tokens were added"):
            accumulator.compute()
