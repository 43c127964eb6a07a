"""A model continued from an activation at one of its hooks."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

# Where both TransformerLens 2 and 3 have it without a deprecation warning.
from transformer_lens.HookedTransformer import HookedTransformer

from sae_lens_crosscoder.generation import replacing
from sae_lens_crosscoder.hooked_models import HookedModel, input_device


def continued_logits(
    model: HookedModel,
    hook_name: str,
    tokens: Int[Tensor, "batch pos"],
    activation: Float[Tensor, "batch pos d_source"],
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the model with the activation in place of its own at the hook, with gradient.

    Where the hook is the residual stream between two blocks of a `HookedTransformer`, only the blocks after it run.
    Elsewhere the whole model runs from the tokens, and a hook replaces what has come so far.
    """
    tokens = tokens.to(input_device(model))
    first = _first_block_after(model, hook_name)
    if first is None:
        hook = (hook_name, replacing(activation))
        return model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[hook])
    # What blocks read beside the residual stream: positions, for models whose attention adds them, and padding.
    embedded, _, positions, attention_mask = model.input_to_embed(tokens)
    return model(
        activation.to(embedded),
        start_at_layer=first,
        shortformer_pos_embed=positions,
        attention_mask=attention_mask,
        return_type="logits",
    )


def _first_block_after(model: HookedModel, hook_name: str) -> int | None:
    """The block that reads what passes the hook, if nothing else of what came before reaches it."""
    parts = hook_name.split(".")
    after = {"hook_resid_pre": 0, "hook_resid_post": 1}
    if not isinstance(model, HookedTransformer) or len(parts) != 3 or parts[0] != "blocks" or parts[2] not in after:
        return None
    if model.hook_dict[hook_name].fwd_hooks:  # it may change the activation, and would see another one
        return None
    return int(parts[1]) + after[parts[2]]
