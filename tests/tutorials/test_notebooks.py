"""The tutorials as they are committed: every notebook is its script, executed, small and free of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def _cells_of_script(script: Path) -> list[tuple[str, str]]:
    """Kind and text of every cell of a percent script."""
    parts = re.split(r"^# %%(.*)$", script.read_text(), flags=re.MULTILINE)
    cells: list[tuple[str, str]] = []
    for head, text in zip(parts[1::2], parts[2::2], strict=True):
        if "[markdown]" in head:
            cells.append(("markdown", "\n".join(line.removeprefix("#")[1:] for line in text.strip().splitlines())))
        else:
            cells.append(("code", text.strip()))
    return cells


def _notebook(script: Path) -> dict[str, Any]:
    return json.loads(script.with_suffix(".ipynb").read_text())


def _output_text(notebook: dict[str, Any]) -> str:
    return json.dumps([cell.get("outputs", []) for cell in notebook["cells"]])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_cells_of_its_script(script: Path) -> None:
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in _notebook(script)["cells"]]
    assert cells == _cells_of_script(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_to_its_end(script: Path) -> None:
    notebook = _notebook(script)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert code[-1]["outputs"][-1]["text"][-1].startswith("All as the text says.")
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "error" not in kinds


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_folder_of_a_machine(script: Path) -> None:
    assert script.with_suffix(".ipynb").stat().st_size < 300_000
    assert re.findall(r"(?<![\w.])/(?:work|home|root|Users|tmp)/", _output_text(_notebook(script))) == []


def test_all_tutorials_are_listed_in_the_documentation() -> None:
    listed = (FOLDER.parent / "docs" / "tutorials.md").read_text()
    assert [script.stem for script in SCRIPTS if f"`{script.stem}`" not in listed] == []


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jupytext", "nbclient", "ipykernel")),
    reason="the tools are not installed: pip install 'sae-lens-crosscoder[tutorials]'",
)
def test_a_tutorial_that_does_not_exist_is_refused_with_those_that_do() -> None:
    run = subprocess.run(
        [sys.executable, str(FOLDER / "execute.py"), "99"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert run.returncode != 0
    assert "There is no tutorial '99'" in run.stderr
    assert "01_first_crosscoder" in run.stderr
