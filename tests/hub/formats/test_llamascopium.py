"""Llamascopium: codes of every head, which are one SAE's only where they agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_checkpoints import Llamascopium, load, sources_of

from sae_lens_crosscoder.errors import CheckpointError

ONE_SAE = {
    "relu": Llamascopium(),
    "relu_of_three_heads": Llamascopium(heads=3),
    "relu_for_inference": Llamascopium(norm_activation="inference"),
    "jumprelu_of_one_head": Llamascopium("jumprelu", heads=1),
    "jumprelu_of_equal_norms": Llamascopium("jumprelu", equal_norms=True),
    "topk_of_equal_norms": Llamascopium("topk", equal_norms=True),
}


@pytest.mark.parametrize("variant", ONE_SAE)
def test_llamascopiums_crosscoders_load_where_all_heads_have_one_code(variant: str, tmp_path: Path):
    made = ONE_SAE[variant].write(tmp_path)
    sae = load(made)
    made.same_numbers(sae)
    assert sources_of(sae)[0].hook_name == "blocks.0.hook_resid_post"


PER_HEAD = {
    "jumprelu": (Llamascopium("jumprelu"), "fire in one head and not in another"),
    "topk": (Llamascopium("topk"), "fire in one head and not in another"),
    "batchtopk": (Llamascopium("batchtopk"), "all tokens of a batch"),
    "token-wise": (Llamascopium(norm_activation="token-wise"), "not linear"),
    "an SAE": (Llamascopium(config={"sae_type": "sae"}), "only crosscoders"),
    "an unknown function": (Llamascopium("lorsa"), "lorsa"),
    "a head too few": (Llamascopium(config={"hook_points": ["blocks.0.hook_resid_post"]}), "one name a head"),
}


@pytest.mark.parametrize("variant", PER_HEAD)
def test_llamascopiums_crosscoders_are_refused_where_no_sae_can_stand_for_them(variant: str, tmp_path: Path):
    made, message = PER_HEAD[variant]
    with pytest.raises(CheckpointError, match=message):
        load(made.write(tmp_path))


def test_a_distributed_checkpoint_is_refused(tmp_path: Path):
    made = Llamascopium().write(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    (tmp_path / "sae_weights.dcp").mkdir()
    with pytest.raises(CheckpointError, match="Distributed"):
        load(made)
