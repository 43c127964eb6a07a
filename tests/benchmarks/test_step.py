from __future__ import annotations

import pytest
import step
from step_contenders import CONTENDERS, OURS, REFERENCE, SPARSIFY, STANDARD, Shape, batches, installed
from step_quality import DENSE, quality_rows

TINY = Shape(batch=32, width=8, d_sae=64, k=2)


def test_every_contender_makes_steps_on_the_joint_input() -> None:
    data = batches(TINY)
    for name in installed(list(CONTENDERS)):
        contender = CONTENDERS[name](TINY)
        before = [weights.detach().clone() for weights in contender.model.parameters()]
        contender.step(data[0])
        moved = [(old - new).abs().max() > 1e-9 for old, new in zip(before, contender.model.parameters(), strict=True)]
        assert any(moved) != ("L0 = k" in name or name == STANDARD), name  # these stay as they are, so that L0 does
        n_weights = sum(weights.numel() for weights in before)
        assert contender.held_mb > 3 * 4 * n_weights / 2**20, name


@pytest.mark.parametrize("name", [name for name in CONTENDERS if "L0 = k" in name or name == STANDARD])
def test_penalised_crosscoders_are_timed_with_k_active_latents_a_token(name: str) -> None:
    contender = CONTENDERS[name](TINY)
    for _ in range(10):
        contender.step(batches(TINY)[0])
    acts = contender.model.encode(batches(TINY)[0])
    assert (acts > 0).sum() == pytest.approx(TINY.k * TINY.batch, abs=1)


def test_activations_have_the_norm_that_training_scales_them_to() -> None:
    for x in batches(TINY, 2):
        for half in x.split(TINY.width, dim=1):
            assert half.norm(dim=1).mean().item() == pytest.approx(TINY.width**0.5, rel=1e-5)


def test_a_package_that_is_not_there_leaves_its_row_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert installed([REFERENCE, SPARSIFY, OURS]) == [REFERENCE, OURS]
    assert "eai-sparsify is not installed" in capsys.readouterr().out


def test_rows_compare_every_contender_with_the_references_of_its_rounds() -> None:
    rows = step.time_rows(TINY, [REFERENCE, OURS, STANDARD], n_rounds=3)
    assert [row["name"] for row in rows] == [REFERENCE, OURS, STANDARD]
    assert rows[0]["speedup"] == rows[2]["over_standard"] == 1
    assert all(row["seconds_median"] > 0 and row["dense_share"] > 0 for row in rows)
    assert {row["over_sparsify"] for row in rows} == {None}
    assert rows[1]["l0"] == TINY.k
    assert rows[2]["l0"] == pytest.approx(TINY.k, rel=0.2)  # its bias is that of the first batch


def test_the_sparse_step_learns_what_the_dense_one_learns() -> None:
    rows = {row["name"]: row for row in quality_rows(n_steps=10)}
    for column in ("unexplained_variance", "l0", "silent_latents"):
        assert rows[OURS][column] == pytest.approx(rows[DENSE][column], rel=1e-3), column
    assert 0 < rows[OURS]["unexplained_variance"] < 1.5
    assert rows[OURS]["l0"] == pytest.approx(32)
