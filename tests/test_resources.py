from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from sae_lens_crosscoder.resources import available_memory, container_memory, free_disk, in_gb


def test_a_container_leaves_its_limit_less_what_is_used(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert container_memory(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("400\n")
    assert container_memory(tmp_path) == 600
    (tmp_path / "memory.max").write_text("100\n")
    (tmp_path / "memory.current").write_text("130\n")
    assert container_memory(tmp_path) == 0


def test_memory_and_disk_are_those_of_the_system(tmp_path: Path) -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.05)


def test_bytes_are_told_in_units_of_a_thousand() -> None:
    assert [in_gb(n) for n in (1_500_000, 999_949_999, 2.5e9)] == ["1.5 MB", "999.9 MB", "2.5 GB"]
