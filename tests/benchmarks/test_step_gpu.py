from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import step_gpu
import torch
from step_contenders import OURS, REFERENCE, Shape
from step_gpu import gpu_rows, host_waits

TINY = Shape(batch=32, width=8, d_sae=64, k=2, autocast=True)


def test_rows_are_measured_beside_a_product_and_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_gpu, "COPY_BYTES", 2**16)
    rows = gpu_rows(TINY, [REFERENCE, OURS], n_rounds=3)
    assert [row["name"] for row in rows] == [REFERENCE, OURS]
    assert rows[0]["speedup"] == 1
    assert all(row["seconds_median"] > 0 and row["matmul_floor"] > 0 and row["host_waits"] == 0 for row in rows)
    assert rows[0]["shape"].endswith("k 2, autocast")
    assert rows[0]["memory_floor"] > 0


def test_waits_are_counted_inside_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wait before the steps, two in the first, one after them."""

    def event(name: str, start: int, end: int) -> Any:
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end))

    wait = "cudaStreamSynchronize"
    events = [event("training step", 10, 20), event("training step", 30, 40), event("aten::mm", 12, 13)]
    events += [event(wait, start, start + 1) for start in (5, 11, 19, 50)]

    class Trace:
        def __enter__(self) -> Trace:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def events(self) -> list[Any]:
            return events

    monkeypatch.setattr(step_gpu, "profile", lambda **options: Trace())
    contender: Any = SimpleNamespace(step=lambda x: None)
    assert host_waits(contender, [torch.zeros(1)]) == 2 / step_gpu.N_TRACED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        step_gpu.measure(argparse.Namespace(quick=True, json=None))
    assert stopped.value.code == 2
    assert "no CUDA device, so nothing was measured" in capsys.readouterr().out
