from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import D_VOCAB, gpt2_folder, source, tiny_model, tiny_pair, tiny_tokenizer
from other_tokenizers import other_bpe
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from sae_lens_crosscoder import JointModel, Source, Sources
from sae_lens_crosscoder.causal import (
    AblationEquivalence,
    ModelComparison,
    PatchTest,
    exact_kl_attribution,
    first_order_kl_attribution,
    kl_per_token,
)
from sae_lens_crosscoder.causal.comparison import kl_divergence
from sae_lens_crosscoder.errors import ConfigError, ShapeError, SourceError

TOKENS = torch.randint(1, D_VOCAB, (3, 10), generator=torch.Generator().manual_seed(5))
F64 = torch.float64


def sae_of(W_enc: torch.Tensor, W_dec: torch.Tensor, b_enc: Any = None, b_dec: Any = None) -> StandardSAE:
    d_in, d_sae = W_enc.shape
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float64", apply_b_dec_to_input=False))
    zeros = {"b_enc": torch.zeros(d_sae, dtype=F64), "b_dec": torch.zeros(d_in, dtype=F64)}
    given = {name: value for name, value in (("b_enc", b_enc), ("b_dec", b_dec)) if value is not None}
    sae.load_state_dict({**zeros, **given, "W_enc": W_enc, "W_dec": W_dec})
    return sae


def random_sae(d_in: int = 32, d_sae: int = 24, seed: int = 0) -> StandardSAE:
    g = torch.Generator().manual_seed(seed)
    W_enc, W_dec = torch.randn(d_in, d_sae, dtype=F64, generator=g), torch.randn(d_sae, d_in, dtype=F64, generator=g)
    b_enc, b_dec = torch.randn(d_sae, dtype=F64, generator=g) - 1, torch.randn(d_in, dtype=F64, generator=g)
    return sae_of(W_enc, 0.1 * W_dec, b_enc, 0.1 * b_dec)


def in_double_precision(sae: StandardSAE) -> StandardSAE:
    """The same weights in double precision."""
    return sae_of(*(getattr(sae, name).detach().to(F64) for name in ("W_enc", "W_dec", "b_enc", "b_dec")))


def perfect_sae(d_in: int = 32) -> StandardSAE:
    """Latents are the positive and the negative part of every column: every activation is reconstructed."""
    eye = torch.eye(d_in, dtype=F64)
    return sae_of(torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye], dim=0))


def pair() -> JointModel:
    return tiny_pair(F64)


def log_probabilities(joint: JointModel, label: str, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return joint.source_models[joint.sources.position(label)](tokens).log_softmax(-1)


def test_the_kl_of_every_token_is_that_of_the_two_models_distributions() -> None:
    joint = pair()
    p, q = log_probabilities(joint, "chat").exp(), log_probabilities(joint, "base").exp()
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(kl_per_token(ModelComparison(joint, random_sae()), TOKENS), expected)


def test_kl_divergence_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    torch.testing.assert_close(kl_divergence(p.log(), q.log()), expected)


def test_a_model_continued_from_its_own_activation_is_itself() -> None:
    joint = pair()
    comparison = ModelComparison(joint, random_sae())
    run = comparison.run(TOKENS)
    for label, activation in (("base", run.base), ("chat", run.finetuned)):
        continued = comparison.continued(label, TOKENS, activation)
        torch.testing.assert_close(continued, log_probabilities(joint, label))


def test_exact_attribution_is_the_fall_of_the_kl_when_the_latent_is_removed_by_hand() -> None:
    joint, sae = pair(), random_sae()
    comparison = ModelComparison(joint, sae)
    latents = [3, 7, 11]
    attribution = exact_kl_attribution(comparison, TOKENS, latents, n_reruns_at_once=2)
    joined = joint(TOKENS)
    f = sae.encode(joined)
    base = log_probabilities(joint, "base")
    before = kl_divergence(log_probabilities(joint, "chat"), base)
    for i, j in enumerate(latents):
        removed = joined[..., 16:] - f[..., j : j + 1] * (sae.W_dec[j, 16:] - sae.W_dec[j, :16])

        def replace(x: torch.Tensor, hook: Any, removed: torch.Tensor = removed) -> torch.Tensor:
            return removed

        chat = joint.source_models[1].run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", replace)])
        expected = before - kl_divergence(chat.log_softmax(-1), base)
        torch.testing.assert_close(attribution[i], expected)
        assert expected.abs().max() > 1e-4


def test_exact_attribution_of_one_latent_sums_to_the_kl_change_of_its_patch() -> None:
    comparison = ModelComparison(pair(), random_sae())
    counted = torch.ones_like(TOKENS, dtype=torch.bool)
    for j in (3, 11):
        run = comparison.run(TOKENS)
        log_base = comparison.continued("base", TOKENS, run.base)
        patched = run.finetuned - comparison.contribution(run.feature_acts, [j])
        before, after = (
            kl_divergence(comparison.continued("chat", TOKENS, h), log_base)[counted].sum()
            for h in (run.finetuned, patched)
        )
        attribution = exact_kl_attribution(comparison, TOKENS, [j])
        torch.testing.assert_close(attribution.sum(), before - after)


def test_a_silent_latent_carries_nothing() -> None:
    sae = random_sae()
    with torch.no_grad():
        sae.b_enc[5] = -1e6
    comparison = ModelComparison(pair(), sae)
    assert (exact_kl_attribution(comparison, TOKENS, [5]) == 0).all()
    assert (first_order_kl_attribution(comparison, TOKENS)[..., 5] == 0).all()


def test_first_order_attribution_is_the_derivative_of_the_kl_as_the_latent_is_removed() -> None:
    comparison = ModelComparison(pair(), random_sae())
    attribution = first_order_kl_attribution(comparison, TOKENS)
    run = comparison.run(TOKENS)
    log_base = comparison.continued("base", TOKENS, run.base)
    for j in (3, 11):
        step = comparison.contribution(run.feature_acts, [j])
        up, down = (
            kl_divergence(comparison.continued("chat", TOKENS, run.finetuned + sign * step), log_base)[:, 1:].sum()
            for sign in (1e-4, -1e-4)
        )
        expected = (up - down) / 2e-4
        assert attribution[..., j].sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_of_an_sae_in_half_precision_the_attribution_is_that_of_its_rounded_weights() -> None:
    half = random_sae().to(torch.bfloat16)
    with_half, with_rounded = (
        first_order_kl_attribution(ModelComparison(pair(), sae), TOKENS) for sae in (half, in_double_precision(half))
    )
    assert with_half.dtype == torch.float32
    torch.testing.assert_close(with_half.double(), with_rounded, rtol=0.05, atol=0.02 * with_rounded.abs().max().item())


def test_path_attributions_of_a_perfect_crosscoder_add_up_to_the_kl_that_the_difference_makes() -> None:
    comparison = ModelComparison(pair(), perfect_sae())
    total = first_order_kl_attribution(comparison, TOKENS, n_path_points=32).sum()
    run = comparison.run(TOKENS)
    log_base = comparison.continued("base", TOKENS, run.base)
    end, start = (
        kl_divergence(comparison.continued("chat", TOKENS, h), log_base)[:, 1:].sum() for h in (run.finetuned, run.base)
    )
    assert total.item() == pytest.approx((end - start).item(), rel=1e-2)


def test_only_counted_positions_are_attributed() -> None:
    comparison = ModelComparison(pair(), random_sae())
    counted = torch.zeros_like(TOKENS, dtype=torch.bool)
    counted[:, 4] = True
    attribution = first_order_kl_attribution(comparison, TOKENS, counted)
    assert (attribution[:, 5:] == 0).all()
    assert (attribution[:, :5] != 0).any()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_perfect_crosscoder_closes_the_gap_and_no_latent_closes_nothing(reverse: bool) -> None:
    comparison = ModelComparison(pair(), perfect_sae())
    test = PatchTest(comparison, {"all": range(64), "none": [], "half": range(32)}, reverse)
    test.add(TOKENS[:2])
    test.add(TOKENS[2:])
    effects = {name: groups["all"] for name, groups in test.compute().items()}
    assert effects["nothing"].gap_closed == 0
    assert effects["none"].gap_closed == 0
    assert effects["none"].n_tokens == 27
    for name in ("full difference", "reconstruction", "all"):
        assert effects[name].gap_closed == pytest.approx(1)
    assert effects["error"].gap_closed == pytest.approx(0, abs=1e-9)
    assert 0 < effects["half"].kl < effects["nothing"].kl or effects["half"].gap_closed < 1


def test_patches_are_counted_by_groups_of_tokens_and_any_split_into_batches() -> None:
    comparison = ModelComparison(pair(), random_sae())
    first = torch.zeros_like(TOKENS, dtype=torch.bool)
    first[:, 2:5] = True
    groups = {"first": first, "rest": ~first, "never": torch.zeros_like(first)}
    whole, split = (PatchTest(comparison, {"some": [1, 3, 7]}) for _ in range(2))
    whole.add(TOKENS, groups)
    for i in range(3):
        split.add(TOKENS[i : i + 1], {name: mask[i : i + 1] for name, mask in groups.items()})
    one, other = whole.compute()["some"], split.compute()["some"]
    assert set(one) == {"first", "rest"}
    for group, effect in one.items():
        assert effect.kl == pytest.approx(other[group].kl, rel=1e-5)
        assert effect.n_tokens == other[group].n_tokens == {"first": 9, "rest": 21}[group]
    assert one["first"].kl != one["rest"].kl


def test_a_latent_that_stands_twice_in_a_set_is_patched_once() -> None:
    test = PatchTest(ModelComparison(pair(), random_sae()), {"once": [3, 7], "twice": [3, 7, 3]})
    test.add(TOKENS)
    effects = test.compute()
    assert effects["twice"] == effects["once"]
    assert effects["once"]["all"].kl != effects["nothing"]["all"].kl


def test_a_difference_sae_is_patched_with_its_own_rows() -> None:
    joint = tiny_pair(F64, combine="difference")
    comparison = ModelComparison(joint, perfect_sae(16))
    test = PatchTest(comparison, {"all": range(32)})
    test.add(TOKENS)
    assert test.compute()["all"]["all"].gap_closed == pytest.approx(1)
    with pytest.raises(SourceError, match="one decoder row a latent"):
        AblationEquivalence(comparison, [0])
    with pytest.raises(SourceError, match="trained on 'chat' minus 'base'"):
        ModelComparison(joint, perfect_sae(16), "chat", "base")


def test_equal_models_use_a_latent_alike_and_too_few_probes_give_no_score() -> None:
    model = tiny_model(0, dtype=F64)
    joint = JointModel(Sources((source("base"), source("chat"))), [model, model])
    sae = random_sae()
    with torch.no_grad():
        sae.W_dec[:, 16:] = sae.W_dec[:, :16]
        sae.b_enc[3], sae.b_enc[5] = 10, -1e6
    test = AblationEquivalence(ModelComparison(joint, sae), [3, 5])
    for seed in range(4):
        test.add(torch.randint(1, D_VOCAB, (3, 10), generator=torch.Generator().manual_seed(seed)))
    scores, n_probes = test.compute()
    assert n_probes.tolist() == [12, 0]
    assert scores[0].item() == pytest.approx(1)
    assert scores[1].isnan()


def test_a_probe_whose_effect_is_infinite_in_one_model_counts_in_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def infinite_in_the_second(*log_probs: torch.Tensor) -> torch.Tensor:
        kl = kl_divergence(*log_probs)
        if len(calls) == 1:
            kl[0] = torch.inf
        calls.append(len(kl))
        return kl

    monkeypatch.setattr("sae_lens_crosscoder.causal.equivalence.kl_divergence", infinite_in_the_second)
    sae = random_sae()
    with torch.no_grad():
        sae.b_enc[3] = 10
    test = AblationEquivalence(ModelComparison(pair(), sae), [3], min_probes=2)
    test.add(TOKENS)
    scores, n_probes = test.compute()
    assert n_probes.tolist() == [len(TOKENS) - 1]
    assert scores[0].abs().item() == pytest.approx(1)  # of two points


def test_the_score_is_numpys_correlation_of_the_ablation_effects() -> None:
    joint, sae = pair(), random_sae()
    test = AblationEquivalence(ModelComparison(joint, sae), [3], min_probes=3)
    test.add(TOKENS)
    f = sae.encode(joint(TOKENS))[..., 3:4]
    effects: list[list[float]] = []
    for i, columns in enumerate((slice(0, 16), slice(16, 32))):
        model = joint.source_models[i]

        def remove(x: torch.Tensor, hook: Any, columns: slice = columns) -> torch.Tensor:
            return x - f * sae.W_dec[3, columns]

        after = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", remove)]).log_softmax(-1)
        effects.append(kl_divergence(after, model(TOKENS).log_softmax(-1)).sum(-1).tolist())
    expected = torch.corrcoef(torch.tensor(effects))[0, 1]
    scores, n_probes = test.compute()
    assert n_probes.tolist() == [3]
    assert scores[0].item() == pytest.approx(expected.item(), rel=1e-3)


def test_one_label_of_two_names_the_other() -> None:
    assert ModelComparison(pair(), random_sae(), base="chat").finetuned == "base"
    assert ModelComparison(pair(), random_sae(), finetuned="base").base == "chat"


def test_where_the_crosscoder_does_not_read_nothing_is_removed_or_added_but_the_full_difference() -> None:
    joint, sae = pair(), perfect_sae()
    tokens = TOKENS.clone()
    tokens[:, 0] = 0  # BOS
    comparison = ModelComparison(joint, sae, ignored_tokens=(0,))
    run = comparison.run(tokens)
    assert (run.feature_acts[:, 0] == 0).all()
    assert (run.feature_acts[:, 1:] != 0).any()
    at_bos = torch.zeros_like(tokens, dtype=torch.bool)
    at_bos[:, 0] = True
    test = PatchTest(comparison, {"all": range(64)})
    test.add(tokens, {"bos": at_bos})
    effects = {name: groups["bos"].gap_closed for name, groups in test.compute().items()}
    assert effects["all"] == effects["reconstruction"] == effects["nothing"] == 0
    assert effects["full difference"] == pytest.approx(1)
    assert (first_order_kl_attribution(comparison, tokens, n_path_points=2)[:, 0] == 0).all()


def test_contributions_are_what_the_sae_decodes_even_where_that_is_not_w_dec() -> None:
    joint = pair()
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=24, k=5, dtype="float64", rescale_acts_by_decoder_norm=True))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    comparison = ModelComparison(joint, sae)
    acts = comparison.run(TOKENS).feature_acts
    decoded = sae.decode(acts) - sae.decode(torch.zeros_like(acts))
    torch.testing.assert_close(comparison.contribution(acts, range(24)), decoded[..., 16:] - decoded[..., :16])


def test_tokens_that_neither_model_says_count_nothing_and_padded_vocabularies_are_cut() -> None:
    joint = pair()
    for model in joint.source_models:
        model.unembed.b_U.data[7] = -torch.inf
    comparison = ModelComparison(joint, random_sae())
    assert kl_per_token(comparison, TOKENS[TOKENS.ne(7).all(1)]).isfinite().all()
    assert comparison.n_vocab == D_VOCAB
    assert comparison.sequences_at_once(1024, 8) == 8
    comparison.__dict__["n_vocab"] = 262_144
    assert comparison.sequences_at_once(1024, 8) == 1


def test_hugging_face_models_are_not_run_on_no_sequence(tmp_path: Path) -> None:
    sources = [
        Source(label, gpt2_folder(tmp_path / label, seed), "transformer.h.1", 16, "AutoModelForCausalLM")
        for seed, label in enumerate(("base", "chat"))
    ]
    joint = JointModel.from_pretrained(Sources(tuple(sources)))
    sae = random_sae()
    with torch.no_grad():
        sae.b_enc[5] = -1e6
    for model in joint.source_models:
        model.double()
    comparison = ModelComparison(joint, sae)
    assert (exact_kl_attribution(comparison, TOKENS, [5]) == 0).all()


def test_what_cannot_be_compared_is_refused() -> None:
    three = Sources((source("a"), source("b"), source("c")))
    joint = JointModel(three, [tiny_model(i, dtype=F64) for i in range(3)])
    with pytest.raises(SourceError, match="between two of the sources a, b, c"):
        ModelComparison(joint, random_sae(48))
    assert ModelComparison(joint, random_sae(48), "a", "c").finetuned == "c"
    widths = Sources((source("a"), source("b", d_in=24)))
    joint = JointModel(widths, [tiny_model(0, dtype=F64), tiny_model(1, d_model=24, dtype=F64)])
    with pytest.raises(ShapeError, match="'a' is 16 wide and 'b' 24"):
        ModelComparison(joint, random_sae(40))
    comparison = ModelComparison(pair(), random_sae())
    with pytest.raises(ConfigError, match="names a bound"):
        PatchTest(comparison, {"nothing": [1]})
    for latents in ([24], [-1]):
        with pytest.raises(ConfigError, match=f"There is no latent {latents[0]}"):
            PatchTest(comparison, {"some": latents}).add(TOKENS)
    with pytest.raises(SourceError, match="not between 'chat' and 'chat'"):
        ModelComparison(pair(), random_sae(), "chat", "chat")
    deep = Sources((source("base"), source("chat", "blocks.2.hook_resid_pre")))
    with pytest.raises(SourceError, match="put into another is no patch"):
        ModelComparison(JointModel(deep, [tiny_model(i, dtype=F64) for i in (0, 1)]), random_sae())
    with pytest.raises(ConfigError, match="n_path_points=-1"):
        first_order_kl_attribution(comparison, TOKENS, n_path_points=-1)


def test_models_with_tokens_of_their_own_are_refused() -> None:
    sources = Sources((source("base"), source("chat")), token_alignment="character_offsets")
    models = [tiny_model(0, tokenizer=tiny_tokenizer()), tiny_model(1, tokenizer=other_bpe())]
    joint = JointModel(sources, models)
    with pytest.raises(SourceError, match="cannot be put into the other at every token"):
        ModelComparison(joint, random_sae())
    with pytest.raises(SourceError, match="a token that one says may be none of another's"):
        joint.view("chat").generate(TOKENS)
