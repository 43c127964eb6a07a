from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def named_tests(page: str) -> list[tuple[str, str]]:
    return _TEST.findall((ROOT / "docs" / page).read_text())


def rows(page: str, beginning: str) -> list[str]:
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [line for line in lines if line.startswith(beginning)]


@pytest.mark.parametrize("page", ["security.md", "reliability.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    assert len(named_tests(page)) >= 10
    for file, name in named_tests(page):
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{page} names {file}::{name}"


def test_every_threat_and_every_fault_names_a_test() -> None:
    threats, faults = rows("security.md", "| **"), rows("reliability.md", "| **")
    assert len(threats) >= 14
    assert len(faults) >= 8
    assert [row for row in (*threats, *faults) if not _TEST.search(row)] == []
