from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import D_VOCAB, fresh_tokenizer, gpt2_folder, source, tiny_model, tiny_pair

from sae_lens_crosscoder import JOINT_HOOK_NAME, JointModel, Source, Sources, hooked_models
from sae_lens_crosscoder.errors import MissingDependencyError, ShapeError, SourceError

try:
    from transformer_lens.model_bridge import TransformerBridge
except ImportError:  # TransformerLens 2
    TransformerBridge = None

HOOKS = {
    "blocks.0.hook_resid_pre": 16,
    "blocks.1.hook_resid_pre": 16,
    "blocks.2.hook_resid_pre": 16,
    "blocks.2.hook_resid_post": 16,
    "blocks.1.attn.hook_z": 16,
    "blocks.1.mlp.hook_post": 32,
    "blocks.1.hook_mlp_out": 16,
    "hook_embed": 16,
    "ln_final.hook_normalized": 16,
}


def tokens(n_rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(0, D_VOCAB, (n_rows, length), generator=torch.Generator().manual_seed(1))


def read(model: Any, hook_name: str, batch: torch.Tensor) -> torch.Tensor:
    """The activation as the model's own cache gives it, heads flattened."""
    return model.run_with_cache(batch, names_filter=hook_name)[1][hook_name].flatten(2)


def identity(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation


def replacing_by(new: torch.Tensor) -> Any:
    return [(JOINT_HOOK_NAME, lambda activation, hook: new)]


def count_runs(modules: dict[str, torch.nn.Module]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    return counts


@pytest.mark.parametrize("hook_name", HOOKS)
def test_joint_activations_are_those_of_each_models_own_cache(hook_name: str):
    width = HOOKS[hook_name]
    joint = JointModel(
        Sources((source("base", hook_name, width), source("chat", hook_name, width))), [tiny_model(0), tiny_model(1)]
    )
    expected = torch.cat([read(model, hook_name, tokens()) for model in joint.source_models], dim=-1)
    assert expected[..., :width].ne(expected[..., width:]).any()
    assert torch.equal(joint(tokens()), expected)
    assert torch.equal(joint.run_with_cache(tokens())[1][JOINT_HOOK_NAME], expected)


def test_three_models_of_different_width_stand_side_by_side_in_the_order_of_the_sources():
    models = [tiny_model(0, d_model=16), tiny_model(1, d_model=24), tiny_model(2, d_model=8)]
    hooks = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_post", "blocks.0.hook_mlp_out"]
    sources = Sources(
        tuple(source(f"m{i}", h, m.cfg.d_model) for i, (h, m) in enumerate(zip(hooks, models, strict=True)))
    )
    joint = JointModel(sources, models)
    activations = joint(tokens())
    assert activations.shape == (3, 7, 48)
    for label, hook_name, model in zip(sources.labels, hooks, models, strict=True):
        assert torch.equal(activations[..., sources.columns(label)], read(model, hook_name, tokens()))


def test_a_difference_is_the_second_model_minus_the_first():
    joint = tiny_pair(combine="difference")
    base, chat = (read(model, "blocks.1.hook_resid_pre", tokens()) for model in joint.source_models)
    assert torch.equal(joint(tokens()), chat - base)


def test_the_fast_path_sees_hooks_that_change_the_residual_stream():
    joint = tiny_pair()
    unchanged = joint(tokens())
    model: Any = joint.source_models[0]
    model.add_hook("blocks.1.hook_resid_pre", lambda activation, hook: activation + 1, is_permanent=True)
    changed = joint(tokens())
    torch.testing.assert_close(changed[..., :16], unchanged[..., :16] + 1)
    assert torch.equal(changed[..., 16:], unchanged[..., 16:])


@pytest.mark.parametrize(
    ("hook_name", "width", "blocks_run"),
    [
        ("blocks.0.hook_resid_pre", 16, []),
        ("blocks.1.hook_resid_pre", 16, ["0"]),
        ("blocks.1.hook_resid_post", 16, ["0", "1"]),
        ("blocks.0.attn.hook_z", 16, ["0"]),
        ("blocks.2.mlp.hook_post", 32, ["0", "1", "2"]),
    ],
)
def test_a_model_stops_at_the_layer_that_is_read(hook_name: str, width: int, blocks_run: list[str]):
    model = tiny_model()
    joint = JointModel(Sources((source("base", hook_name, width),)), [model])
    counts = count_runs({**{str(i): block for i, block in enumerate(model.blocks)}, "unembed": model.unembed})
    joint(tokens())
    assert counts == Counter(blocks_run)


def test_sources_on_one_model_share_one_forward_pass():
    shared, other = tiny_model(0), tiny_model(1)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    sources = Sources((source("early", hooks[0]), source("other", hooks[1]), source("late", hooks[2])))
    joint = JointModel(sources, [shared, other, shared])
    counts = count_runs({"shared": shared.blocks[0], "other": other.blocks[0], "shared deeper": shared.blocks[2]})
    activations = joint(tokens())
    assert counts == {"shared": 1, "other": 1}
    expected = [read(model, hook, tokens()) for model, hook in zip([shared, other, shared], hooks, strict=True)]
    assert torch.equal(activations, torch.cat(expected, dim=-1))


def test_two_sources_may_read_the_same_hook_of_one_model():
    model = tiny_model()
    joint = JointModel(Sources((source("a"), source("b"))), [model, model])
    assert torch.equal(joint(tokens())[..., :16], joint(tokens())[..., 16:])


def test_joint_activations_carry_no_gradient():
    assert not tiny_pair()(tokens()).requires_grad


def test_a_joint_model_stops_after_its_joint_hook_as_saelens_asks_it_to():
    joint = tiny_pair()
    _, cache = joint.run_with_cache(tokens(), names_filter=[JOINT_HOOK_NAME], stop_at_layer=1, prepend_bos=False)
    assert list(cache) == [JOINT_HOOK_NAME]
    assert joint.cfg.n_layers == 1


def test_the_hook_points_of_the_models_keep_their_own_names():
    joint = tiny_pair()
    assert list(joint.hook_dict) == [JOINT_HOOK_NAME]
    assert "blocks.1.hook_resid_pre" in joint.source_models[0].hook_dict
    assert not list(joint.parameters())


# ------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("combine", ["concat", "difference"])
@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.0.hook_resid_pre"])
def test_a_view_that_changes_nothing_gives_the_models_own_logits_and_loss(combine: Any, hook_name: str):
    sources = Sources((source("base", hook_name), source("chat", hook_name)), combine)
    joint = JointModel(sources, [tiny_model(0, dtype=torch.float64), tiny_model(1, dtype=torch.float64)])
    for label, model in zip(("base", "chat"), joint.source_models, strict=True):
        expected = model(tokens(), return_type="both", loss_per_token=True)
        view = joint.view(label)
        for hooks in ([], [(JOINT_HOOK_NAME, identity)]):
            output = view.run_with_hooks(tokens(), return_type="both", loss_per_token=True, fwd_hooks=hooks)
            torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-12)
            torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-12)


def test_a_view_without_a_hook_runs_only_its_own_model():
    joint = tiny_pair()
    counts = count_runs(
        {name: model.blocks[0] for name, model in zip(("base", "chat"), joint.source_models, strict=True)}
    )  # type: ignore[index]
    joint.view("chat")(tokens())
    assert counts == {"chat": 1}


@pytest.mark.parametrize("label", ["base", "chat"])
def test_replacing_joint_activations_patches_one_model_with_its_slice(label: str):
    joint = tiny_pair()
    new = torch.randn(3, 7, 32)
    logits = joint.view(label).run_with_hooks(tokens(), fwd_hooks=replacing_by(new))
    own_slice = new[..., joint.sources.columns(label)]
    model = joint.source_models[joint.sources.position(label)]
    hooks = [("blocks.1.hook_resid_pre", lambda activation, hook: own_slice)]
    assert torch.equal(logits, model.run_with_hooks(tokens(), fwd_hooks=hooks))
    assert not torch.equal(logits, model(tokens()))


def test_replacing_another_sources_slice_changes_nothing():
    joint = tiny_pair()

    def zero_base(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([torch.zeros_like(activation[..., :16]), activation[..., 16:]], dim=-1)

    logits = joint.view("chat").run_with_hooks(tokens(), fwd_hooks=[(JOINT_HOOK_NAME, zero_base)])
    torch.testing.assert_close(logits, joint.source_models[1](tokens()))


def test_a_slice_at_hook_z_is_given_back_its_heads():
    hook_name = "blocks.1.attn.hook_z"
    joint = JointModel(Sources((source("a", hook_name), source("b", hook_name))), [tiny_model(0), tiny_model(1)])
    new = torch.randn(3, 7, 32)
    logits = joint.view("b").run_with_hooks(tokens(), fwd_hooks=replacing_by(new))
    heads = new[..., 16:].reshape(3, 7, 2, 8)
    hooks = [(hook_name, lambda activation, hook: heads)]
    assert torch.equal(logits, joint.source_models[1].run_with_hooks(tokens(), fwd_hooks=hooks))


@pytest.mark.parametrize("label", ["base", "chat"])
def test_a_new_difference_patches_either_model_by_the_other(label: str):
    joint = tiny_pair(dtype=torch.float64, combine="difference")
    base, chat = joint.source_activations(tokens())
    difference = torch.randn(3, 7, 16, dtype=torch.float64)
    patched = {"chat": base + difference, "base": chat - difference}[label]
    model = joint.source_models[joint.sources.position(label)]
    hooks = [("blocks.1.hook_resid_pre", lambda activation, hook: patched)]
    expected = model.run_with_hooks(tokens(), fwd_hooks=hooks)
    assert torch.equal(joint.view(label).run_with_hooks(tokens(), fwd_hooks=replacing_by(difference)), expected)


def test_without_a_difference_the_chat_model_continues_from_the_base_models_activations():
    joint = tiny_pair(dtype=torch.float64, combine="difference")
    base, _ = joint.source_activations(tokens())
    nothing = torch.zeros(3, 7, 16, dtype=torch.float64)
    hooks = [("blocks.1.hook_resid_pre", lambda activation, hook: base)]
    expected = joint.source_models[1].run_with_hooks(tokens(), fwd_hooks=hooks)
    assert torch.equal(joint.view("chat").run_with_hooks(tokens(), fwd_hooks=replacing_by(nothing)), expected)


@pytest.mark.parametrize("how", [{"stop_at_layer": 1}, {"return_type": None}])
def test_a_view_that_stops_gives_the_joint_activation(how: dict[str, Any]):
    joint = tiny_pair()
    assert torch.equal(joint.view("base")(tokens(), **how), joint(tokens()))


def test_a_view_says_whose_it_is():
    joint = tiny_pair()
    assert joint.view("chat").source.label == "chat"
    assert joint.view("chat").cfg.model_name == "tiny-chat"
    assert joint.view("chat").cfg.d_vocab == D_VOCAB
    with pytest.raises(SourceError, match=r"no source 'user'. The sources are 'base', 'chat'"):
        joint.view("user")


# ------------------------------------------------------------------------------------------ errors


def test_an_unknown_hook_is_refused_with_its_nearest_names():
    with pytest.raises(
        SourceError, match=r"no hook 'blocks.1.hook_resid_pr'.*source 'chat'.*'blocks.1.hook_resid_pre'"
    ):
        JointModel(Sources((source("base"), source("chat", "blocks.1.hook_resid_pr"))), [tiny_model(0), tiny_model(1)])


def test_a_hook_like_no_other_is_refused_with_where_to_look():
    with pytest.raises(SourceError, match=r"no hook 'zzz'.*See model.hook_dict"):
        JointModel(Sources((source("base", "zzz"),)), [tiny_model()])


def test_a_layer_that_the_model_does_not_have_is_an_unknown_hook():
    with pytest.raises(SourceError, match=r"no hook 'blocks.3.hook_resid_pre'"):
        JointModel(Sources((source("base", "blocks.3.hook_resid_pre"),)), [tiny_model()])


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"])
def test_a_width_that_is_not_the_models_is_refused_with_the_right_one(hook_name: str):
    with pytest.raises(ShapeError, match=r"'chat' has d_in=8, but 'tiny-chat' is 16 wide .* Set d_in=16"):
        JointModel(Sources((source("base"), source("chat", hook_name, 8))), [tiny_model(0), tiny_model(1)])


@pytest.mark.parametrize("n_models", [1, 3])
def test_another_number_of_models_than_sources_is_refused(n_models: int):
    with pytest.raises(SourceError, match=rf"{n_models} models were given for 2 sources \(base, chat\)"):
        JointModel(Sources((source("base"), source("chat"))), [tiny_model()] * n_models)


@pytest.mark.parametrize("return_type", ["logits", "loss", "both"])
def test_a_joint_model_has_no_logits_of_its_own(return_type: str):
    with pytest.raises(SourceError, match=f"no single {return_type}. Use joint_model.view.*'base', 'chat'"):
        tiny_pair()(tokens(), return_type=return_type)


# --------------------------------------------------------------------------------------- tokenizers


def test_the_tokenizer_with_a_chat_template_is_preferred():
    plain, chat = fresh_tokenizer(), fresh_tokenizer("{{ messages[0]['content'] }}")
    sources = Sources((source("base"), source("chat")))
    joint = JointModel(sources, [tiny_model(0, tokenizer=plain), tiny_model(1, tokenizer=chat)])
    assert joint.tokenizer is chat
    assert JointModel(sources, [tiny_model(0, tokenizer=plain), tiny_model(1)]).tokenizer is plain
    assert tiny_pair().tokenizer is None


def test_text_becomes_tokens_by_the_first_model_that_has_a_tokenizer():
    tokenizer = fresh_tokenizer()
    tokenizer.pad_token = "<bos>"
    chat = tiny_model(1, tokenizer=tokenizer)
    chat.cfg.tokenizer_prepends_bos = False
    joint = JointModel(Sources((source("base"), source("chat"))), [tiny_model(0), chat])
    text = "the owl flies"
    assert joint.to_tokens(text, prepend_bos=False).tolist() == [fresh_tokenizer()(text)["input_ids"]]


def test_texts_of_different_length_are_refused_where_all_models_read_the_same_ids():
    joint = tiny_pair(tokenizer=fresh_tokenizer())
    assert joint.to_tokens(["the owl", "the owl"], prepend_bos=False).shape[0] == 2
    with pytest.raises(ShapeError, match="The texts have from"):
        joint.to_tokens(["the", "the owl flies"], prepend_bos=False)


def test_text_without_any_tokenizer_is_refused():
    with pytest.raises(SourceError, match="No model of this joint model has a tokenizer"):
        tiny_pair().to_tokens("the owl")


# ------------------------------------------------------------------------------------------ loading


def test_each_model_is_loaded_once_on_its_own_device_with_its_weights_as_they_were_trained(
    monkeypatch: pytest.MonkeyPatch,
):
    calls: list[tuple[Any, ...]] = []

    def load(*args: Any, hook_names: Any) -> Any:
        calls.append((*args, hook_names))
        return tiny_model(len(calls))

    monkeypatch.setattr(hooked_models, "load_model", load)
    early = Source("early", "gemma", "blocks.0.hook_resid_post", 16)
    late = Source("late", "gemma", "blocks.1.hook_resid_post", 16)
    other = Source(
        "other",
        "gemma-it",
        "blocks.1.hook_resid_post",
        16,
        "HookedTransformer",
        {"center_writing_weights": True},
        "cpu",
    )
    joint = JointModel.from_pretrained(Sources((early, other, late)), default_device="cpu:0")
    assert calls == [
        ("HookedTransformer", "gemma", "cpu:0", {"center_writing_weights": False}, None),
        ("HookedTransformer", "gemma-it", "cpu", {"center_writing_weights": True}, None),
    ]
    assert joint.source_models[0] is joint.source_models[2] is not joint.source_models[1]
    assert late.model_from_pretrained_kwargs == {}
    calls.clear()
    JointModel.from_pretrained(Sources((early, other)), device="cpu:0")
    assert [call[2] for call in calls] == ["cpu:0", "cpu:0"]


def test_an_unknown_model_class_is_refused_with_the_known_ones():
    with pytest.raises(SourceError, match=r"'HookedRobot'. Use one of HookedTransformer, HookedMamba, AutoModel"):
        JointModel.from_pretrained(Sources((source("base", model_class_name="HookedRobot"),)))


@pytest.mark.skipif(TransformerBridge is not None, reason="this stack has the bridge")
def test_a_bridge_on_an_older_transformer_lens_says_what_to_install():
    with pytest.raises(MissingDependencyError, match="pip install 'transformer-lens>=3,<4'"):
        JointModel.from_pretrained(Sources((source("base", model_class_name="TransformerBridge"),)))


def hugging_face_pair(folder: Path, model_class_name: str, hook_name: str, width: int = 16) -> JointModel:
    sources = tuple(
        Source(label, gpt2_folder(folder / label, seed), hook_name, width, model_class_name)
        for seed, label in enumerate(("base", "chat"))
    )
    return JointModel.from_pretrained(Sources(sources))


@pytest.mark.parametrize("label", ["base", "chat"])
def test_a_hugging_face_model_is_read_and_continued_by_module_name(tmp_path: Path, label: str):
    joint = hugging_face_pair(tmp_path, "AutoModelForCausalLM", "transformer.h.1")
    model: Any = joint.source_models[joint.sources.position(label)]
    with torch.no_grad():
        hidden = model.model(tokens(), output_hidden_states=True)
    own = joint.sources.columns(label)
    torch.testing.assert_close(joint(tokens())[..., own], hidden.hidden_states[2])
    view = joint.view(label)
    unchanged = view.run_with_hooks(tokens(), return_type="both", fwd_hooks=[(JOINT_HOOK_NAME, identity)])
    torch.testing.assert_close(unchanged.logits, hidden.logits)
    by_hand = torch.nn.functional.cross_entropy(hidden.logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    torch.testing.assert_close(unchanged.loss, by_hand)
    new = torch.randn(3, 7, 32)
    patched = view.run_with_hooks(tokens(), fwd_hooks=replacing_by(new))
    with torch.no_grad():
        transformer = model.model.transformer
        after = transformer.h[2](new[..., own])
        expected = model.model.lm_head(transformer.ln_f(after[0] if isinstance(after, tuple) else after))
    torch.testing.assert_close(patched, expected)


def test_a_hugging_face_model_stops_at_its_module(tmp_path: Path):
    joint = hugging_face_pair(tmp_path, "AutoModelForCausalLM", "transformer.h.1")
    model: Any = joint.source_models[0]
    counts = count_runs({str(i): block for i, block in enumerate(model.model.transformer.h)})
    joint(tokens())
    assert counts == {"0": 1, "1": 1}


def test_a_module_that_a_hugging_face_model_does_not_have_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match=r"no module 'transformer.h.9' to read source 'base' at"):
        hugging_face_pair(tmp_path, "AutoModelForCausalLM", "transformer.h.9")


@pytest.mark.skipif(TransformerBridge is None, reason="TransformerLens 2 has no bridge")
@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_pre", "blocks.1.hook_out", "blocks.1.attn.hook_z"])
def test_a_bridge_is_read_and_continued_as_its_own_cache_says(tmp_path: Path, hook_name: str):
    joint = hugging_face_pair(tmp_path, "TransformerBridge", hook_name)
    for label, model in zip(("base", "chat"), joint.source_models, strict=True):
        own = joint.sources.columns(label)
        torch.testing.assert_close(joint(tokens())[..., own], read(model, hook_name, tokens()))
        unchanged = joint.view(label).run_with_hooks(tokens(), fwd_hooks=[(JOINT_HOOK_NAME, identity)])
        torch.testing.assert_close(unchanged, model(tokens()))
        new = torch.randn(3, 7, 32)
        patched = joint.view(label).run_with_hooks(tokens(), fwd_hooks=replacing_by(new))
        hooks = [(hook_name, lambda activation, hook, part=new[..., own]: part.reshape(activation.shape))]
        torch.testing.assert_close(patched, model.run_with_hooks(tokens(), fwd_hooks=hooks))
        assert not torch.allclose(patched, unchanged)


@pytest.mark.skipif(TransformerBridge is None, reason="TransformerLens 2 has no bridge")
def test_a_bridge_stops_at_the_layer_that_is_read(tmp_path: Path):
    joint = hugging_face_pair(tmp_path, "TransformerBridge", "blocks.1.hook_resid_pre")
    model: Any = joint.source_models[0]
    counts = count_runs({str(i): block for i, block in enumerate(model.original_model.transformer.h)})
    joint(tokens())
    assert counts["0"] == 1
    assert counts["2"] == 0
