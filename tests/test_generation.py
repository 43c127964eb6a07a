from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import D_VOCAB, gpt2_folder, source, tiny_model, tiny_pair

from sae_lens_crosscoder import JOINT_HOOK_NAME, JointModel, Source, Sources
from sae_lens_crosscoder.errors import ConfigError, SourceError
from sae_lens_crosscoder.generation import next_tokens, stepper

PROMPTS = torch.randint(1, D_VOCAB, (3, 6), generator=torch.Generator().manual_seed(5))


def transformer_lens_pair(tmp_path: Path) -> JointModel:
    return tiny_pair(torch.float64)


def layers_of_one_model(tmp_path: Path) -> JointModel:
    model = tiny_model(0, dtype=torch.float64)
    hooks = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    return JointModel(Sources((source("base", hooks[0]), source("chat", hooks[1]))), [model, model])


def difference(tmp_path: Path) -> JointModel:
    return tiny_pair(torch.float64, combine="difference")


def hugging_face_pair(tmp_path: Path) -> JointModel:
    sources = [
        Source(label, gpt2_folder(tmp_path / label, seed), "transformer.h.1", 16, "AutoModelForCausalLM")
        for seed, label in enumerate(("base", "chat"))
    ]
    return JointModel.from_pretrained(Sources(tuple(sources)))


MODELS = [transformer_lens_pair, layers_of_one_model, difference, hugging_face_pair]
every_kind = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
every_label = pytest.mark.parametrize("label", ["base", "chat"])


def edit(joined: torch.Tensor) -> torch.Tensor:
    return joined.flip(-1) * 1.5 + 0.3


def rerun(joint: JointModel, label: str, n: int, hook: Callable[..., Any] | None) -> torch.Tensor:
    """Greedy generation that reads the whole text anew for every token."""
    tokens = PROMPTS
    for _ in range(n):
        hooks: Any = [] if hook is None else [(JOINT_HOOK_NAME, lambda x, hook: edit(x))]
        logits = joint.view(label).run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens


@every_kind
@every_label
@pytest.mark.parametrize("hook", [None, edit], ids=["as it is", "edited"])
def test_generation_with_a_cache_says_what_reading_all_anew_says(
    make: Callable[[Path], JointModel], label: str, hook: Any, tmp_path: Path
) -> None:
    joint = make(tmp_path)
    generated = joint.view(label).generate(PROMPTS, 8, hook)
    assert torch.equal(generated, rerun(joint, label, 8, hook))
    assert generated.shape == (3, 14)


def test_an_edit_changes_what_is_said() -> None:
    joint = tiny_pair(torch.float64)
    view = joint.view("chat")
    assert not torch.equal(view.generate(PROMPTS, 8, edit), view.generate(PROMPTS, 8))


def test_a_generation_reads_every_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joint = tiny_pair(torch.float64)
    read: list[int] = []
    model = joint.source_models[1]
    model.embed.register_forward_hook(lambda module, inputs, output: read.append(output.shape[1]))
    joint.view("chat").generate(PROMPTS, 4)
    assert read == [6, 1, 1, 1]


def test_draws_are_those_of_the_generator_and_of_the_temperature() -> None:
    view = tiny_pair(torch.float64).view("chat")
    draws = [view.generate(PROMPTS, 8, None, 1.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    assert next_tokens(logits, 0.0, None).tolist() == [2]
    many = next_tokens(logits.repeat(20_000, 1), 2.0, torch.Generator().manual_seed(0))
    shares = torch.bincount(many) / len(many)
    torch.testing.assert_close(shares, (logits[0] / 2).softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("temperature", [-0.5, torch.nan, torch.inf])
def test_temperatures_that_cannot_be_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="must be 0"):
        tiny_pair().view("chat").generate(PROMPTS, 1, temperature=temperature)


def test_a_model_without_a_known_cache_is_refused() -> None:
    with pytest.raises(SourceError, match="not of HookedMamba"):
        stepper(object(), "HookedMamba", 1)


@every_kind
def test_more_tokens_than_a_model_has_positions_for_are_refused_before_it_runs(make: Any, tmp_path: Path) -> None:
    joint = make(tmp_path)
    model = joint.source_models[1]
    n = model.model.config.n_positions if hasattr(model, "model") else model.cfg.n_ctx
    with pytest.raises(ConfigError, match=f"{n + 1} tokens, .* are more than the {n} that the model of source 'chat'"):
        joint.view("chat").generate(PROMPTS, n + 1 - PROMPTS.shape[1])
    assert joint.view("chat").generate(PROMPTS, n - PROMPTS.shape[1]).shape[1] == n
