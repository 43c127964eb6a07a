"""Dashboards of single latents by sae-dashboard, with every model's logits side by side.

Needs the extra `dashboard`. Without it everything can be imported but `write_dashboards` and `write_batches`, and
importing those says how to install it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.dashboards.facts import dead_latents, first_latents, latent_facts
from sae_lens_crosscoder.dashboards.subject import DashboardConfig, DashboardSubject

if TYPE_CHECKING:
    from sae_lens_crosscoder.dashboards.batches import BatchNames, write_batches
    from sae_lens_crosscoder.dashboards.writing import write_dashboards

__all__ = [
    "BatchNames",
    "DashboardConfig",
    "DashboardSubject",
    "dead_latents",
    "first_latents",
    "latent_facts",
    "write_batches",
    "write_dashboards",
]

_NEED_SAE_DASHBOARD = {"BatchNames": "batches", "write_batches": "batches", "write_dashboards": "writing"}


def __getattr__(name: str) -> Any:
    if name in _NEED_SAE_DASHBOARD:
        return getattr(import_module(f"{__name__}.{_NEED_SAE_DASHBOARD[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
