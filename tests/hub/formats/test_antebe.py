"""Antebe's crosscoders: the fine-tuned model first, masks as their evaluation has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_checkpoints import D, load, sources_of
from foreign_checkpoints import antebe as antebe_checkpoint
from sae_lens import TopKSAE

from sae_lens_crosscoder.errors import CheckpointError


def test_antebes_first_source_is_the_fine_tuned_model(tmp_path: Path):
    sae = load(antebe_checkpoint(tmp_path, masked=False))
    assert isinstance(sae, TopKSAE)
    assert sources_of(sae).labels == ["finetuned", "base"]


def test_antebes_decoder_mask_is_applied_and_its_encoder_mask_is_not_with_a_warning(tmp_path: Path):
    made = antebe_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="4 latents read a source that their encoder mask forbids"):
        sae = load(made)
    made.same_numbers(sae)
    assert not sae.W_dec[:2, D:].any()
    assert not sae.W_dec[2:4, :D].any()


def test_an_encoder_mask_that_the_weights_keep_needs_no_warning(tmp_path: Path):
    made = antebe_checkpoint(tmp_path)
    tensors = torch.load(tmp_path / "model.pt", weights_only=True)
    tensors["W_enc"] *= tensors["enc_mask"][:, None]
    torch.save(tensors, tmp_path / "model.pt")
    sae = load(made)
    assert not sae.W_enc[D:, :2].any()
    tensors["dec_mask"] *= 0.5
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="dec_mask must hold zeros and ones"):
        load(made)
