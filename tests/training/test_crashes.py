from __future__ import annotations

from pathlib import Path

from crashes import crash_and_resume


def test_a_run_that_is_killed_at_any_moment_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    outcomes = crash_and_resume(6, seed=1, folder=tmp_path)
    assert [outcome.problems for outcome in outcomes] == [[]] * len(outcomes)
    assert sum(outcome.killed for outcome in outcomes) == 6
    assert any(outcome.resumed for outcome in outcomes)
