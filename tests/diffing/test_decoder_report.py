from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sae_lens_crosscoder.diffing import PairGeometry, ReportTable, write_decoder_report


def test_the_report_the_figure_and_the_table_of_all_latents_are_written(tmp_path: Path) -> None:
    W_dec = torch.tensor([[3.0, 0.0, 4.0, 0.0], [1.0, 0.0, 0.01, 0.0], [0.0, 0.01, 0.0, 1.0]])
    geometry = PairGeometry.from_decoder(W_dec, [2, 2], ["base", "chat"])
    files = write_decoder_report(geometry, tmp_path, [ReportTable("Extra <table>", ["a"], [[1]])])
    page = files["report"].read_text()
    assert "Extra &lt;table&gt;" in page
    assert "base-only" in page
    assert files["figure"].read_bytes().startswith(b"\x89PNG")
    with files["latents"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["shared", "base-only", "chat-only"]
    assert float(rows[0]["relative_decoder_norm"]) == pytest.approx(4 / 7)


def test_sources_of_different_width_have_no_cosine_and_the_table_says_so(tmp_path: Path) -> None:
    geometry = PairGeometry.from_decoder(torch.randn(5, 5), [2, 3], ["base", "chat"])
    files = write_decoder_report(geometry, tmp_path)
    with files["latents"].open() as file:
        assert [row["decoder_cosine"] for row in csv.DictReader(file)] == [""] * 5
