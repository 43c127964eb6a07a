from __future__ import annotations

import pytest
import torch
from helpers import D_VOCAB, fresh_tokenizer, tiny_model
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_crosscoder.causal.continuation import continued_logits
from sae_lens_crosscoder.generation import replacing

TOKENS = torch.randint(1, D_VOCAB, (3, 10), generator=torch.Generator().manual_seed(5))
PATCH = torch.randn(3, 10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def from_the_tokens(model: HookedTransformer, hook_name: str, patch: Tensor, tokens: Tensor = TOKENS) -> Tensor:
    return model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(hook_name, replacing(patch))])


def blocks_run(model: HookedTransformer, hook_name: str) -> list[int]:
    """The blocks that run when the model is continued from the hook."""
    seen: list[int] = []
    handles = [b.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, b in enumerate(model.blocks)]
    continued_logits(model, hook_name, TOKENS, PATCH)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("hook_name", "blocks"),
    [
        ("blocks.0.hook_resid_pre", [0, 1, 2]),
        ("blocks.1.hook_resid_pre", [1, 2]),
        ("blocks.1.hook_resid_post", [2]),
        ("blocks.2.hook_resid_post", []),
        ("blocks.1.hook_resid_mid", [0, 1, 2]),
        ("blocks.1.hook_mlp_out", [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("positions", ["standard", "rotary", "shortformer"])
def test_a_continued_model_is_the_whole_run_with_the_activation_replaced(
    hook_name: str, blocks: list[int], positions: str
) -> None:
    model = tiny_model(dtype=torch.float64, positional_embedding_type=positions, rotary_dim=8)
    patch = PATCH.clone().requires_grad_()
    logits = continued_logits(model, hook_name, TOKENS, patch)
    expected = from_the_tokens(model, hook_name, patch)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.log_softmax(-1)[..., 7].sum(), patch)[0] for out in (logits, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert blocks_run(model, hook_name) == blocks


def test_padding_on_the_left_is_masked_as_in_the_whole_run() -> None:
    tokenizer = fresh_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token_id = "left", 3
    model = tiny_model(dtype=torch.float64, tokenizer=tokenizer)
    padded = TOKENS.clone()
    padded[1, :4] = 3
    hook_name = "blocks.1.hook_resid_pre"
    logits = continued_logits(model, hook_name, padded, PATCH)
    torch.testing.assert_close(logits, from_the_tokens(model, hook_name, PATCH, padded), rtol=0, atol=1e-12)
    tokenizer.padding_side = "right"
    unmasked = from_the_tokens(model, hook_name, PATCH, padded)
    assert not torch.allclose(logits[1], unmasked[1])


def test_a_hook_that_stands_at_the_same_place_does_not_see_the_activation_that_is_put_there() -> None:
    model = tiny_model(dtype=torch.float64)
    seen: list[Tensor] = []
    model.add_hook("blocks.1.hook_resid_pre", lambda activation, hook: seen.append(activation.clone()))
    continued_logits(model, "blocks.1.hook_resid_pre", TOKENS, PATCH)
    _, cache = model.run_with_cache(TOKENS, names_filter="blocks.1.hook_resid_pre")
    torch.testing.assert_close(seen[0], cache["blocks.1.hook_resid_pre"])
