from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SENTENCES, fresh_tokenizer, source, tiny_model, tiny_pair, tiny_tokenizer, token_dataset
from other_tokenizers import other_bpe
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_crosscoder import JOINT_HOOK_NAME, CrosscoderEvaluator, JointModel, Sources
from sae_lens_crosscoder.errors import ShapeError
from sae_lens_crosscoder.splicing import spliced_metrics

HOOK = "blocks.1.hook_resid_pre"
NAMES = ("explained_variance", "explained_variance_mean_of_ratios", "explained_variance_centred", "l0", "dead_latents")


def joint(combine: Any = "concat", other: Any = None, alignment: Any = "character_offsets") -> JointModel:
    """Two random models; with a tokenizer for the second one of its own if one is given."""
    sources = Sources((source("base"), source("chat")), combine, alignment)
    models = [
        tiny_model(0, dtype=torch.float64, tokenizer=fresh_tokenizer()),
        tiny_model(1, dtype=torch.float64, tokenizer=other or fresh_tokenizer()),
    ]
    return JointModel(sources, models)


def random_sae(d_in: int) -> StandardSAE:
    torch.manual_seed(3)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, dtype="float64", apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = JOINT_HOOK_NAME
    eye = torch.eye(d_in, dtype=torch.float64)
    sae.W_enc.data = torch.cat([eye, -eye], dim=1)
    sae.W_dec.data = torch.cat([eye, -eye]) + 0.2 * torch.randn(2 * d_in, d_in, dtype=torch.float64)
    return sae


def evaluator(model: JointModel, rows: torch.Tensor, **fields: Any) -> CrosscoderEvaluator:
    return CrosscoderEvaluator(model, {"text": rows}, {"text": 1.0}, 2, **fields)


@pytest.mark.parametrize("combine", ["concat", "difference"])
def test_on_one_tokenizer_all_metrics_are_those_of_saelens(combine: str) -> None:
    ids = torch.tensor(token_dataset(6)["input_ids"][:])
    aligned, usual = joint(combine), joint(combine, alignment="same_ids")
    sae = random_sae(usual.sources.d_in)
    rows = 4 * ids + 3  # every token is a place where the tokens of all models end together
    metrics = evaluator(aligned, rows).evaluate(sae)
    assert metrics.pop("token_alignment") == {"kept_share": {"base": 1.0, "chat": 1.0}}
    expected = evaluator(usual, ids).evaluate(sae)
    for label in ("base", "chat"):
        assert metrics["sources"][label] == pytest.approx(expected["sources"][label], rel=1e-9)
    assert {name: metrics[name] for name in NAMES} == pytest.approx({name: expected[name] for name in NAMES})


def test_on_one_tokenizer_bos_is_left_alone_as_saelens_leaves_excluded_tokens() -> None:
    texts = [sentence[:14] for sentence in SENTENCES]
    aligned, usual = joint(), joint(alignment="same_ids")
    sae = random_sae(32)
    for text in texts:
        metrics = evaluator(aligned, aligned.to_tokens(text)).evaluate(sae)
        expected = evaluator(usual, usual.to_tokens(text), excluded_tokens=(0,)).evaluate(sae)
        assert metrics["n_tokens"] == expected["n_tokens"]
        for name in ("ce_loss_with_sae", "ce_loss_without_sae", "kl_div_with_sae", "explained_variance"):
            for label in ("base", "chat"):
                value = expected["sources"][label][name]
                assert metrics["sources"][label][name] == pytest.approx(value, rel=1e-9)


def test_with_two_tokenizers_each_model_is_patched_at_the_places_of_its_own_tokens_alone() -> None:
    model, sae = joint(other=other_bpe()), random_sae(32)
    rows = model.to_tokens(SENTENCES)
    metrics = evaluator(model, rows).evaluate(sae)
    x_hat = sae(model(rows))
    for position, label in enumerate(("base", "chat")):
        own: Any = model.own_tokens(position, rows)
        part = x_hat[:, model.sources.columns(label)]
        places = own.is_aligned

        def patch(activation: torch.Tensor, hook: Any, part: Any = part, places: Any = places) -> torch.Tensor:
            return activation.masked_scatter(places[..., None], part)

        source_model: Any = model.source_models[position]
        logits, loss = source_model(own.ids, return_type="both", loss_per_token=True)
        patched = source_model.run_with_hooks(
            own.ids, return_type="both", loss_per_token=True, fwd_hooks=[(HOOK, patch)]
        )
        log_p, log_q = logits.log_softmax(-1)[places], patched.logits.log_softmax(-1)[places]
        followed = places[:, :-1] & ~own.is_padding[:, 1:]
        of_source = metrics["sources"][label]
        assert of_source["kl_div_with_sae"] == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
        assert of_source["ce_loss_without_sae"] == pytest.approx(loss[followed].mean().item())
        assert of_source["ce_loss_with_sae"] == pytest.approx(patched.loss[followed].mean().item())
        n_own = sum(len(ids) for ids in source_model.tokenizer(SENTENCES, add_special_tokens=False)["input_ids"])
        assert metrics["token_alignment"]["kept_share"][label] == pytest.approx(len(x_hat) / n_own)


def test_metrics_with_two_tokenizers_do_not_depend_on_the_batch_size() -> None:
    model, sae = joint(other=other_bpe()), random_sae(32)
    rows = model.to_tokens(SENTENCES)
    results = [CrosscoderEvaluator(model, {"t": rows}, {"t": 1.0}, size).evaluate(sae) for size in (1, 2, 5)]
    for label in ("base", "chat"):
        assert results[0]["sources"][label] == pytest.approx(results[1]["sources"][label], rel=1e-9)
        assert results[0]["sources"][label] == pytest.approx(results[2]["sources"][label], rel=1e-9)


def test_a_perfect_reconstruction_scores_one_and_none_at_all_scores_zero() -> None:
    model = joint(other=other_bpe())
    rows, sae = model.to_tokens(SENTENCES), random_sae(32)
    eye = torch.eye(32, dtype=torch.float64)
    sae.W_dec.data = torch.cat([eye, -eye])
    for expected in (1.0, 0.0):
        metrics = spliced_metrics(sae, model.view("chat"), [rows], ActivationScaler())
        assert metrics["ce_loss_score"] == pytest.approx(expected, abs=1e-9)
        assert metrics["kl_div_score"] == pytest.approx(expected, abs=1e-9)
        sae.W_dec.data.zero_()


def test_a_crosscoder_in_training_is_spliced_in_with_its_scaler() -> None:
    model, sae = joint(other=other_bpe()), random_sae(32)
    rows = model.to_tokens(SENTENCES)
    scaler = ActivationScaler(scaling_factor=2.0)
    sae.b_dec.data += 0.3
    scaled = spliced_metrics(sae, model.view("base"), [rows], scaler)
    sae.fold_activation_norm_scaling_factor(2.0)
    assert spliced_metrics(sae, model.view("base"), [rows], ActivationScaler()) == pytest.approx(scaled, rel=1e-5)


def test_models_that_read_the_same_ids_are_saelenss_to_measure() -> None:
    model = tiny_pair(dtype=torch.float64, tokenizer=tiny_tokenizer())
    with pytest.raises(ShapeError, match=r"all read the same ids. Measure them with SAELens's run_evals"):
        spliced_metrics(random_sae(32), model.view("base"), [model.to_tokens("the")], ActivationScaler())
