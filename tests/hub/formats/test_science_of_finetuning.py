"""Crosscoders of science-of-finetuning: every normalisation that one SAE can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import D, DictionaryLearning, load, sources_of
from sae_lens import JumpReLUSAE, StandardSAE
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub import load_crosscoder

VARIANTS = {
    **{name: DictionaryLearning(name) for name in ("CROSSCODER", "SAE", "MIXED", "NONE")},
    "mixed_otherwise": DictionaryLearning(
        "MIXED", config={"code_normalization_alpha_sae": 0.4, "code_normalization_alpha_cc": 0.7}
    ),
    "normalised": DictionaryLearning("SAE", normalised=True),
    "relu": DictionaryLearning(threshold=None),
    "relu_decoupled": DictionaryLearning("DECOUPLED", threshold=None),
    "relu_normalised": DictionaryLearning(threshold=None, normalised=True),
    "float16": DictionaryLearning(dtype=torch.float16),
    "bfloat16": DictionaryLearning("SAE", dtype=torch.bfloat16, normalised=True),
    "compiled": DictionaryLearning(prefix="_orig_mod.", files=("model_final.pt", "config.json"), nested=True),
    "in_a_module": DictionaryLearning(prefix="crosscoder.module.", files=("checkpoint_200.pt", "config.json")),
    "legacy": DictionaryLearning(threshold=None, legacy=True, prefix="_orig_mod.", nested=True),
    "legacy_batchtopk": DictionaryLearning(legacy=True, files=("cc_weights.pt", "config.json"), nested=True),
    "three_sources": DictionaryLearning("SAE", n=3, normalised=True),
    "reads_the_second": DictionaryLearning(reads=(1,)),
    "reads_two_of_three": DictionaryLearning(n=3, reads=(2, 0), normalised=True),
    "keeps_all_positive": DictionaryLearning(threshold=0.0),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_crosscoders_of_science_of_finetuning_load_with_every_normalisation_that_one_sae_can_hold(
    variant: str, tmp_path: Path
):
    made = VARIANTS[variant].write(tmp_path)
    sae = load(made)
    made.same_numbers(sae)
    assert isinstance(sae, StandardSAE if VARIANTS[variant].threshold is None else JumpReLUSAE)


def test_batchtopk_thresholds_use_the_norms_from_before_folding(tmp_path: Path):
    sae = load(DictionaryLearning(normalised=True).write(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    norms = tensors["decoder.weight"].norm(dim=-1).sum(dim=0)
    torch.testing.assert_close(sae.threshold, 1.5 / norms)
    folded = torch.stack(sae.W_dec.split(D, dim=1)).norm(dim=-1).sum(dim=0)
    assert not torch.allclose(sae.threshold, 1.5 / folded, rtol=0.01)
    scales = tensors["activation_global_scale"].double().tolist()
    assert sources_of(sae).activation_scales == pytest.approx(scales)


def test_decoupled_batchtopk_is_refused_with_the_reason(tmp_path: Path):
    made = DictionaryLearning("DECOUPLED").write(tmp_path)
    with pytest.raises(CheckpointError, match=r"DECOUPLED codes.*one code a latent"):
        load(made)


def test_a_latent_without_decoder_norm_never_fires_under_a_batchtopk_threshold(tmp_path: Path):
    made = DictionaryLearning().write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["decoder.weight"][:, 3] = 0
    save_file(tensors, tmp_path / "model.safetensors")
    codes = load(made).encode(made.x.float())
    assert (made.codes[:, 3] > 0).any()
    assert not codes[:, 3].any()
    torch.testing.assert_close(codes[:, 4:].double(), made.codes[:, 4:], rtol=1e-5, atol=1e-5)


def test_a_threshold_that_was_never_measured_keeps_every_positive_latent_and_a_warning_says_so(tmp_path: Path):
    made = DictionaryLearning(threshold=-1.0).write(tmp_path)
    with pytest.warns(UserWarning, match="before it was measured"):
        sae = load(made)
    made.same_numbers(sae)


REFUSED_CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "two thresholds": ({"threshold": torch.ones(2)}, {}, "one number"),
    "an endless threshold": ({"threshold": torch.tensor(math.inf)}, {}, "NaN or infinite"),
    "an unknown code normalisation": ({"code_normalization_id": torch.tensor(7)}, {}, "code_normalization_id is 7"),
    "a code normalisation that is no number": (
        {"code_normalization_id": torch.tensor(math.nan)},
        {},
        "code_normalization_id is nan",
    ),
    "a code normalisation between two": ({"code_normalization_id": torch.tensor(1.5)}, {}, "code_normalization_id is"),
    "a code normalisation of odd digits": ({}, {"code_normalization": "²"}, "both must agree"),
    "two code normalisations": ({"code_normalization_id": torch.tensor(2)}, {}, "both must agree"),
    "a class without a threshold": ({}, {"dict_class": "CrossCoder"}, "do not belong together"),
    "a k without a threshold": ({"threshold": None}, {"k": 4}, "has no threshold"),
    "another width": ({}, {"activation_dim": D + 1}, "activation_dim=7, but the tensors have 6"),
    "a latent processor": ({}, {"latent_processor": "sparsemax"}, "function that changes the codes"),
    "a scale that does not fit": ({"activation_global_scale": torch.tensor([1.0, 2.0])}, {}, "do not fit each other"),
    "half a normaliser": ({"activation_mean": torch.zeros(2, D)}, {}, "do not fit each other"),
    "an encoder that reads nothing known": ({}, {"encoder_layers": [0, 0]}, "unclear which are read"),
    "lists of sources": ({}, {"encoder_layers": [[0], [1]]}, "unclear which are read"),
    "truths for sources": ({}, {"encoder_layers": [True, False]}, "unclear which are read"),
    "a layer that is no number": ({}, {"layer": {"a": 1}}, "layer = .* is not a whole number from 0 on"),
    "a source that is not there": ({}, {"encoder_layers": [0, 5]}, "unclear which are read"),
}


@pytest.mark.parametrize("change", REFUSED_CHANGES)
def test_contradictions_in_files_of_science_of_finetuning_are_refused(change: str, tmp_path: Path):
    made = DictionaryLearning().write(tmp_path)
    tensors, config, message = REFUSED_CHANGES[change]
    changed = {**load_file(tmp_path / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, tmp_path / "model.safetensors")
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, **config}))
    with pytest.raises(CheckpointError, match=message):
        load(made)


def test_the_trainers_configuration_is_read_beside_the_constructors(tmp_path: Path):
    made = DictionaryLearning(code_normalization="MIXED", config={"code_normalization_alpha_sae": 0.4}).write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    alpha = config.pop("code_normalization_alpha_sae")
    (tmp_path / "config.json").write_text(json.dumps({**config, "code_normalization_alpha_sae": None}))
    trainer = {"trainer": {"dict_class": "BatchTopKCrossCoder", "code_normalization_alpha_sae": alpha, "layer": 7}}
    (tmp_path / "trainer_config.json").write_text(json.dumps(trainer))
    sae = load(made)
    made.same_numbers(sae)
    assert sources_of(sae)[0].hook_name == "blocks.7.hook_resid_post"


def test_the_partition_of_a_dedicated_feature_crosscoder_stands_beside_its_weights(tmp_path: Path):
    made = DictionaryLearning(files=("model_final.pt", "config.json"), config={"dict_class": "DFC"}).write(tmp_path)
    tensors = torch.load(tmp_path / "model_final.pt", weights_only=True)
    torch.save({**tensors, "_partition_config": {"n_a": 2, "n_b": 2}}, tmp_path / "model_final.pt")
    made.same_numbers(load(made))


def test_one_of_several_training_checkpoints_is_named_by_its_id(tmp_path: Path):
    made = DictionaryLearning(files=("checkpoint_200.pt", "config.json")).write(tmp_path)
    torch.save({}, tmp_path / "checkpoint_100.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint_100\.pt, checkpoint_200\.pt"):
        load_crosscoder(tmp_path)
    made.same_numbers(load_crosscoder(tmp_path, "checkpoint_200"))
