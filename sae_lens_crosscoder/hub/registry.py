"""Known public crosscoders: where they are, in which format, and what their files do not say.

Nothing here is guessed. What is not known of a crosscoder (a hook point, a licence) is left out, and loading it says
what has to be given.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.errors import NotFoundError


@dataclass(frozen=True)
class KnownCrosscoder:
    """One public crosscoder."""

    name: str
    """What `load_crosscoder` takes in place of a repository."""

    repo_id: str
    """Repository on the Hub."""

    format: str
    """Format of its files, as `load_crosscoder(format=...)` takes it."""

    about: str
    """Whose it is and what it compares."""

    id: str | None = None
    """Folder in the repository; None is its root."""

    sources: tuple[Mapping[str, Any], ...] | None = None
    """Fields of its sources, in the order of its weights; what a source leaves out comes from the files."""

    scales: tuple[float, ...] | None = None
    """Factor that each source's activations have to be multiplied by, where it was published apart from the files."""

    license: str | None = None
    """Its licence as far as it is stated; None if it is not known."""


def _gemma_2_2b(hook_name: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"label": label, "model_name": model_name, "hook_name": hook_name, "d_in": 2304}
        for label, model_name in (("base", "google/gemma-2-2b"), ("chat", "google/gemma-2-2b-it"))
    )


# Minder et al. read the output of a layer, which is hook_resid_post of the block with its number.
_MINDER_SOURCES = _gemma_2_2b("blocks.13.hook_resid_post")
_MINDER = "science-of-finetuning"

_KNOWN = (
    KnownCrosscoder(
        name="kissane-gemma-2-2b-l14",
        repo_id="ckkissane/crosscoder-gemma-2-2b-model-diff",
        id="blocks.14.hook_resid_pre",
        format="kissane",
        sources=_gemma_2_2b("blocks.14.hook_resid_pre"),
        # Computed in the authors' notebook; the files do not hold them.
        scales=(0.2758961493232058, 0.24422852496546169),
        about="Kissane et al. 2024: Gemma 2 2B, base and instruction-tuned; 16,384 latents, L1",
    ),
    KnownCrosscoder(
        name="minder-gemma-2-2b-l13-l1",
        repo_id="science-of-finetuning/gemma-2-2b-crosscoder-l13-mu4.1e-02-lr1e-04",
        format=_MINDER,
        sources=_MINDER_SOURCES,
        about="Minder et al. 2025: Gemma 2 2B, base and instruction-tuned; 73,728 latents, L1",
    ),
    KnownCrosscoder(
        name="minder-gemma-2-2b-l13-batchtopk",
        repo_id="science-of-finetuning/gemma-2-2b-L13-k100-lr1e-04-local-shuffling-CCLoss",
        format=_MINDER,
        sources=_MINDER_SOURCES,
        about="Minder et al. 2025: Gemma 2 2B, base and instruction-tuned; 73,728 latents, BatchTopK, k = 100",
    ),
    KnownCrosscoder(
        name="minder-gemma-2-2b-l13-batchtopk-sae-norms",
        repo_id="science-of-finetuning/gemma-2-2b-L13-k100-lr1e-04-local-shuffling-SAELoss",
        format=_MINDER,
        sources=_MINDER_SOURCES,
        about="Minder et al. 2025: the same, selected by the joint decoder norm",
    ),
    *(
        KnownCrosscoder(
            name=f"llama-3.1-8b-r1-distill-{folder.lower()}",
            repo_id="mitroitskii/Crosscoder-Llama-3.1-8B-vs-Llama-R1-Distill-8B",
            id=f"BatchTopK-Crosscoder/{folder}",
            format=_MINDER,
            about=f"mitroitskii: Llama 3.1 8B and its R1 distillation, BatchTopK, {folder}; hook points are not stated",
        )
        for folder in ("L7R", "L15R", "L23R")
    ),
    KnownCrosscoder(
        name="openinterp-gemma-2-2b-l13",
        repo_id="caiovicentino1/gemma2-2b-crosscoder-model-diff-papergrade",
        format="openinterp",
        sources=_MINDER_SOURCES,
        about="OpenInterpretability: Gemma 2 2B, base and instruction-tuned; 73,728 latents",
    ),
    KnownCrosscoder(
        name="antebe-qwen-2.5-3b-toolrl",
        repo_id="antebe1/dfc-D8k-excl10-freeexcl-k160",
        format="antebe",
        sources=(
            {"label": "finetuned", "hook_name": "blocks.13.hook_resid_post", "d_in": 2048},
            {
                "label": "base",
                "model_name": "Qwen/Qwen2.5-3B",
                "hook_name": "blocks.13.hook_resid_post",
                "d_in": 2048,
            },
        ),
        about="Antebe 2026: Qwen 2.5 3B after and before ToolRL, dedicated features; trained on last tokens only",
    ),
)


def known_crosscoders() -> tuple[KnownCrosscoder, ...]:
    """All known public crosscoders."""
    return _KNOWN


def known_crosscoder(name: str) -> KnownCrosscoder:
    """The known crosscoder of this name.

    Raises:
        NotFoundError: There is none; the message suggests the nearest.
    """
    found = {known.name: known for known in _KNOWN}
    if name not in found:
        near = difflib.get_close_matches(name, list(found), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known are: {', '.join(found)}."
        raise NotFoundError(
            f"There is no crosscoder known as {name!r}, and no folder or file of that name.{hint} A repository of the "
            "Hub is named as owner/name."
        )
    return found[name]


def known_at(repo_id: str, id: str | None) -> KnownCrosscoder | None:
    """What is known of a crosscoder on the Hub; None if it is not a known one.

    Args:
        repo_id: Its repository.
        id: Its folder; None is the repository's only one, or its root.
    """
    there = [known for known in _KNOWN if known.repo_id == repo_id]
    if id is None:
        return there[0] if len(there) == 1 else None
    return next((known for known in there if (known.id or "") == id), None)
