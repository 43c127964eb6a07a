from __future__ import annotations

import pytest
import torch

from sae_lens_crosscoder._saelens import TrainStepInput
from sae_lens_crosscoder.training import GatedTrainingCrosscoder, GatedTrainingCrosscoderConfig


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 50.0])
def test_the_decoder_follows_the_reconstruction_alone_whatever_the_penalty(coefficient: float) -> None:
    cfg = GatedTrainingCrosscoderConfig(d_in=16, d_sae=20, source_widths=[8, 8])
    sae, x = GatedTrainingCrosscoder(cfg), torch.randn(40, 16)
    sae.training_forward_pass(TrainStepInput(x, {"l1": coefficient}, None, 0, False)).loss.backward()
    assert sae.W_dec.grad is not None
    codes = sae.encode(x).detach()
    error = codes @ sae.W_dec.detach() + sae.b_dec.detach() - x
    torch.testing.assert_close(sae.W_dec.grad, 2 * codes.T @ error / len(x))
