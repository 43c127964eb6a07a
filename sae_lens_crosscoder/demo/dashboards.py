"""Dashboards of the demo's first latents, where sae-dashboard is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.dashboards import DashboardSubject
from sae_lens_crosscoder.errors import MissingDependencyError
from sae_lens_crosscoder.joint_model import JointModel


def show_latents(
    joint: JointModel, sae: SAE[Any], tokens: Int[Tensor, "n_documents length"], latents: Sequence[int], out: Path
) -> Path | None:
    """Write dashboards of the latents on these documents into `out/dashboards`, and say where they are.

    Returns:
        Their index; None without sae-dashboard, when the way to them is printed.
    """
    try:
        from sae_lens_crosscoder.dashboards import write_dashboards
    except MissingDependencyError as error:
        command = f"sae-lens-crosscoder dashboard {out / 'crosscoder'} --latents {','.join(map(str, latents))}"
        print(f"There are no dashboards of single latents. {error} Then: {command}")
        return None
    subject = DashboardSubject(joint, sae, tokens, dataset="demo")
    index = write_dashboards(subject, latents, out / "dashboards")
    print(f"Dashboards of these latents: {index}")
    return index
