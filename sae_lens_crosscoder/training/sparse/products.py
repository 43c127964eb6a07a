"""The three products on active pairs that make up decoding, encoding's gradients and decoding's gradients.

Each is one of two functions that every device has of its own: `bag_products.py` in torch's embedding bags,
`triton_products.py` as kernels for CUDA.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.training.sparse import bag_products
from sae_lens_crosscoder.training.sparse.pairs import ActivePairs, LatentOrder


@runtime_checkable
class Kernels(Protocol):
    """What a module of products of a device holds."""

    def weighted_sums(
        self, vectors: Tensor, members: Tensor, starts: Tensor, values: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Of every group of consecutive pairs the sum of value times vector."""
        ...

    def dots(self, of_rows: Tensor, of_latents: Tensor, ordered: LatentOrder) -> Tensor:
        """Of every pair, in the order of latents, the dot product of its two vectors."""
        ...


def sums_by_row(
    pairs: ActivePairs, values: Float[Tensor, " n_pairs"], vectors: Float[Tensor, "n_latents d"]
) -> Float[Tensor, "n_rows d"]:
    """Of every row i the sum over its pairs of value_ij vector_j: codes times decoder."""
    return kernels_of(vectors.device.type).weighted_sums(vectors, pairs.latents, pairs.row_starts, values)


def sums_by_latent(
    pairs: ActivePairs,
    values: Float[Tensor, " n_pairs"],
    vectors: Float[Tensor, "n_rows d"],
    out: Float[Tensor, "n_latents d"] | None = None,
) -> Float[Tensor, "n_latents d"]:
    """Of every latent j the sum over its pairs of value_ij vector_i: a gradient of encoder or decoder weights.

    Args:
        pairs: Rows and latents.
        values: By what each pair multiplies its vector.
        vectors: Inputs of the encoder, or gradients of the decoder's output.
        out: Memory to write to, if there is some.
    """
    ordered, values = pairs.by_latent, values[pairs.by_latent.order]
    return kernels_of(vectors.device.type).weighted_sums(vectors, ordered.rows, ordered.starts, values, out)


def dot_products(
    pairs: ActivePairs, of_rows: Float[Tensor, "n_rows d"], of_latents: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " n_pairs"]:
    """Of every pair the dot product of its row's and its latent's vector."""
    ordered = pairs.by_latent
    # Ordered by latent, a latent's vector is read once and the rows' vectors, which are fewer, stay in the cache.
    dots = kernels_of(of_rows.device.type).dots(of_rows, of_latents, ordered)
    return torch.empty_like(dots).scatter_(0, ordered.order, dots)


@cache
def kernels_of(device_type: str) -> Kernels:
    """The kernels of a type of device; embedding bags on CUDA where Triton is missing, as on Windows."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None:
        from sae_lens_crosscoder.training.sparse import triton_products

        return triton_products
    return bag_products
