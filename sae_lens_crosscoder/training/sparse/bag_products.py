"""Products on active pairs in torch's embedding bags, which read each vector once and write each sum once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.training.sparse.pairs import LatentOrder

_SUM = 0  # torch's number of the mode of an embedding bag


def weighted_sums(
    vectors: Float[Tensor, "n_vectors d"],
    members: Int[Tensor, " n_pairs"],
    starts: Int[Tensor, " n_groups"],
    values: Float[Tensor, " n_pairs"],
) -> Float[Tensor, "n_groups d"]:
    """Of every group of consecutive pairs the sum of value times vector; 0 for a group without pairs.

    Args:
        vectors: What is summed.
        members: Which vector each pair takes.
        starts: Position of the first pair of every group.
        values: By what each pair multiplies its vector.
    """
    return torch.embedding_bag(vectors, members, starts, mode=_SUM, per_sample_weights=values.contiguous())[0]


def dots(
    of_rows: Float[Tensor, "n_rows d"], of_latents: Float[Tensor, "n_latents d"], ordered: LatentOrder
) -> Float[Tensor, " n_pairs"]:
    """Of every pair, in the order of latents, the dot product of its row's and its latent's vector."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        of_latents, of_rows.contiguous(), ordered.rows, ordered.starts, ordered.latents, _SUM
    )
