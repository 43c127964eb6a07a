from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import planted
import pytest
import torch
from planted_pair import PairConfig
from planted_training import Plan, planted_run
from sae_lens import SAE

PAIR = PairConfig(width=16, n_shared=20, n_exclusive=4, n_active=2)
PLAN = Plan(PAIR, n_steps=40, batch_size=32, d_sae=160, n_eval_tokens=500)
KEYS = ["architecture", "seed", "l0", "recall_exclusive", "false_exclusive_rate", "explained_variance"]


@pytest.mark.parametrize("entry", planted.ENTRIES, ids=[entry.name for entry in planted.ENTRIES])
def test_every_entry_trains_and_gives_a_row_that_json_can_hold(entry: Any) -> None:
    row, details = planted.measure(entry, 0, PLAN)
    assert list(row) == KEYS
    assert (row["architecture"], row["seed"]) == (entry.name, 0)
    assert all(math.isfinite(row[key]) for key in KEYS[2:])
    assert (details["coefficient"] is None) == (entry.knob == "k")
    json.dumps([row, details], allow_nan=False)


def test_a_run_is_a_stock_sae_with_its_truth_and_comes_out_the_same_again() -> None:
    batchtopk = next(entry for entry in planted.ENTRIES if entry.name == "batchtopk")
    first, again = (planted_run(batchtopk, 1, PLAN) for _ in range(2))
    assert type(first.sae).__module__.startswith("sae_lens.")
    assert isinstance(first.sae, SAE)
    for key, weights in first.sae.state_dict().items():
        assert torch.equal(weights, again.sae.state_dict()[key]), key
    # Scaled by what was folded, both models have the same mean norm.
    base, finetuned = first.tokens[1].split(first.pair.cfg.width, dim=-1)
    norms = [part.norm(dim=-1).mean().item() * g for part, g in zip((base, finetuned), first.scales, strict=True)]
    assert norms == pytest.approx([4.0, 4.0], rel=0.1)


def test_every_architecture_of_a_seed_is_judged_on_the_same_fresh_tokens() -> None:
    features = [planted_run(entry, 2, PLAN).tokens[0] for entry in (planted.ENTRIES[0], planted.ENTRIES[-1])]
    assert torch.equal(*features)


@pytest.mark.parametrize(("start", "rises"), [(1e-3, True), (1e3, False)])
def test_the_weight_of_the_penalty_moves_towards_the_planted_l0(start: float, rises: bool) -> None:
    standard = planted.ENTRIES[0]
    run = planted_run(standard._replace(fields={standard.knob: start}), 0, replace(PLAN, n_steps=100, d_sae=32))
    assert run.coefficient is not None
    if rises:
        # The last 80 of the 100 steps move it, each by the largest excess, 1/2.
        assert run.coefficient == pytest.approx(start * math.exp(0.008 * 0.5 * 80), rel=0.02)
    else:
        assert run.coefficient < 0.95 * start


def test_the_table_has_mean_and_deviation_over_seeds() -> None:
    rows = [
        {"architecture": name, "seed": seed, **dict.fromkeys(KEYS[2:], value)}
        for name, values in {"a": (0.25, 0.75), "b": (0.5, 0.5)}.items()
        for seed, value in enumerate(values)
    ]
    table = planted.means_over_seeds(rows)
    assert [row["architecture"] for row in table] == ["a", "b"]
    assert [row["l0"] for row in table] == ["0.50 ± 0.35", "0.50 ± 0.00"]
    assert planted.means_over_seeds(rows[:1])[0]["l0"] == "0.25"
