"""crosscode and its ancestor, stage-wise TinyStories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from foreign_checkpoints import Crosscode, load, sources_of
from foreign_checkpoints import stagewise as stagewise_checkpoint

from sae_lens_crosscoder.errors import CheckpointError, ConfigError
from sae_lens_crosscoder.hub import load_crosscoder


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(
    "classname", ["ReLUActivation", "TopkActivation", "AnthropicSTEJumpReLUActivation", "BatchTopkActivation"]
)
def test_crosscodes_activations_load_folded_and_unfolded(classname: str, folded: bool, tmp_path: Path):
    made = Crosscode(classname, folded, prefix="_orig_mod." if folded else "").write(tmp_path)
    sae = load(made)
    made.same_numbers(sae)
    sources = sources_of(sae)
    assert sources.labels == [f"model_{m}.hook_{p}" for m in range(2) for p in range(3)]
    assert sources.activation_scales == pytest.approx(torch.linspace(0.2, 0.9, 6).tolist())


@pytest.mark.parametrize(
    "made", [Crosscode(biases=False), Crosscode(dtype=torch.bfloat16)], ids=["no_biases", "bfloat16"]
)
def test_crosscodes_crosscoders_load_without_biases_and_in_half_precision(made: Crosscode, tmp_path: Path):
    written = made.write(tmp_path)
    written.same_numbers(load(written))


def test_unfolded_weights_need_their_scales_and_folded_ones_refuse_them(tmp_path: Path):
    with pytest.raises(ConfigError, match="not folded"):
        load_crosscoder(Crosscode(folded=False).write(tmp_path / "unfolded").folder)
    with pytest.raises(ConfigError, match="leave out scales"):
        load_crosscoder(Crosscode().write(tmp_path / "folded").folder, scales=[1.0] * 6)


def test_a_batchtopk_without_threshold_is_refused_with_the_reason(tmp_path: Path):
    made = Crosscode("BatchTopkActivation").write(tmp_path)
    with pytest.raises(CheckpointError, match=r"codes depend on its neighbours.*threshold="):
        load_crosscoder(made.folder)
    with pytest.raises(ConfigError, match="threshold=-1"):
        load_crosscoder(made.folder, threshold=-1.0)


def test_an_activation_that_saelens_lacks_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="GroupMaxActivation"):
        load(Crosscode("GroupMaxActivation").write(tmp_path))


def test_weights_that_say_they_are_folded_without_factors_are_refused(tmp_path: Path):
    made = Crosscode().write(tmp_path)
    tensors = torch.load(tmp_path / "model.pt", weights_only=True)
    tensors["folded_scaling_factors_out_Xo"][0, 0] = 0
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="one positive factor a source"):
        load(made)


@pytest.mark.parametrize("names", ["X", "ML"])
def test_stage_wise_crosscoders_load_under_both_names_of_their_tensors(names: str, tmp_path: Path):
    made = stagewise_checkpoint(tmp_path, names)
    sae = load(made)
    made.same_numbers(sae)
    assert sources_of(sae).labels == [f"hook_{i}" for i in range(4)]


def test_position_means_beside_stage_wise_weights_give_a_warning(tmp_path: Path):
    made = stagewise_checkpoint(tmp_path)
    torch.save({}, tmp_path / "dataloader_means.pt")
    with pytest.warns(UserWarning, match="less the mean of their position"):
        load(made)


def test_a_yaml_file_that_makes_objects_is_refused(tmp_path: Path):
    made = Crosscode().write(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "model_cfg.yaml").write_text(f"activation_fn: !!python/object/apply:os.mkdir ['{ran}']\n")
    with pytest.raises(CheckpointError, match="cannot be read as YAML"):
        load(made, format="crosscode")
    assert not ran.exists()
    assert yaml.unsafe_load((tmp_path / "model_cfg.yaml").read_text()) == {"activation_fn": None}
    assert ran.exists()
