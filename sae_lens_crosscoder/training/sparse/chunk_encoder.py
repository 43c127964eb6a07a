"""Scores of all pairs, some rows at a time, on devices that must not be waited for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.training.sparse.encoder import EncoderPrecision, ScoredPairs

_CHUNK = 2**25  # scores: enough to fill a GPU, 128 MB in float32


class ChunkEncoder:
    """Scores a batch without holding the (batch, d_sae) matrix of scores; nothing is read back from the device.

    Where `PairEncoder` bounds scores and scores the few candidates anew, this one takes one product a chunk in its
    final precision: how many candidates there are would have to be read back.

    Args:
        x: Inputs of the encoder.
        W_enc: Encoder weights; fast if the weights of a latent are contiguous.
        b_enc: Encoder biases.
        norms: c, the decoder norms by which codes are scored.
        precision: "float32" multiplies in the weights' own dtype (in TF32 if `torch.set_float32_matmul_precision` says
            so); "bfloat16" multiplies rounded inputs and adds products up in float32.
    """

    def __init__(
        self,
        x: Float[Tensor, "n_rows d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        norms: Float[Tensor, " d_sae"],
        precision: EncoderPrecision = "float32",
    ) -> None:
        self._x, self._W_enc, self._bias, self._norms = x, W_enc, b_enc, norms
        self._is_rounded = precision == "bfloat16"
        self.n_rows, self.d_sae = len(x), len(b_enc)
        self.device, self.dtype = b_enc.device, b_enc.dtype

    @property
    def chunks(self) -> Iterator[slice]:
        """Rows that are scored together."""
        n = max(1, _CHUNK // self.d_sae)
        return (slice(i, min(i + n, self.n_rows)) for i in range(0, self.n_rows, n))

    def scores(self, rows: slice, latents: slice) -> Float[Tensor, "n_chunk n_latents"]:
        """(x_i W_enc_j + b_j) c_j, whose positive part is the score v_ij."""
        W_enc, bias = self._weights[:, latents], self._bias[latents]
        if self._is_rounded:
            pre_acts = _product(self._inputs[rows], W_enc).to(bias.dtype).add_(bias)
        else:
            pre_acts = torch.addmm(bias, self._inputs[rows], W_enc)
        return pre_acts.mul_(self._norms[latents])

    def scored(self, flat: Int[Tensor, " n_pairs"], scores: Float[Tensor, " n_pairs"]) -> ScoredPairs:
        """Pairs with the positive part of their scores and codes; 0 where a score is not positive."""
        scores = scores.relu()
        norms = self._norms[flat % self.d_sae]
        return ScoredPairs(flat, torch.where(scores > 0, scores / norms, scores), scores)

    @cached_property
    def _inputs(self) -> Tensor:
        return self._x.bfloat16() if self._is_rounded else self._x

    @cached_property
    def _weights(self) -> Tensor:
        return self._W_enc.bfloat16() if self._is_rounded else self._W_enc


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """The product of bfloat16 matrices in float32; rounded to bfloat16 at its end where torch cannot leave that out."""
    if x.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.ops.aten.mm.dtype(x, weights, torch.float32)
    return x @ weights
