"""The way from a latent to each model's logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dashboard_subjects import D_SAE, aligned_subject, subject
from helpers import fresh_tokenizer, source, tiny_model

from sae_lens_crosscoder.dashboards.facts import decoder_facts
from sae_lens_crosscoder.dashboards.lenses import hook_unembedding, lens_fingerprint, source_lenses
from sae_lens_crosscoder.errors import ConfigError


@pytest.mark.parametrize("widths", [(16,), (16, 24), (16, 24, 16)])
def test_each_source_has_its_own_slice_and_unembedding(widths: tuple[int, ...]) -> None:
    made = subject(widths=widths)
    lenses = source_lenses(made)
    start = 0
    for lens, model, width in zip(lenses, made.joint.source_models, widths, strict=True):
        expected = made.sae.W_dec[:, start : start + width] @ model.W_U
        torch.testing.assert_close(torch.stack([*lens.each_logits(range(D_SAE))]), expected.detach(), rtol=0, atol=1e-5)
        start += width
    assert start == made.joint.sources.d_in


def test_the_row_of_a_difference_goes_through_both_unembeddings() -> None:
    made = subject(combine="difference")
    for lens, model in zip(source_lenses(made), made.joint.source_models, strict=True):
        torch.testing.assert_close(
            torch.stack([*lens.each_logits([2, 8])]), (made.sae.W_dec[[2, 8]] @ model.W_U).detach()
        )


def test_directions_are_those_of_decode_where_they_differ_from_the_weights() -> None:
    made = subject("topk")
    made.sae.cfg.rescale_acts_by_decoder_norm = True
    one = torch.zeros(1, D_SAE)
    one[0, 9] = 1
    expected = (made.sae.decode(one) - made.sae.decode(torch.zeros(1, D_SAE)))[0, :16].detach()
    lens = source_lenses(made)[0]
    torch.testing.assert_close(lens.directions[9], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("hook", "width"), [("mlp.hook_post", 32), ("attn.hook_z", 16), ("hook_mlp_out", 16)])
def test_activations_inside_a_block_go_through_its_output_weights(hook: str, width: int) -> None:
    model = tiny_model(0)
    direction = torch.randn(width)
    read = source("base", hook_name=f"blocks.1.{hook}", d_in=width)
    block: Any = model.blocks[1]
    if hook == "mlp.hook_post":
        into = direction @ block.mlp.W_out
    elif hook == "attn.hook_z":
        into = sum(direction.reshape(2, 8)[head] @ block.attn.W_O[head] for head in range(2))
    else:
        into = direction
    if hook == "attn.hook_z":
        # As wide as the residual stream here, which must not be mistaken for it.
        assert width == model.cfg.d_model
    torch.testing.assert_close(direction @ hook_unembedding(read, model), into @ model.W_U, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", ["LN", "RMS"])
def test_a_folded_final_norm_is_the_derivative_of_the_logits_up_to_its_scale(normalization: str) -> None:
    model = tiny_model(0)
    if normalization == "RMS":
        from transformer_lens.components import RMSNorm

        model.cfg.normalization_type = "RMS"
        model.ln_final = RMSNorm(model.cfg)
    with torch.no_grad():
        model.ln_final.w.copy_(torch.rand(16) + 0.5)
    read = source("base")
    residual, direction = torch.randn(1, 1, 16), torch.randn(16)
    # Directions that do not change the norm's scale: orthogonal to what it divides.
    about = residual[0, 0] - (residual.mean() if normalization == "LN" else 0)
    direction -= (direction @ about) / (about @ about) * about

    def logits(x: torch.Tensor) -> torch.Tensor:
        return (model.ln_final(x) @ model.W_U)[0, 0]

    _, moved = torch.autograd.functional.jvp(logits, residual, direction[None, None])
    folded = direction @ hook_unembedding(read, model, fold_final_norm=True)
    scale = (moved @ folded) / (folded @ folded)
    torch.testing.assert_close(moved, scale * folded, rtol=1e-3, atol=1e-4)
    plain = direction @ hook_unembedding(read, model)
    assert not torch.allclose(moved, (moved @ plain) / (plain @ plain) * plain, rtol=1e-2, atol=1e-2)


def test_a_hook_without_a_way_to_logits_is_refused() -> None:
    read = source("base", hook_name="blocks.1.attn.hook_q", d_in=8)
    with pytest.raises(ConfigError, match="no way from this hook"):
        hook_unembedding(read, tiny_model(0))


def test_each_model_names_tokens_by_its_own_vocabulary() -> None:
    made = aligned_subject()
    first, second = source_lenses(made)
    tokenizers = [model.tokenizer for model in made.joint.source_models]
    assert [first.tokens[40], second.tokens[270]] == [tokenizers[0].decode([40]), tokenizers[1].decode([270])]
    assert first.tokens[270] != second.tokens[270]
    same = source_lenses(subject())
    assert same[0].tokens is same[1].tokens


class Spaced:
    """A tokenizer that decodes otherwise."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decode(self, ids: list[int]) -> str:
        return f" {self._inner.decode(ids)}"


def test_another_vocabulary_or_way_of_decoding_is_seen() -> None:
    def found(tokenizer: Any) -> str:
        return lens_fingerprint(source_lenses(subject(tokenizer=tokenizer)))

    first = found(fresh_tokenizer())
    assert found(fresh_tokenizer()) == first
    longer = fresh_tokenizer()
    longer.add_tokens(["owlish"])
    assert len({first, found(longer), found(Spaced(fresh_tokenizer()))}) == 3


def test_norms_are_those_that_the_relative_norm_is_made_of() -> None:
    made = subject(scales=(2.0, 0.5))
    first, second = source_lenses(made)
    (relative,) = [c.values for c in decoder_facts(made.directions, made.joint.sources) if c.name == "relative_norm"]
    assert isinstance(relative, torch.Tensor)
    torch.testing.assert_close(second.norms / (first.norms + second.norms), relative)
