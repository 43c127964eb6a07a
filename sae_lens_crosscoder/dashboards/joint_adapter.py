"""A joint model as sae-dashboard's runner reads a model: run to the joint hook, with one source's unembedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.dashboards.subject import DashboardSubject
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME


class JointAdapter:
    """The model of sae-dashboard's runner: it takes the shown tokens and stores the joint activation in the hook.

    Where each model reads tokens of its own, the joint activation is zero at tokens without one.

    Args:
        subject: The models and the text; only sequences of this text can be run.
        unembedding: Takes the runner's decoder rows to logits.
    """

    def __init__(self, subject: DashboardSubject, unembedding: Float[Tensor, "_d_source d_vocab"]) -> None:
        self.hook_dict = {JOINT_HOOK_NAME: SimpleNamespace(ctx=dict[str, Any]())}
        self.W_U = unembedding
        self._joint = subject.joint
        self._rows: dict[bytes, Tensor] | None = None
        if subject.joint.aligner is not None:
            shown = subject.shown_tokens
            self._rows = {_key(ids): row for ids, row in zip(shown, subject.tokens, strict=True)}

    def run_with_hooks(
        self,
        tokens: Int[Tensor, "batch context"],
        stop_at_layer: int,
        fwd_hooks: Sequence[tuple[str, Callable[..., Any]]],
    ) -> None:
        """Give the joint activation, (batch, context, d_in), to every hook."""
        activation = self._joint(tokens, stop_at_layer=stop_at_layer) if self._rows is None else self._placed(tokens)
        for name, function in fwd_hooks:
            function(activation, hook=self.hook_dict[name])

    def _placed(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context d_in"]:
        """The joint activations at the first model's tokens, from the packed rows that these tokens come from."""
        assert self._rows is not None
        rows = torch.stack([self._rows[_key(ids)] for ids in tokens])
        own = self._joint.own_tokens(0, rows)
        assert own is not None
        activations = self._joint(rows, stop_at_layer=1)
        placed = activations.new_zeros(*tokens.shape, activations.shape[-1])
        is_aligned = torch.zeros(tokens.shape, dtype=torch.bool)
        is_aligned[:, : own.is_aligned.shape[1]] = own.is_aligned
        placed[is_aligned.to(placed.device)] = activations
        return placed


def _key(tokens: Tensor) -> bytes:
    return tokens.cpu().numpy().tobytes()
