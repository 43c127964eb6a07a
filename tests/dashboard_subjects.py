"""Tiny crosscoders with models and text for the tests of dashboards, with every latent that sae-dashboard breaks on."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers import CONTEXT, D_VOCAB, SENTENCES, fresh_tokenizer, source, tiny_model
from other_tokenizers import other_bpe
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from torch import Tensor

from sae_lens_crosscoder import JointModel, Sources
from sae_lens_crosscoder.dashboards import DashboardSubject

needs_sae_dashboard = pytest.mark.skipif(find_spec("sae_dashboard") is None, reason="sae-dashboard is not installed")

D_SAE = 24
DEAD, SECOND_ONLY, CONSTANT, TINY = 3, 4, 5, 6
"""A latent that never fires, one with no decoder row in the first source, one that is the same everywhere, and one with
a decoder row so short that its logits are far below 0.01."""

_ARCHITECTURES: dict[str, Any] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 6}),
}


def subject(
    architecture: str = "standard",
    widths: tuple[int, ...] = (16, 16),
    n_sequences: int = 24,
    context: int = CONTEXT,
    tokenizer: Any = None,
    scales: tuple[float, ...] | None = None,
    **combine: Any,
) -> DashboardSubject:
    labels = ["base", "chat", "third"][: len(widths)]
    sources = Sources(tuple(source(label, d_in=d) for label, d in zip(labels, widths, strict=True)), **combine)
    sources = sources if scales is None else sources.with_activation_scales(scales)
    tokenizer = tokenizer or fresh_tokenizer()
    models = [tiny_model(i, d_model=d, tokenizer=tokenizer) for i, d in enumerate(widths)]
    text = token_rows(n_sequences, context)
    return DashboardSubject(JointModel(sources, models), crosscoder(architecture, sources), text, (0,), "made up")


def aligned_subject() -> DashboardSubject:
    """Two models with tokenizers of their own."""
    sources = Sources((source("base"), source("chat")), token_alignment="character_offsets")
    models = [tiny_model(0, tokenizer=fresh_tokenizer()), tiny_model(1, tokenizer=other_bpe())]
    joint = JointModel(sources, models)
    texts = [f"{sentence} {i}" for i in range(6) for sentence in (text[: 20 + i] for text in SENTENCES)]
    return DashboardSubject(joint, crosscoder("standard", sources), joint.to_tokens(texts))


def token_rows(n_sequences: int = 24, context: int = CONTEXT) -> Tensor:
    drawn = torch.randint(1, D_VOCAB, (n_sequences, context), generator=torch.Generator().manual_seed(5))
    drawn[:, 0] = 0
    drawn[1, 4] = 0  # an excluded token inside a sequence
    return drawn


@torch.no_grad()
def crosscoder(architecture: str, sources: Sources, seed: int = 1) -> Any:
    made, config, fields = _ARCHITECTURES[architecture]
    sae = made(config(d_in=sources.d_in, d_sae=D_SAE, apply_b_dec_to_input=False, **fields))
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.normal_(std=0.3, generator=generator)
    sae.W_enc.normal_(generator=generator)
    bias = sae.b_gate if architecture == "gated" else sae.b_enc
    bias.fill_(-1.0)
    bias[DEAD] = -1e6
    sae.W_dec[SECOND_ONLY, : sources.widths[0]] = 0
    sae.W_enc[:, CONSTANT] = 0
    bias[CONSTANT] = 2.0
    sae.W_dec[TINY] *= 1e-5
    if architecture == "jumprelu":
        sae.threshold.fill_(0.5)
    for name, value in sources.to_metadata().items():
        sae.cfg.metadata[name] = value
    return sae


def latent_activations(made: DashboardSubject) -> Tensor:
    """Activations of all latents at all tokens, (sequence, position, latent); 0 where nothing counts."""
    with torch.no_grad():
        codes = made.sae.encode(made.joint(made.tokens))
    return codes * made.is_counted[..., None]
