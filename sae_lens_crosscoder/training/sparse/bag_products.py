"""Products on active pairs in torch's embedding bags, which write each sum once; faster with numbers of 32 bits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.training.sparse.pairs import LatentOrder

_COLUMNS = 128  # that are summed at once: the vectors' few columns stay in the cache however often they are members
_SUM = 0  # torch's number of the mode of an embedding bag


def weighted_sums(
    vectors: Float[Tensor, "n_vectors d"],
    members: Int[Tensor, " n_pairs"],
    starts: Int[Tensor, " n_groups"],
    values: Float[Tensor, " n_pairs"],
    out: Float[Tensor, "n_groups d"] | None = None,
) -> Float[Tensor, "n_groups d"]:
    """Of every group of consecutive pairs the sum of value times vector; 0 for a group without pairs.

    Args:
        vectors: What is summed.
        members: Which vector each pair takes.
        starts: Position of the first pair of every group.
        values: By what each pair multiplies its vector.
        out: Memory to write to, if there is some.
    """
    members, starts, values = members.int(), starts.int(), values.contiguous()
    out = vectors.new_empty(len(starts), vectors.shape[1]) if out is None else out
    for first in range(0, vectors.shape[1], _COLUMNS):
        columns = slice(first, first + _COLUMNS)
        part = vectors[:, columns].contiguous()
        out[:, columns] = torch.embedding_bag(part, members, starts, mode=_SUM, per_sample_weights=values)[0]
    return out


def dots(
    of_rows: Float[Tensor, "n_rows d"], of_latents: Float[Tensor, "n_latents d"], ordered: LatentOrder
) -> Float[Tensor, " n_pairs"]:
    """Of every pair, in the order of latents, the dot product of its row's and its latent's vector."""
    rows, starts, latents = (numbers.int() for numbers in (ordered.rows, ordered.starts, ordered.latents))
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        of_latents, of_rows.contiguous(), rows, starts, latents, _SUM
    )
