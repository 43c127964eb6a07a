"""Scores of all pairs, a few rows at a time: bounds from one product in low precision, then the exact few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.training.sparse.pairs import ActivePairs
from sae_lens_crosscoder.training.sparse.products import dot_products

EncoderPrecision = Literal["float32", "bfloat16"]

_ROWS = 256  # of a chunk: enough for the product, few enough for its result to stay in the cache
_TABLE_ROWS = 1024
_ALIGNMENT = 32
_SMALLEST_SQUARED = 2.0**-63  # squares of smaller numbers lose digits


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with their codes p = ReLU(pre-activation) and scores v = p * c."""

    flat: Int[Tensor, " n_pairs"]
    """row * d_sae + latent, rising."""

    acts: Float[Tensor, " n_pairs"]
    """p."""

    scores: Float[Tensor, " n_pairs"]
    """v."""

    def __len__(self) -> int:
        return len(self.flat)

    def where(self, kept: Bool[Tensor, " n_pairs"]) -> ScoredPairs:
        """Some of the pairs."""
        return ScoredPairs(self.flat[kept], self.acts[kept], self.scores[kept])

    def joined(self, other: ScoredPairs) -> ScoredPairs:
        """These pairs, then the other ones."""
        parts = ((self.flat, other.flat), (self.acts, other.acts), (self.scores, other.scores))
        return ScoredPairs(*(torch.cat(part) for part in parts))

    def in_order(self) -> ScoredPairs:
        """The pairs in the order of rows, then latents."""
        flat, order = self.flat.sort()
        return ScoredPairs(flat, self.acts[order], self.scores[order])


class PairEncoder:
    """Finds and scores pairs of a batch without holding the (batch, d_sae) matrix of scores.

    A chunk of rows is multiplied by the weights c_j w_j, both rounded to the precision of the screen, and the largest
    possible error is added: with x' and (cw)' the rounded vectors, the bound
    u_ij = x'_i (cw)'_j + c_j b_j + |x_i - x'_i| |c_j w_j| + |x'_i| |c_j w_j - (cw)'_j| + n 2^-21 (|x_i| |c_j w_j| +
    |c_j b_j|) is at least v_ij (Cauchy-Schwarz; the last term is for n terms that are added in float32). Errors and
    bias are columns of the product. A pair whose score is at least t therefore has u_ij >= t, and only such pairs are
    scored in the weights' own dtype: nothing is lost, whatever the precision of the screen.

    With precision "bfloat16" the products of rounded inputs are taken as they are, without bound and second product.

    Args:
        x: Inputs of the encoder.
        W_enc: Encoder weights; fast if the weights of a latent are contiguous.
        b_enc: Encoder biases.
        norms: c, the decoder norms by which codes are scored.
        precision: "float32" scores in the weights' own dtype.
    """

    def __init__(
        self,
        x: Float[Tensor, "n_rows d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        norms: Float[Tensor, " d_sae"],
        precision: EncoderPrecision = "float32",
    ) -> None:
        self.x, self.weights, self.bias, self.norms = x, W_enc.T.contiguous(), b_enc, norms
        self.is_exact = precision == "float32"
        self.n_rows, self.d_sae = len(x), len(b_enc)
        self._dtype = torch.bfloat16 if multiplies_bfloat16() or not self.is_exact else torch.float32
        self._rounding = torch.finfo(self._dtype).eps / 2
        n_terms = x.shape[1] + 5
        self._n_columns = -(-n_terms // _ALIGNMENT) * _ALIGNMENT
        self._summation_error = self._n_columns * 2.0**-21 if self.is_exact else 0.0

    @property
    def chunks(self) -> Iterator[slice]:
        """Rows that are screened together."""
        return (slice(i, min(i + _ROWS, self.n_rows)) for i in range(0, self.n_rows, _ROWS))

    def screen(self, rows: slice, latents: slice) -> Float[Tensor, "n_chunk n_latents"]:
        """Upper bounds of the scores of a chunk, rounded; the next call writes over them."""
        table = self._table[latents]
        out = self._buffer[: (rows.stop - rows.start) * len(table)].view(-1, len(table))
        return torch.mm(self._inputs[rows], table.T, out=out)

    def candidates(
        self, bounds: Float[Tensor, "n_chunk n_latents"], rows: slice, latents: slice, least: Tensor | float
    ) -> tuple[Int[Tensor, " n_found"], Float[Tensor, " n_found"]]:
        """The pairs of a screened chunk whose score may be positive and at least `least`, and their bounds.

        Args:
            bounds: What `screen` gave.
            rows: The chunk.
            latents: The latents that were screened.
            least: The least score of interest, or one a row, shape (n_chunk, 1).
        """
        least = torch.as_tensor(least, dtype=torch.float32, device=bounds.device) * (1 - 3 * self._rounding)
        least = least.clamp(min=torch.finfo(self._dtype).tiny).to(self._dtype)
        # Positive numbers are in the order of their bits, which compare faster.
        bits = torch.int16 if self._dtype == torch.bfloat16 else torch.int32
        n_latents = bounds.shape[1]
        # A comparison into the numbers' own dtype is several times as fast as one into booleans.
        reached, mask = (memory[: bounds.numel()].view_as(bounds) for memory in self._masks)
        torch.ge(bounds.view(bits), least.view(bits), out=reached.view(bits))
        found = true_positions(mask.copy_(reached.view(bits)))
        row = found // n_latents
        flat = found + (row * (self.d_sae - n_latents) + rows.start * self.d_sae + latents.start)
        return flat, bounds.reshape(-1)[found]

    def score(self, flat: Int[Tensor, " n_pairs"], bounds: Float[Tensor, " n_pairs"]) -> ScoredPairs:
        """Codes and scores of candidates."""
        pairs = ActivePairs(flat, self.n_rows, self.d_sae)
        norms = self.norms[pairs.latents]
        if not self.is_exact:
            scores = bounds.to(norms.dtype)
            return ScoredPairs(flat, scores / norms, scores)
        acts = torch.relu(dot_products(pairs, self.x, self.weights) + self.bias[pairs.latents])
        return ScoredPairs(flat, acts, acts * norms)

    def least_scores(self, bounds: Float[Tensor, "n_chunk 1"], rows: slice) -> Float[Tensor, "n_chunk 1"]:
        """What the scores with these bounds are at least: a bound holds an error twice, the possible and the actual."""
        of_inputs, of_table = self._inputs[rows].float(), self._table.float()
        first, last = self.x.shape[1], self.x.shape[1] + 2
        error = (of_inputs[:, first:last] * of_table[:, first:last].amax(dim=0)).sum(dim=1, keepdim=True)
        return bounds.float() * (1 - 2 * self._rounding) - 2.1 * (
            error + self._summation_error * self._biases.abs().max().float()
        )

    @cached_property
    def _biases(self) -> Float[Tensor, " d_sae"]:
        return (self.norms * self.bias).double()

    @cached_property
    def _inputs(self) -> Float[Tensor, "n_rows n_columns"]:
        inputs = self.x.new_zeros(self.n_rows, self._n_columns, dtype=self._dtype)
        d_in, up = self.x.shape[1], 1 + 2 * self._rounding
        inputs[:, :d_in] = self.x
        lost, kept = _norms(self.x - inputs[:, :d_in]), _norms(inputs[:, :d_in].to(self.x.dtype))
        inputs[:, d_in] = (lost + self._summation_error * (lost + kept)) * up
        inputs[:, d_in + 1] = kept * up
        inputs[:, d_in + 2 : d_in + 5] = 1
        return inputs

    @cached_property
    def _table(self) -> Float[Tensor, "d_sae n_columns"]:
        d_in, up = self.x.shape[1], 1 + 2 * self._rounding
        table = self.x.new_zeros(self.d_sae, self._n_columns, dtype=self._dtype)
        for start in range(0, self.d_sae, _TABLE_ROWS):
            part = slice(start, start + _TABLE_ROWS)
            exact = self.weights[part] * self.norms[part, None]
            table[part, :d_in] = exact
            if self.is_exact:
                table[part, d_in] = _norms(exact) * up
                table[part, d_in + 1] = _norms(exact.sub_(table[part, :d_in])) * up
        rest = self._biases + self._summation_error * self._biases.abs()
        for column in range(d_in + 2, d_in + 5):  # three parts of the bias hold it to 2^-24
            table[:, column] = rest
            rest -= table[:, column].double()
        return table

    @cached_property
    def _buffer(self) -> Float[Tensor, " n"]:
        return self.x.new_empty(min(_ROWS, self.n_rows) * self.d_sae, dtype=self._dtype)

    @cached_property
    def _masks(self) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        return torch.empty_like(self._buffer), torch.empty_like(self._buffer, dtype=torch.bool)


def _norms(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Norms that are not below the rows' own, also where a square is too small for float32."""
    return rows.norm(dim=1) + _SMALLEST_SQUARED * rows.shape[1] ** 0.5


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; if not, such a product is slower than one in float32."""
    cpu: Any = torch.cpu  # torch says so under private names only
    return torch.backends.mkldnn.enabled and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def true_positions(mask: Bool[Tensor, "n_rows n_latents"]) -> Int[Tensor, " n_true"]:
    """Where a mask that is mostly false is true, as positions in the flattened mask."""
    flat = mask.view(-1)
    if len(flat) % 8:
        return flat.nonzero().view(-1)
    # Eight entries at a time are read as one number, which is 0 if none is true.
    numbers = flat.view(torch.int64)
    words = numbers.nonzero().view(-1)
    within = numbers[words].view(torch.bool).nonzero().view(-1)
    return words[within >> 3] * 8 + (within & 7)
