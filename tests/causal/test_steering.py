from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import D_VOCAB, tiny_pair
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_crosscoder import JOINT_HOOK_NAME
from sae_lens_crosscoder.causal import ModelComparison, Steering, generate_side_by_side
from sae_lens_crosscoder.causal.steering import steering_edit
from sae_lens_crosscoder.errors import ConfigError

TOKENS = torch.randint(1, D_VOCAB, (2, 6), generator=torch.Generator().manual_seed(5))


def comparison(combine: str = "concat") -> ModelComparison:
    joint = tiny_pair(torch.float64, combine=combine)
    sae = StandardSAE(StandardSAEConfig(d_in=joint.sources.d_in, d_sae=12, dtype="float64", apply_b_dec_to_input=False))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return ModelComparison(joint, sae)


@pytest.mark.parametrize(("label", "columns"), [("base", slice(0, 16)), ("chat", slice(16, 32))])
def test_latents_are_added_and_removed_by_the_steered_models_own_rows(label: str, columns: slice) -> None:
    pair = comparison()
    joined = pair.joint(TOKENS)
    edited = steering_edit(pair, label, Steering(add={3: 2.5}, remove=[7]))(joined)
    expected = joined.clone()
    W_dec = pair.sae.W_dec
    expected[..., columns] += 2.5 * W_dec[3, columns] - pair.sae.encode(joined)[..., 7:8] * W_dec[7, columns]
    torch.testing.assert_close(edited, expected)


def test_a_latent_that_is_named_twice_is_taken_away_once() -> None:
    pair = comparison()
    joined = pair.joint(TOKENS)
    twice, once = (steering_edit(pair, "chat", Steering(remove=latents))(joined) for latents in ([7, 7], [7]))
    assert torch.equal(twice, once)
    assert not torch.equal(once, joined)


def test_latents_of_an_sae_in_half_precision_are_taken_away() -> None:
    pair = comparison()
    joined = pair.joint(TOKENS)
    expected = steering_edit(pair, "chat", Steering(remove=[7]))(joined) - joined
    half = ModelComparison(pair.joint, pair.sae.to(torch.bfloat16))
    change = steering_edit(half, "chat", Steering(remove=[7]))(joined) - joined
    torch.testing.assert_close(change, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    assert expected.abs().max() > 0


@pytest.mark.parametrize("label", ["base", "chat"])
def test_a_difference_moves_either_model_towards_the_fine_tuned_one(label: str) -> None:
    pair = comparison("difference")
    change = steering_edit(pair, label, Steering(add={3: 2.5}))
    model = pair.joint.source_models[pair.joint.sources.position(label)]
    before = model.run_with_cache(TOKENS)[1]["blocks.1.hook_resid_pre"]
    patched: list[torch.Tensor] = []

    def record(x: torch.Tensor, hook: Any) -> None:
        patched.append(x)

    model.hook_dict["blocks.1.ln1.hook_scale"].add_hook(record)  # what the block makes of its patched input
    hooks: Any = [(JOINT_HOOK_NAME, lambda x, hook: change(x))]
    pair.joint.view(label).run_with_hooks(TOKENS, return_type="logits", fwd_hooks=hooks)
    expected = before + 2.5 * pair.sae.W_dec[3]
    centred = expected - expected.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    torch.testing.assert_close(patched[-1], scale)


def test_continuations_stand_side_by_side_by_model_and_steering() -> None:
    pair = comparison()
    steerings = {"as it is": Steering(), "with 3": Steering(add={3: 40.0}), "without 7": Steering(remove=[7])}
    said = generate_side_by_side(pair, TOKENS, steerings, 5)
    for label in ("base", "chat"):
        assert list(said[label]) == list(steerings)
        assert torch.equal(said[label]["as it is"], pair.joint.view(label).generate(TOKENS, 5))
        assert not torch.equal(said[label]["with 3"], said[label]["as it is"])
        assert said[label]["without 7"].shape == (2, 11)


def test_a_latent_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="There is no latent 12: the crosscoder has 0 to 11"):
        steering_edit(comparison(), "base", Steering(add={12: 1.0}))


def test_what_would_say_nothing_is_refused() -> None:
    for activation in (float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="must be finite numbers"):
            Steering({3: activation})
    tokens = torch.zeros(1, 4, dtype=torch.long)
    for n, temperature in ((0, 0.0), (-4, 0.0), (2, -1.0), (2, float("nan"))):
        with pytest.raises(ConfigError, match=r"must be at least 1, and temperature=.* a number from 0 on"):
            generate_side_by_side(comparison(), tokens, {"as it is": Steering()}, n, temperature)
