"""Products on active pairs as Triton kernels, for CUDA. Their speed on a GPU is not measured yet.

Both kernels accumulate in the dtype of the vectors, wait for nothing, and write each result once, so that they can be
part of a CUDA graph and sum in the same order in every run.
"""

# Triton's language is not typed, as a kernel is compiled from its source, and on some systems there is no Triton.
# pyright: reportMissingImports=false, reportArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportMissingTypeArgument=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.training.sparse.pairs import LatentOrder

_COLUMNS = 128  # of a program: of 65,536 vectors in float32 these columns are 32 MB, which a GPU's cache holds
_PAIRS = 4  # whose vectors are read at once


def weighted_sums(
    vectors: Float[Tensor, "n_vectors d"],
    members: Int[Tensor, " n_pairs"],
    starts: Int[Tensor, " n_groups"],
    values: Float[Tensor, " n_pairs"],
    out: Float[Tensor, "n_groups d"] | None = None,
) -> Float[Tensor, "n_groups d"]:
    """Of every group of consecutive pairs the sum of value times vector; 0 for a group without pairs.

    One program sums a few columns of one group. Programs of the same columns run one after the other, so that these
    columns of all vectors stay in the cache however often they are members.

    Args:
        vectors: What is summed.
        members: Which vector each pair takes.
        starts: Position of the first pair of every group.
        values: By what each pair multiplies its vector.
        out: Memory to write to, if there is some.
    """
    vectors, values = vectors.contiguous(), values.contiguous()
    n_groups, d = len(starts), vectors.shape[1]
    sums = vectors.new_empty(n_groups, d) if out is None else out
    columns = min(_COLUMNS, triton.next_power_of_2(d))
    with torch.cuda.device_of(vectors):
        _weighted_sums[(n_groups, triton.cdiv(d, columns))](
            sums, vectors, members, starts, values, n_groups, len(members), d, PAIRS=_PAIRS, COLUMNS=columns
        )
    return sums


def dots(
    of_rows: Float[Tensor, "n_rows d"], of_latents: Float[Tensor, "n_latents d"], ordered: LatentOrder
) -> Float[Tensor, " n_pairs"]:
    """Of every pair, in the order of latents, the dot product of its row's and its latent's vector.

    One program takes a few consecutive pairs, which mostly are of one latent: its vector is read once.
    """
    of_rows, of_latents = of_rows.contiguous(), of_latents.contiguous()
    n_pairs, d = len(ordered.rows), of_rows.shape[1]
    products = of_rows.new_empty(n_pairs)
    if n_pairs == 0:
        return products
    columns = min(_COLUMNS, triton.next_power_of_2(d))
    with torch.cuda.device_of(of_rows):
        _dots[(triton.cdiv(n_pairs, _PAIRS),)](
            products, of_rows, of_latents, ordered.rows, ordered.latents, n_pairs, d, PAIRS=_PAIRS, COLUMNS=columns
        )
    return products


@triton.jit
def _weighted_sums(
    sums, vectors, members, starts, values, n_groups, n_pairs, d, PAIRS: tl.constexpr, COLUMNS: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)  # times d, it may be more than 32 bits hold
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < d
    start = tl.load(starts + group)
    end = tl.load(starts + group + 1, mask=group + 1 < n_groups, other=n_pairs)
    parts = tl.zeros([PAIRS, COLUMNS], dtype=sums.dtype.element_ty)
    for first in range(start, end, PAIRS):
        pairs = first + tl.arange(0, PAIRS)
        is_pair = pairs < end
        member = tl.load(members + pairs, mask=is_pair, other=0)
        value = tl.load(values + pairs, mask=is_pair, other=0.0)
        inside = is_pair[:, None] & is_column[None, :]
        parts += value[:, None] * tl.load(vectors + member[:, None] * d + columns[None, :], mask=inside, other=0.0)
    tl.store(sums + group * d + columns, tl.sum(parts, axis=0), mask=is_column)


@triton.jit
def _dots(products, of_rows, of_latents, rows, latents, n_pairs, d, PAIRS: tl.constexpr, COLUMNS: tl.constexpr):
    pairs = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    is_pair = pairs < n_pairs
    row = tl.load(rows + pairs, mask=is_pair, other=0)
    latent = tl.load(latents + pairs, mask=is_pair, other=0)
    parts = tl.zeros([PAIRS, COLUMNS], dtype=products.dtype.element_ty)
    for first in range(0, d, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = is_pair[:, None] & (columns < d)[None, :]
        of_row = tl.load(of_rows + row[:, None] * d + columns[None, :], mask=inside, other=0.0)
        of_latent = tl.load(of_latents + latent[:, None] * d + columns[None, :], mask=inside, other=0.0)
        parts += of_row * of_latent
    tl.store(products + pairs, tl.sum(parts, axis=1), mask=is_pair)
