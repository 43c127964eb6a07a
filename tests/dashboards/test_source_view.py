"""The view that sae-dashboard gets in place of the crosscoder."""

from __future__ import annotations

import pytest
import torch
from dashboard_subjects import subject

from sae_lens_crosscoder.dashboards.source_view import SourceView, narrowed

LATENTS = [7, 2, 19]


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_a_view_encodes_its_latents_as_the_crosscoder_does(architecture: str) -> None:
    sae = subject(architecture).sae
    x = torch.randn(5, 7, 32)
    view = SourceView(sae, LATENTS, sae.W_dec[LATENTS, :16])
    expected = sae.encode(x)[..., LATENTS]
    assert (expected > 0).any()
    torch.testing.assert_close(view.encode(x), expected)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_a_narrowed_crosscoder_shares_no_weight_with_the_whole_one(architecture: str) -> None:
    sae = subject(architecture).sae
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    narrow = narrowed(sae, LATENTS)
    assert narrow.W_dec.shape == (3, 32)
    with torch.no_grad():
        for name in ("W_enc", "W_dec"):
            getattr(narrow, name).zero_()
        narrow.W_dec = torch.nn.Parameter(torch.zeros(1, 1))
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_folding_decoder_norms_does_nothing() -> None:
    sae = subject().sae
    view = SourceView(sae, LATENTS, sae.W_dec[LATENTS, :16])
    before = view.W_dec.clone()
    view.fold_W_dec_norm()
    assert torch.equal(view.W_dec, before)


def test_where_nothing_was_read_no_latent_is_active() -> None:
    sae = subject().sae
    x = torch.randn(4, 32)
    x[2] = 0
    assert SourceView(sae, [5], sae.W_dec[[5], :16]).encode(x)[2].item() == 2
    assert SourceView(sae, [5], sae.W_dec[[5], :16], skips_zeros=True).encode(x).flatten().tolist() == [2, 2, 0, 2]
