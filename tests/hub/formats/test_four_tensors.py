"""ReLU crosscoders of Kissane et al. and their descendants: scales have to be known, numbers are theirs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import kissane as kissane_checkpoint
from foreign_checkpoints import load, sources_of
from foreign_checkpoints import nanda as nanda_checkpoint
from foreign_checkpoints import openinterp as openinterp_checkpoint
from foreign_checkpoints import through_time as through_time_checkpoint

from sae_lens_crosscoder.errors import CheckpointError, ConfigError
from sae_lens_crosscoder.hub import load_crosscoder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3])
def test_kissanes_crosscoders_load_in_every_dtype_and_for_any_number_of_models(
    dtype: torch.dtype, n: int, tmp_path: Path
):
    made = kissane_checkpoint(tmp_path, n, dtype)
    made.same_numbers(load(made))


def test_kissanes_scales_are_kept_with_the_sources(tmp_path: Path):
    sources = sources_of(load(kissane_checkpoint(tmp_path)))
    assert sources.labels == ["base", "chat"]
    assert sources.activation_scales == [0.5, 1.5]
    assert sources[0].model_name == "gemma-2-2b"
    assert sources[1].hook_name == "blocks.14.hook"


@pytest.mark.parametrize("scales", [None, [0.5], [0.5, 0.5, 0.5], [0.5, 0.0], [0.5, math.nan], [0.5, -1.0]])
def test_kissanes_crosscoder_without_its_two_scales_is_refused(scales: list[float] | None, tmp_path: Path):
    made = kissane_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="scales"):
        load_crosscoder(made.folder, scales=scales)


def test_a_training_checkpoint_is_chosen_by_its_number(tmp_path: Path):
    made = kissane_checkpoint(tmp_path, numbered=True)
    torch.save({"W_enc": torch.zeros(1)}, made.folder / "1.pt")
    (made.folder / "1_cfg.json").write_text('{"hook_point": "x"}')
    made.same_numbers(load_crosscoder(tmp_path, "version_0/0", **made.options))
    with pytest.raises(CheckpointError, match=r"2 pairs.*0, 1 as the id"):
        load_crosscoder(tmp_path, "version_0", **made.options)


def test_nandas_published_weights_are_taken_as_folded_and_a_warning_says_so(tmp_path: Path):
    made = nanda_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="does not say whether activation scales are folded"):
        sae = load_crosscoder(made.folder)
    assert sources_of(sae).labels == ["layer_0", "layer_1", "layer_2"]
    assert [source.hook_name for source in sources_of(sae)] == [f"blocks.{i}.hook_resid_post" for i in range(3)]


def test_nandas_training_checkpoints_need_their_scales(tmp_path: Path):
    made = nanda_checkpoint(tmp_path)
    for suffix in (".pt", "_cfg.json"):
        (tmp_path / f"lambda_2{suffix}").rename(tmp_path / f"3{suffix}")
    with pytest.raises(ConfigError, match="training checkpoint"):
        load_crosscoder(made.folder)
    sae = load_crosscoder(made.folder, scales=[1.0, 2.0, 4.0])
    assert sources_of(sae).activation_scales == [1.0, 2.0, 4.0]


def test_crosscoders_through_time_are_taken_as_unscaled_with_a_warning_unless_scales_are_given(tmp_path: Path):
    made = through_time_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="does not say whether activation scales were used"):
        sae = load_crosscoder(made.folder)
    made.same_numbers(sae)
    assert sources_of(load_crosscoder(made.folder, scales=[1.0, 2.0, 4.0, 8.0])).activation_scales == [1, 2, 4, 8]


def test_openinterps_own_scales_are_used_and_others_refused(tmp_path: Path):
    made = openinterp_checkpoint(tmp_path)
    sources = sources_of(load(made))
    assert sources.activation_scales == [0.6, 0.3]
    assert [s.model_name for s in sources] == ["google/gemma-2-2b", "google/gemma-2-2b-it"]
    assert sources[0].hook_name == "blocks.13.hook_resid_post"
    with pytest.raises(ConfigError, match="leave out scales"):
        load(made, scales=[1.0, 1.0])
    config = json.loads((tmp_path / "cfg.json").read_text())
    for change, error in (
        ({"norm_scale_A": None, "norm_scale_B": None}, ConfigError),
        ({"norm_scale_A": -1}, CheckpointError),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match="scale"):
            load(made)
