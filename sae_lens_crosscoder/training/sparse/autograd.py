"""Encoder and decoder on active pairs, whose gradients are computed on active pairs too."""

# torch types the context and the gradients of an autograd function as Any.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.training.sparse.gradient_memory import GradientMemory
from sae_lens_crosscoder.training.sparse.pairs import ActivePairs
from sae_lens_crosscoder.training.sparse.products import dot_products, sums_by_latent, sums_by_row


def encode_pairs(
    pairs: ActivePairs,
    values: Float[Tensor, " n_pairs"],
    x: Float[Tensor, "n_rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    memory: GradientMemory,
) -> Float[Tensor, " n_pairs"]:
    """The pre-activations x_i W_enc_j + b_enc_j of the pairs, with gradients.

    Args:
        pairs: Rows and latents.
        values: The pre-activations, already known from finding the pairs.
        x: Inputs of the encoder.
        W_enc: Encoder weights; fast if the weights of a latent are contiguous.
        b_enc: Encoder biases.
        memory: Where the gradient of W_enc may be written.
    """
    return _EncodePairs.apply(pairs, values, x, W_enc, b_enc, memory)  # pyright: ignore[reportReturnType]


def decode_pairs(
    pairs: ActivePairs, values: Float[Tensor, " n_pairs"], W_dec: Float[Tensor, "d_sae d_in"], memory: GradientMemory
) -> Float[Tensor, "n_rows d_in"]:
    """Codes times W_dec, without bias, with gradients; that of W_dec is written into the memory, if it has some."""
    return _DecodePairs.apply(pairs, values, W_dec, memory)  # pyright: ignore[reportReturnType]


class _EncodePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: ActivePairs, values: Tensor, x: Tensor, W_enc: Tensor, *others: Any) -> Tensor:
        ctx.pairs, ctx.memory = pairs, others[1]
        ctx.save_for_backward(x, W_enc)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc = ctx.saved_tensors
        pairs: ActivePairs = ctx.pairs
        of_x = sums_by_row(pairs, gradient, W_enc.T.contiguous()) if ctx.needs_input_grad[2] else None
        spent: Tensor | None = ctx.memory.take("W_enc", W_enc)
        of_weights = sums_by_latent(pairs, gradient, x, None if spent is None else spent.T).T
        of_bias = gradient.new_zeros(pairs.n_latents).index_add_(0, pairs.latents, gradient)
        return None, None, of_x, of_weights, of_bias, None


class _DecodePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: ActivePairs, values: Tensor, W_dec: Tensor, memory: GradientMemory) -> Tensor:
        ctx.pairs, ctx.memory = pairs, memory
        ctx.save_for_backward(values, W_dec)
        return sums_by_row(pairs, values, W_dec)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        gradient = gradient.contiguous()
        return (
            None,
            dot_products(ctx.pairs, gradient, W_dec.contiguous()),
            sums_by_latent(ctx.pairs, values, gradient, ctx.memory.take("W_dec", W_dec)),
            None,
        )
