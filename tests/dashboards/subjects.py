"""Tiny crosscoders with models and text for the tests of dashboards, with every latent that sae-dashboard breaks on."""

from __future__ import annotations

from typing import Any

import torch
from helpers import CONTEXT, D_VOCAB, source, tiny_model, tiny_tokenizer
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from sae_lens_crosscoder import JointModel, Sources
from sae_lens_crosscoder.dashboards import DashboardSubject

D_SAE = 24
DEAD, SECOND_ONLY, CONSTANT, TINY = 3, 4, 5, 6
"""A latent that never fires, one with no decoder row in the first source, one that is the same everywhere, and one with
a decoder row so short that its logits are far below 0.01."""

_ARCHITECTURES: dict[str, Any] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 6}),
}


def subject(
    architecture: str = "standard",
    widths: tuple[int, ...] = (16, 16),
    n_sequences: int = 24,
    context: int = CONTEXT,
    tokenizer: Any = None,
    **combine: Any,
) -> DashboardSubject:
    labels = ["base", "chat", "third"][: len(widths)]
    sources = Sources(tuple(source(label, d_in=d) for label, d in zip(labels, widths, strict=True)), **combine)
    tokenizer = tokenizer or tiny_tokenizer()
    models = [tiny_model(i, d_model=d, tokenizer=tokenizer) for i, d in enumerate(widths)]
    joint = JointModel(sources, models)
    return DashboardSubject(joint, crosscoder(architecture, sources), tokens(n_sequences, context), (0,), "made up")


def tokens(n_sequences: int = 24, context: int = CONTEXT) -> Tensor:
    drawn = torch.randint(1, D_VOCAB, (n_sequences, context), generator=torch.Generator().manual_seed(5))
    drawn[:, 0] = 0
    return drawn


@torch.no_grad()
def crosscoder(architecture: str, sources: Sources, seed: int = 1) -> Any:
    made, config, fields = _ARCHITECTURES[architecture]
    sae = made(config(d_in=sources.d_in, d_sae=D_SAE, apply_b_dec_to_input=False, **fields))
    generator = torch.Generator().manual_seed(seed)
    sae.W_enc.normal_(generator=generator)
    sae.W_dec.normal_(std=0.3, generator=generator)
    sae.b_dec.normal_(std=0.1, generator=generator)
    sae.b_enc.fill_(-1.0)
    sae.b_enc[DEAD] = -1e6
    sae.W_dec[SECOND_ONLY, : sources.widths[0]] = 0
    sae.W_enc[:, CONSTANT] = 0
    sae.b_enc[CONSTANT] = 2.0
    sae.W_dec[TINY] *= 1e-5
    if architecture == "jumprelu":
        sae.threshold.fill_(0.5)
    for name, value in sources.to_metadata().items():
        sae.cfg.metadata[name] = value
    return sae
