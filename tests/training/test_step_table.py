from __future__ import annotations

import csv
from pathlib import Path

from sae_lens_crosscoder.training.step_table import StepTable


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path | None, steps: range, n_steps_done: int = 0) -> None:
    with StepTable(path, n_steps_done) as curve:
        for step in steps:
            curve.write(step, {"loss": step / 2, "l0": 3})


def test_a_row_is_written_for_every_step_with_columns_in_alphabetical_order(tmp_path: Path):
    path = tmp_path / "deep" / "curve.csv"
    write(path, range(1, 4))
    assert path.read_text().splitlines() == ["step,l0,loss", "1,3,0.5", "2,3,1.0", "3,3,1.5"]


def test_a_row_can_be_read_while_training_goes_on(tmp_path: Path):
    with StepTable(tmp_path / "curve.csv") as curve:
        curve.write(1, {"loss": 1.0})
        assert rows(tmp_path / "curve.csv") == [{"step": "1", "loss": "1.0"}]


def test_a_resumed_run_drops_the_rows_of_the_steps_it_makes_anew(tmp_path: Path):
    path = tmp_path / "curve.csv"
    write(path, range(1, 7))
    write(path, range(4, 9), n_steps_done=3)
    assert [int(row["step"]) for row in rows(path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_new_run_begins_a_new_curve(tmp_path: Path):
    path = tmp_path / "curve.csv"
    write(path, range(1, 7))
    write(path, range(1, 2))
    assert len(rows(path)) == 1


def test_columns_that_the_first_row_did_not_have_are_left_out(tmp_path: Path):
    with StepTable(tmp_path / "curve.csv") as curve:
        curve.write(1, {"loss": 1.0})
        curve.write(2, {"loss": 0.5, "later": 9})
        curve.write(3, {})
    assert rows(tmp_path / "curve.csv")[1:] == [{"step": "2", "loss": "0.5"}, {"step": "3", "loss": ""}]


def test_without_a_path_nothing_is_written(tmp_path: Path):
    write(None, range(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_without_an_earlier_curve_begins_one(tmp_path: Path):
    write(tmp_path / "curve.csv", range(5, 6), n_steps_done=4)
    assert [row["step"] for row in rows(tmp_path / "curve.csv")] == ["5"]


def test_a_new_run_that_writes_no_row_leaves_none_of_another(tmp_path: Path):
    path = tmp_path / "curve.csv"
    write(path, range(1, 4))
    write(path, range(0))
    assert not path.exists()


def test_a_resumed_run_that_writes_no_row_leaves_those_of_before(tmp_path: Path):
    path = tmp_path / "curve.csv"
    write(path, range(1, 4))
    write(path, range(0), n_steps_done=3)
    assert len(rows(path)) == 3
