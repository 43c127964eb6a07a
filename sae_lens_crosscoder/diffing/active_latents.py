"""Latent activations without their zeros: of 16,384 latents a token has some hundred that are active."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.errors import DataError


@dataclass(frozen=True)
class ActiveLatents:
    """The pairs of token and latent whose activation is not zero, in the order of tokens and, within them, latents.

    `ActiveLatents.from_dense` finds them.
    """

    rows: Int[Tensor, " n_active"]
    """Which token of the batch."""

    latents: Int[Tensor, " n_active"]
    """Which latent."""

    values: Float[Tensor, " n_active"]
    """Its activation, above zero."""

    n_rows: int
    """Tokens of the batch."""

    d_sae: int
    """Latents of the dictionary."""

    @classmethod
    def from_dense(cls, feature_acts: Float[Tensor, "batch d_sae"]) -> ActiveLatents:
        """The active pairs of what an SAE's `encode` returns. Half precision becomes float32.

        Raises:
            DataError: Activations that are negative, infinite or not a number.
        """
        n_rows, d_sae = feature_acts.shape
        # Flat indices: `nonzero` of a matrix writes two columns and takes twice as long.
        flat = feature_acts.reshape(-1)
        places = flat.nonzero().squeeze(1)
        values = flat[places].to(torch.promote_types(flat.dtype, torch.float32))
        # One comparison for all three: a NaN is not above zero.
        if not bool(((values > 0) & (values < torch.inf)).all()):
            raise DataError(
                "The SAE gives latent activations that are negative, infinite or not a number, and no sum over them "
                "would mean anything. Look for such numbers in the activations that go in and in the SAE's weights."
            )
        return cls(places // d_sae, places % d_sae, values, n_rows, d_sae)

    @cached_property
    def row_offsets(self) -> Int[Tensor, " n_offsets"]:
        """Where the pairs of each token begin, and at last where they end, `(n_rows + 1,)`."""
        return _offsets(self.rows, self.n_rows)

    @cached_property
    def latent_offsets(self) -> Int[Tensor, " n_offsets"]:
        """Where the pairs of each latent begin in `order_by_latent`, and at last where they end, `(d_sae + 1,)`."""
        return _offsets(self.latents, self.d_sae)

    @cached_property
    def order_by_latent(self) -> Int[Tensor, " n_active"]:
        """The pairs in the order of latents and, within them, tokens."""
        # Half as many bytes sort in half the time.
        return self.latents.to(torch.int32).sort(stable=True).indices

    def weighted_rows(self, table: Float[Tensor, "d_sae d"]) -> Float[Tensor, "n_rows d"]:
        """`Σ_j f_ij table_j` for every token i, in the dtype of the table."""
        return _weighted_sums(table, self.latents, self.row_offsets, self.values)

    def weighted_latents(self, table: Float[Tensor, "n_rows d"], start: int, stop: int) -> Float[Tensor, "n_latents d"]:
        """`Σ_i f_ij table_i` for every latent j from `start` to `stop`, in the dtype of the table."""
        offsets = self.latent_offsets[start : stop + 1]
        pairs = self.order_by_latent[int(offsets[0]) : int(offsets[-1])]
        return _weighted_sums(table, self.rows[pairs], offsets - offsets[0], self.values[pairs])


def _offsets(groups: Tensor, n_groups: int) -> Tensor:
    ends = torch.bincount(groups, minlength=n_groups).cumsum(dim=0)
    return torch.cat([ends.new_zeros(1), ends])


def _weighted_sums(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Sums of table rows by group, weighted: a product with a sparse matrix, without torch's unfinished CSR type."""
    weights = weights.to(table.dtype)
    return F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
