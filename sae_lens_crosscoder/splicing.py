"""CE and KL of a model with a reconstruction spliced in, where each model reads tokens of its own.

SAELens's `run_evals` finds the positions that count by comparing ids with those of special tokens, in a tensor of the
shape of the logits. Rows that hold the tokens of several models have another shape, so this measures in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder._saelens import ActivationScaler
from sae_lens_crosscoder.errors import ShapeError
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModelView


@torch.no_grad()
def spliced_metrics(
    sae: SAE[Any], view: JointModelView, batches: Iterable[Int[Tensor, "batch row"]], scaler: ActivationScaler
) -> dict[str, float]:
    """SAELens's CE and KL metrics of one model, at the places where tokens of all models end together.

    There the reconstruction replaces the activation, elsewhere the model keeps its own; the ablation that scores refer
    to zeroes the joint activation at the same places. With d the divergence KL(model || patched model) and c the loss:
    `kl_div_score` = (d_ablated - d_spliced) / d_ablated, `ce_loss_score` = (c_ablated - c_spliced) / (c_ablated - c).
    Means are over these places; c leaves out the last token of a sequence.

    Args:
        sae: The crosscoder.
        view: The model.
        batches: Packed rows.
        scaler: The trainer's scaler, while its factors are not yet folded into the weights.

    Raises:
        ShapeError: The models all read the same ids.
    """

    def splice(joint: Float[Tensor, "place d_in"], hook: Any) -> Tensor:
        x = scaler.scale(joint.to(sae.device))
        return scaler.unscale(sae.decode(sae.encode(x))).to(joint)

    def ablate(joint: Float[Tensor, "place d_in"], hook: Any) -> Tensor:
        return torch.zeros_like(joint)

    sums: defaultdict[str, float] = defaultdict(float)
    for rows in batches:
        own = view.own_tokens(rows)
        if own is None:
            raise ShapeError("These models all read the same ids. Measure them with SAELens's run_evals.")
        logits, loss = view(rows, return_type="both", loss_per_token=True)
        places = own.is_aligned.to(logits.device)
        with_next = places[:, :-1] & ~own.is_padding[:, 1:].to(logits.device)
        sums["n_places"] += float(places.sum())
        sums["n_losses"] += float(with_next.sum())
        sums["ce_loss_without_sae"] += float(loss[with_next].double().sum())
        for name, replace in (("sae", splice), ("ablation", ablate)):
            patched_logits, patched_loss = view.run_with_hooks(
                rows, return_type="both", loss_per_token=True, fwd_hooks=[(JOINT_HOOK_NAME, replace)]
            )
            sums[f"ce_loss_with_{name}"] += float(patched_loss[with_next].double().sum())
            sums[f"kl_div_with_{name}"] += float(_kl(logits[places], patched_logits[places]).sum())
    kl = {name: sums[name] / sums["n_places"] for name in ("kl_div_with_sae", "kl_div_with_ablation")}
    names = ("ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_without_sae")
    ce = {name: sums[name] / sums["n_losses"] for name in names}
    ablated = ce["ce_loss_with_ablation"]
    return {
        "ce_loss_score": (ablated - ce["ce_loss_with_sae"]) / (ablated - ce["ce_loss_without_sae"]),
        **ce,
        "kl_div_score": (kl["kl_div_with_ablation"] - kl["kl_div_with_sae"]) / kl["kl_div_with_ablation"],
        **kl,
    }


def _kl(logits: Float[Tensor, "place d_vocab"], patched: Float[Tensor, "place d_vocab"]) -> Float[Tensor, " place"]:
    # A sum over the vocabulary in half precision is several percent off.
    log_p, log_q = (x.to(torch.promote_types(x.dtype, torch.float32)).log_softmax(dim=-1) for x in (logits, patched))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
