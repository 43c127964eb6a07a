"""The check that models give numbers: what is infinite or NaN once would be in every weight a step later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.errors import NonFiniteError
from sae_lens_crosscoder.sources import Sources


def check_finite(
    parts: Sequence[Float[Tensor, "n_rows _d_part"]],
    keep: Bool[Tensor, " n_rows"],
    tokens: Int[Tensor, "batch pos"],
    sources: Sources,
) -> None:
    """Look at the rows of one forward pass that are trained on.

    Args:
        parts: Activations, one tensor for each part of the joint activation.
        keep: The rows that are not dropped.
        tokens: What the models read, kept in the error.
        sources: The sources of the parts.

    Raises:
        NonFiniteError: A number that is infinite or NaN. The error names source and hook, and holds the batch.
    """
    for position, part in enumerate(parts):
        if bool(torch.stack(torch.aminmax(part)).isfinite().all()):
            continue
        bad = ~part.isfinite().all(dim=-1).cpu() & keep
        if not bad.any():
            continue
        names = [f"{s.label!r} ({s.model_name}, {s.hook_name})" for s in sources]
        what = f"source {names[position]}" if len(parts) == len(sources) else f"the difference of {' and '.join(names)}"
        raise NonFiniteError(
            f"Activations of {what} are infinite or not a number, in {int(bad.sum())} of {int(keep.sum())} tokens of "
            "one forward pass. Training on them would make every weight NaN. Load the model in bfloat16 or float32 if "
            "it is in float16, or drop the text that does this.",
            {"tokens": tokens.cpu().contiguous(), "activations": torch.cat([p.cpu() for p in parts], dim=-1)},
        )
