"""Another system's weights as a stock SAE: formulas of folding, worked out in double precision, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import source

from sae_lens_crosscoder import Sources
from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, InputNormaliser, JumpReLU, ReLU, TopK

SOURCES = Sources((source("base", d_in=3), source("chat", d_in=4)))
D_SAE = 5


def weights(**fields: Any) -> CrosscoderWeights:
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(7, D_SAE, generator=generator), torch.randn(D_SAE, 7, generator=generator)
    b_enc, b_dec = torch.randn(D_SAE, generator=generator), torch.randn(7, generator=generator)
    return CrosscoderWeights(W_enc, W_dec, b_enc, b_dec, **{"activation": ReLU(), "sources": SOURCES, **fields})


@pytest.mark.parametrize("inverse_scales", [None, [9.0, 0.7]])
@pytest.mark.parametrize("scales", [[0.1, 3.3], [2.0, 2.0], [1.0, 1.0]])
def test_scales_mean_and_bias_are_folded_in_double_precision_and_rounded_once(
    scales: list[float], inverse_scales: list[float] | None
) -> None:
    mean = torch.randn(7, generator=torch.Generator().manual_seed(1))
    theirs = weights(normaliser=InputNormaliser(scales, mean, inverse_scales), subtracts_b_dec=True)
    before = torch.tensor([scales[0]] * 3 + [scales[1]] * 4, dtype=torch.float64)
    after = 1 / before
    if inverse_scales is not None:
        after = torch.tensor([inverse_scales[0]] * 3 + [inverse_scales[1]] * 4, dtype=torch.float64)
    W_enc, W_dec = theirs.W_enc.double() * before[:, None], theirs.W_dec.double() * after
    b_enc, b_dec = theirs.b_enc.double(), theirs.b_dec.double()
    sae = theirs.to_sae()
    assert torch.equal(sae.W_enc, W_enc.float())
    assert torch.equal(sae.W_dec, W_dec.float())
    assert torch.equal(sae.b_dec, (b_dec * after + mean.double()).float())
    expected = b_enc - b_dec @ theirs.W_enc.double() - mean.double() @ W_enc
    torch.testing.assert_close(sae.b_enc, expected.float(), rtol=1e-6, atol=1e-6)
    assert [s["activation_scale"] for s in sae.cfg.metadata.sources] == scales
    assert sae.cfg.metadata.model_name == SOURCES.model_name


def test_the_sae_is_on_the_device_that_was_asked_for() -> None:
    sae = weights().to_sae("meta")  # which every machine has beside its CPU
    assert {p.device.type for p in sae.parameters()} == {"meta"}
    assert sae.cfg.device == "meta"


@pytest.mark.parametrize("k", [1, D_SAE])
def test_one_latent_or_all_may_be_active(k: int) -> None:
    sae = weights(activation=TopK(k)).to_sae()
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(2))
    assert ((sae.encode(x) != 0).sum(dim=1) <= k).all()
    assert sae.encode(x).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": Sources((source("base", d_in=3), source("chat", d_in=3)))}, "6 wide together, but .* are for 7"),
        ({"activation": TopK(0)}, "k=0 is not between 1 and the 5 latents"),
        ({"activation": TopK(D_SAE + 1)}, "k=6 is not between 1 and the 5 latents"),
        ({"activation": JumpReLU(torch.tensor([0.0, 0.1, -1e-3, 0.2, 0.3]))}, "thresholds are negative or NaN"),
        ({"activation": JumpReLU(torch.tensor([0.0, 0.1, torch.nan, 0.2, 0.3]))}, "thresholds are negative or NaN"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        weights(**fields)
