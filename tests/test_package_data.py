"""What is installed: every file of the package that is not code, and nothing beside the package."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import sae_lens_crosscoder

PACKAGE = Path(sae_lens_crosscoder.__file__).parent
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    """The files that hatchling puts into a wheel."""
    builders = pytest.importorskip(
        "hatchling.builders.wheel", reason="hatchling is not installed: pip install hatchling"
    )
    builder = builders.WheelBuilder(str(ROOT))
    return {file.distribution_path for file in builder.recurse_included_files()}


def test_a_wheel_holds_every_file_that_the_package_reads(wheel: set[str]) -> None:
    kinds = {path.suffix for path in PACKAGE.rglob("*") if path.is_file()} - {".py", ".pyc"}
    assert {".html", ".js", ".css", ".typed"} <= kinds
    there = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert there - wheel == set()


def test_a_wheel_holds_nothing_but_the_package(wheel: set[str]) -> None:
    assert {name.partition("/")[0] for name in wheel} == {"sae_lens_crosscoder"}


def test_the_version_is_the_same_everywhere() -> None:
    version = sae_lens_crosscoder.__version__
    assert re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1] == version  # type: ignore[index]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
    try:
        assert metadata.version("sae-lens-crosscoder") == version
    except metadata.PackageNotFoundError:
        pytest.skip("the package is read from its folder, not installed")


def test_licences_of_others_work_are_in_the_distribution() -> None:
    vendored = list(PACKAGE.rglob("LICENSE"))
    assert [path.parent.name for path in vendored] == ["d3-selection"]
    listed = re.search(r"^license-files = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert listed is not None
    patterns = re.findall(r'"([^"]+)"', listed[1])
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert found == {ROOT / "LICENSE", *vendored}
