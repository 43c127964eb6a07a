"""The three products on active pairs that make up decoding, encoding's gradients and decoding's gradients.

They are written in torch's embedding bags, which on a CPU read each vector once and write each sum once. Kernels of
another device replace these three functions and nothing else.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.training.sparse.pairs import ActivePairs

_SUM = 0  # torch's number of the mode of an embedding bag


def sums_by_row(
    pairs: ActivePairs, values: Float[Tensor, " n_pairs"], vectors: Float[Tensor, "n_latents d"]
) -> Float[Tensor, "n_rows d"]:
    """Of every row i the sum over its pairs of value_ij vector_j: codes times decoder."""
    return torch.embedding_bag(
        vectors, pairs.latents, pairs.row_starts, mode=_SUM, per_sample_weights=values.contiguous()
    )[0]


def sums_by_latent(
    pairs: ActivePairs, values: Float[Tensor, " n_pairs"], vectors: Float[Tensor, "n_rows d"]
) -> Float[Tensor, "n_latents d"]:
    """Of every latent j the sum over its pairs of value_ij vector_i: a gradient of encoder or decoder weights."""
    ordered = pairs.by_latent
    return torch.embedding_bag(
        vectors, ordered.rows, ordered.starts, mode=_SUM, per_sample_weights=values[ordered.order]
    )[0]


def dot_products(
    pairs: ActivePairs, of_rows: Float[Tensor, "n_rows d"], of_latents: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " n_pairs"]:
    """Of every pair the dot product of its row's and its latent's vector."""
    ordered = pairs.by_latent
    # Ordered by latent, a latent's vector is read once and the rows' vectors, which are fewer, stay in the cache.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        of_latents, of_rows.contiguous(), ordered.rows, ordered.starts, ordered.latents, _SUM
    )
    return torch.empty_like(dots).scatter_(0, ordered.order, dots)
