"""The k-th largest of scores that lie on several ranks, to the last bit, by exchanging counts in place of scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_BITS_OF_ONE_ROW, _BITS_OF_ROWS = 11, 4


def digit_bits(n_rows: int) -> int:
    """How many bits of the scores one exchange settles; it sends 2^bits counts of 8 bytes a row."""
    return _BITS_OF_ONE_ROW if n_rows == 1 else _BITS_OF_ROWS


def kth_largest(
    scores: Float[Tensor, "n_rows n_here"], k: int, total: Callable[[Tensor], Tensor]
) -> Float[Tensor, "n_rows 1"]:
    """The k-th largest score of every row, 0 if it has fewer.

    Numbers that are not negative are in the order of their bits. So the k-th largest is found some bits at a time,
    beginning with the highest: each pass counts, among the scores that agree with what is found so far, how many have
    which next bits.

    Args:
        scores: This rank's scores, none of them negative; ranks may have different numbers of them.
        k: The rank of the wanted score.
        total: Sums a tensor over all ranks.
    """
    n_rows, width = len(scores), digit_bits(len(scores))
    bits = scores.abs().view(_INTEGERS[scores.element_size()]).long()  # abs: there is a negative 0
    found = bits.new_zeros(n_rows, 1)
    wanted = torch.full_like(found, k)
    n_passes = -(-8 * scores.element_size() // width)
    for shift in range((n_passes - 1) * width, -1, -width):
        rest = bits >> shift
        agrees = (rest >> width) == found
        counts = bits.new_zeros(n_rows, 1 << width).scatter_add_(1, rest & ((1 << width) - 1), agrees.long())
        # Of every digit, how many scores have it or a larger one; after the largest digit none.
        reaching = torch.nn.functional.pad(total(counts).flip(1).cumsum(1).flip(1), (0, 1))
        digit = ((reaching[:, :-1] >= wanted).sum(dim=1, keepdim=True) - 1).clamp(min=0)
        wanted = wanted - reaching.gather(1, digit + 1)
        found = (found << width) | digit
    return found.to(_INTEGERS[scores.element_size()]).view(scores.dtype)
