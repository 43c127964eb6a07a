"""Diff-SAEs of science-of-finetuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_checkpoints import difference_sae as difference_checkpoint
from foreign_checkpoints import load, sources_of

from sae_lens_crosscoder.errors import CheckpointError


def test_a_diff_sae_reads_the_second_source_minus_the_first(tmp_path: Path):
    sources = sources_of(load(difference_checkpoint(tmp_path)))
    assert sources.combine == "difference"
    assert sources.labels == ["base", "chat"]
    assert sources[0].activation_scale == sources[1].activation_scale != 1


def test_a_diff_sae_of_base_minus_fine_tuned_has_its_sources_the_other_way_round(tmp_path: Path):
    assert sources_of(load(difference_checkpoint(tmp_path, "SAEdiff_bft-1"))).labels == ["chat", "base"]


def test_other_saes_of_the_library_are_refused(tmp_path: Path):
    made = difference_checkpoint(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("BatchTopKSAE", "MatryoshkaSAE"))
    with pytest.raises(CheckpointError, match="MatryoshkaSAE"):
        load(made)
