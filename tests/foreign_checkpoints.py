"""Checkpoints in the formats of other systems, made of random weights, with the numbers that those systems give.

The numbers are worked out here in double precision from each system's formulas, not by the package's readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens import SAE
from safetensors.torch import save_file
from torch import Tensor

from sae_lens_crosscoder import Sources
from sae_lens_crosscoder.hub import load_crosscoder

D, J, N = 6, 12, 40


@dataclass
class Foreign:
    """A checkpoint on disk, and what its system makes of raw activations."""

    folder: Path
    x: Tensor
    codes: Tensor
    reconstructions: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def same_numbers(self, sae: Any) -> None:
        """Assert that the SAE gives them, with some latents that fire and some that do not."""
        codes = sae.encode(self.x.float())
        assert 0 < (self.codes > 0).sum() < self.codes.numel()
        torch.testing.assert_close(codes.double(), self.codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.decode(codes).double(), self.reconstructions, rtol=1e-5, atol=1e-5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape) + 31 * len(shape)))


def raw(*shape: int) -> Tensor:
    """Activations whose sources differ in scale and whose mean is not zero."""
    scales = torch.linspace(1, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return (random(N, *shape, seed=5).double() + 0.3) * scales.double()


def four(n: int = 2, d: int = D, n_latents: int = J, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """W_enc, W_dec, b_enc, b_dec of a crosscoder of `n` sources."""
    tensors = {
        "W_enc": random(n, d, n_latents, seed=1) / math.sqrt(n * d),
        "W_dec": random(n_latents, n, d, seed=2) * torch.linspace(0.5, 1.5, n_latents)[:, None, None],
        "b_enc": random(n_latents, seed=3) / 4,
        "b_dec": random(n, d, seed=4) / 4,
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def linear(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.einsum("nmd,mdj->nj", x, tensors["W_enc"].double()) + tensors["b_enc"].double()


def decoded(tensors: dict[str, Tensor], codes: Tensor) -> Tensor:
    return torch.einsum("nj,jmd->nmd", codes, tensors["W_dec"].double()) + tensors["b_dec"].double()


def top_k(z: Tensor, k: int) -> Tensor:
    values, places = z.relu().topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, places, values)


def save(folder: Path, weights: str, tensors: dict[str, Any], config: str, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if weights.endswith(".safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / weights)
    else:
        torch.save(tensors, folder / weights)
    text = yaml.dump(values) if config.endswith(".yaml") else json.dumps(values)
    (folder / config).write_text(text)
    return folder


def kissane(
    folder: Path, n: int = 2, dtype: torch.dtype = torch.float32, numbered: bool = False, d: int = D
) -> Foreign:
    tensors, x, scales = four(n, d, dtype=dtype), raw(n, d), [0.5 + i for i in range(n)]
    s = torch.tensor(scales).double()[:, None]
    codes = linear(tensors, x * s).relu()
    names = ("0.pt", "0_cfg.json") if numbered else ("cc_weights.pt", "cfg.json")
    config = {
        "d_in": d,
        "dict_size": J,
        "model_name": "gemma-2-2b",
        "site": "resid_pre",
        "hook_point": "blocks.14.hook",
    }
    path = save(folder / "version_0" if numbered else folder, names[0], tensors, names[1], config)
    return Foreign(path, x.flatten(1), codes, (decoded(tensors, codes) / s).flatten(1), {"scales": scales})


def nanda(folder: Path, n: int = 3) -> Foreign:
    tensors, x = four(n), raw(n, D)
    codes = linear(tensors, x).relu()
    config = {"dict_size": J, "model_name": "gpt2-small", "site": "resid_post"}
    path = save(folder, "lambda_2.pt", tensors, "lambda_2_cfg.json", config)
    return Foreign(path, x.flatten(1), codes, decoded(tensors, codes).flatten(1))


def through_time(folder: Path, n: int = 4) -> Foreign:
    tensors, x = four(n), raw(n, D)
    codes = linear(tensors, x).relu()
    path = save(folder, "cc_weights.pt", tensors, "cc_cfg.json", {"d_in": D, "dict_size": J, "n_models": n})
    return Foreign(path, x.flatten(1), codes, decoded(tensors, codes).flatten(1))


def openinterp(folder: Path) -> Foreign:
    tensors, x, scales = four(), raw(2, D), [0.6, 0.3]
    s = torch.tensor(scales).double()[:, None]
    z = linear(tensors, x * s - tensors["b_dec"].double())
    thresholds = random(J, seed=9).abs() / 2
    codes = z.relu() * (z > thresholds.double())
    config = {
        "base_model": "google/gemma-2-2b",
        "chat_model": "google/gemma-2-2b-it",
        "layer": 13,
        "d_model": D,
        "n_features": J,
        "norm_scale_A": scales[0],
        "norm_scale_B": scales[1],
    }
    path = save(folder, "crosscoder_final.safetensors", {**tensors, "threshold": thresholds}, "cfg.json", config)
    return Foreign(path, x.flatten(1), codes, (decoded(tensors, codes) / s).flatten(1))


def antebe(folder: Path, k: int = 4, masked: bool = True) -> Foreign:
    tensors, x, config = four(), raw(2, D), {"activation_dim": D, "dict_size": J, "k": k}
    codes = top_k(linear(tensors, x), k)
    config |= {"n_a": 2 * masked, "n_b": 2 * masked}
    saved = dict(tensors)
    if masked:
        mask = torch.ones(J, 2)
        mask[:2, 1], mask[2:4, 0] = 0, 0
        saved |= {"enc_mask": mask.T.contiguous(), "dec_mask": mask}
        tensors["W_dec"] = tensors["W_dec"] * mask[:, :, None]
    path = save(folder, "model.pt", saved, "config.json", config)
    return Foreign(path, x.flatten(1), codes, decoded(tensors, codes).flatten(1))


@dataclass
class DictionaryLearning:
    """A crosscoder of science-of-finetuning, BatchTopK if there is a threshold."""

    code_normalization: str = "CROSSCODER"
    threshold: float | None = 1.5
    normalised: bool = False
    dtype: torch.dtype = torch.float32
    prefix: str = ""
    n: int = 2
    reads: tuple[int, ...] | None = None
    files: tuple[str, str] = ("model.safetensors", "config.json")
    legacy: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    nested: bool = False

    def norms(self, W_dec: Tensor) -> Tensor:
        """c_j from W_dec (latents, sources, d)."""
        each, joint = W_dec.norm(dim=-1).sum(dim=-1), W_dec.flatten(1).norm(dim=-1)
        alpha = self.config.get("code_normalization_alpha_sae", 1.0)
        beta = self.config.get("code_normalization_alpha_cc", 0.1)
        ones = torch.ones_like(joint)
        return {"CROSSCODER": each, "SAE": joint, "MIXED": alpha * joint + beta * each}.get(
            self.code_normalization, ones
        )

    def write(self, folder: Path) -> Foreign:
        tensors, x = four(self.n, dtype=self.dtype), raw(self.n, D)
        read = list(range(self.n)) if self.reads is None else list(self.reads)
        W_dec = tensors["W_dec"].double()
        statistics, scales, inverse, mean = self._normaliser(x)
        inside = (x - mean) * scales[:, None]
        z = torch.einsum("nmd,mdj->nj", inside[:, read], tensors["W_enc"][: len(read)].double())
        codes = (z + tensors["b_enc"].double()).relu()
        if self.threshold is not None:
            codes = codes * (codes * self.norms(W_dec) > self.threshold)
        ids = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}
        saved = {
            "encoder.weight": tensors["W_enc"][: len(read)],
            "encoder.bias": tensors["b_enc"],
            "decoder.weight": tensors["W_dec"].movedim(1, 0),
            "decoder.bias": tensors["b_dec"],
        }
        if not self.legacy:
            saved |= {"code_normalization_id": torch.tensor(ids[self.code_normalization]), **statistics}
        if self.threshold is not None:
            per_source = self.code_normalization == "DECOUPLED"
            threshold = torch.tensor([self.threshold] * self.n if per_source else self.threshold, dtype=torch.float32)
            saved |= {"k": torch.tensor(4, dtype=torch.int32), "threshold": threshold}
        config: dict[str, Any] = {"activation_dim": D, "dict_size": J, "num_layers": self.n, **self.config}
        config["encoder_layers"] = None if self.reads is None else read
        if not self.legacy:
            config["code_normalization"] = self.code_normalization
        saved = {f"{self.prefix}{name}": tensor for name, tensor in saved.items()}
        path = save(folder, self.files[0], saved, self.files[1], {"trainer": config} if self.nested else config)
        reconstructions = decoded(tensors, codes) * inverse[:, None] + mean
        return Foreign(path, x.flatten(1), codes, reconstructions.flatten(1))

    def _normaliser(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """The buffers as saved, and the scale, its inverse and the mean that they stand for."""
        if not self.normalised:
            nothing = torch.full((self.n, D), math.nan)
            ones = torch.ones(self.n)
            statistics = {"activation_mean": nothing, "activation_std": nothing.clone()}
            statistics |= {"activation_global_scale": ones, "target_rms": torch.tensor(1.0)}
            return statistics, ones.double(), ones.double(), torch.zeros(self.n, D).double()
        mean, std = x.mean(dim=0).float(), x.std(dim=0).float()
        scale = 3 / (std.square().sum(dim=-1) + 1e-8).sqrt()
        statistics = {"activation_mean": mean, "activation_std": std}
        statistics |= {"activation_global_scale": scale, "target_rms": torch.tensor(3.0)}
        return statistics, scale.double(), 1 / (scale.double() + 1e-8), mean.double()


def difference_sae(folder: Path, run: str = "SAEdiff_ftb-1") -> Foreign:
    tensors, x = four(1), raw(1, D)
    mean, std = x.mean(dim=0)[0].float(), x.std(dim=0)[0].float()
    scale = 2 / (std.square().sum() + 1e-8).sqrt()
    inside = (x[:, 0] - mean.double()) * scale.double()
    b_dec = tensors["b_dec"][0]
    z = (inside - b_dec.double()) @ tensors["W_enc"][0].double() + tensors["b_enc"].double()
    codes = z.relu() * (z > 0.4)
    out = codes @ tensors["W_dec"][:, 0].double() + b_dec.double()
    saved = {
        "encoder.weight": tensors["W_enc"][0].T,
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"][:, 0].T,
        "b_dec": b_dec,
        "k": torch.tensor(4, dtype=torch.int32),
        "threshold": torch.tensor(0.4),
        "activation_mean": mean,
        "activation_std": std,
        "activation_global_scale": scale,
        "target_rms": torch.tensor(2.0),
    }
    trainer = {"dict_class": "BatchTopKSAE", "layer": 13, "activation_dim": D, "dict_size": J, "wandb_name": run}
    path = save(folder, "model_final.pt", saved, "config.json", {"trainer": trainer})
    return Foreign(path, x[:, 0], codes, out / (scale.double() + 1e-8) + mean.double())


@dataclass
class Crosscode:
    """A crosscoder of crosscode: two models at three hook points."""

    classname: str = "AnthropicSTEJumpReLUActivation"
    folded: bool = True
    biases: bool = True
    dtype: torch.dtype = torch.float32
    prefix: str = ""

    def write(self, folder: Path) -> Foreign:
        n = 6
        tensors, x = four(n, dtype=self.dtype), raw(n, D)
        factors = torch.linspace(0.2, 0.9, n)
        if not self.biases:
            tensors["b_enc"], tensors["b_dec"] = torch.zeros(J), torch.zeros(n, D)
        inside = x if self.folded else x * factors.double()[:, None]
        z, log_thresholds = linear(tensors, inside), random(J, seed=11) / 4 - 1
        options: dict[str, Any] = {} if self.folded else {"scales": factors.tolist()}
        config: dict[str, Any] = {}
        codes = z.relu()
        if "JumpReLU" in self.classname:
            codes = z * (z > log_thresholds.double().exp())
        elif self.classname == "TopkActivation":
            codes, config = top_k(z, 4), {"k": 4}
        elif self.classname == "BatchTopkActivation":
            kept = z.flatten().topk(3 * len(z)).values.min()
            codes, config = z * (z >= kept), {"k_per_example": 3}
            # Between the smallest value kept and the largest one dropped.
            options["threshold"] = float(kept + z[z < kept].max()) / 2
        saved = {
            "_W_enc_XiDiL": tensors["W_enc"].unflatten(0, (2, 3)),
            "_W_dec_LXoDo": tensors["W_dec"].unflatten(1, (2, 3)),
            "folded_scaling_factors_in_Xi": (factors if self.folded else torch.zeros(n)).view(2, 3),
            "folded_scaling_factors_out_Xo": (factors if self.folded else torch.zeros(n)).view(2, 3),
            "is_folded": torch.tensor(self.folded),
        }
        if self.biases:
            saved |= {"b_enc_L": tensors["b_enc"], "_b_dec_XoDo": tensors["b_dec"].unflatten(0, (2, 3))}
        if "JumpReLU" in self.classname:
            saved["_activation_fn.log_threshold_L"] = log_thresholds
        values = {
            "activation_fn": {"classname": self.classname, "cfg": config},
            "d_model": D,
            "n_latents": J,
            "n_models": 2,
            "n_hookpoints": 3,
            "use_encoder_bias": self.biases,
            "use_decoder_bias": self.biases,
        }
        saved = {f"{self.prefix}{name}": tensor for name, tensor in saved.items()}
        path = save(folder, "model.pt", saved, "model_cfg.yaml", values)
        out = decoded(tensors, codes)
        out = out if self.folded else out / factors.double()[:, None]
        return Foreign(path, x.flatten(1), codes, out.flatten(1), options)


def stagewise(folder: Path, names: str = "X") -> Foreign:
    """One model at four hook points, as it is saved now (X) or was in February 2025 (ML)."""
    tensors, x, factors = four(4), raw(4, D), torch.linspace(0.2, 0.9, 4)
    z, log_thresholds = linear(tensors, x), random(J, seed=11) / 4 - 1
    codes = z * (z > log_thresholds.double().exp())
    saved = {
        f"W_enc_{names}DH": tensors["W_enc"].unflatten(0, (1, 4)),
        f"W_dec_H{names}D": tensors["W_dec"].unflatten(1, (1, 4)),
        "b_enc_H": tensors["b_enc"],
        f"b_dec_{names}D": tensors["b_dec"].unflatten(0, (1, 4)),
        f"folded_scaling_factors_{names}": factors.view(1, 4),
        "hidden_activation.log_threshold_H": log_thresholds,
    }
    config: dict[str, Any] = {"d_model": D, "hidden_dim": J}
    if names == "X":
        saved["is_folded"] = torch.tensor(True)
        config |= {"crosscoding_dims": (1, 4), "hidden_activation_classname": "JumpReLUActivation"}
    else:
        config["hidden_activation"] = {"classname": "JumpReLUActivation", "cfg": {"size": J}}
    path = save(folder, "model.pt", saved, "model_cfg.yaml", config)
    return Foreign(path, x.flatten(1), codes, decoded(tensors, codes).flatten(1))


@dataclass
class Llamascopium:
    """A crosscoder of Llamascopium with as many heads as asked for."""

    act_fn: str = "relu"
    heads: int = 2
    equal_norms: bool = False
    norm_activation: str = "dataset-wise"
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Foreign:
        tensors, x = four(self.heads), raw(self.heads, D)
        if self.equal_norms:
            norms = 1.0 if self.act_fn == "topk" else torch.linspace(0.5, 2, J)[:, None, None]
            tensors["W_dec"] = tensors["W_dec"] / tensors["W_dec"].norm(dim=-1, keepdim=True) * norms
        hooks = [f"blocks.{i}.hook_resid_post" for i in range(self.heads)]
        average = torch.linspace(2, 5, self.heads)
        scales = math.sqrt(D) / average.double() if self.norm_activation == "dataset-wise" else torch.ones(self.heads)
        b_E = random(self.heads, J, seed=21) / 4
        tensors["b_enc"] = b_E.double().sum(dim=0)
        z, norms = linear(tensors, x * scales[:, None].double()), tensors["W_dec"].double().norm(dim=-1)
        log_thresholds = random(J, seed=11) / 4 - 1
        codes = z.relu()
        if self.act_fn == "jumprelu":
            codes = z * (z * norms[:, 0] > log_thresholds.double().exp())
        elif self.act_fn == "topk":
            codes = top_k(z, 4)
        saved = {
            "W_E": tensors["W_enc"],
            "b_E": b_E,
            "W_D": tensors["W_dec"].movedim(1, 0),
            "b_D": tensors["b_dec"],
            **{f"dataset_average_activation_norm.{hook}": norm for hook, norm in zip(hooks, average, strict=True)},
        }
        if self.act_fn == "jumprelu":
            saved["activation_function.log_jumprelu_threshold"] = log_thresholds
        config = {
            "sae_type": "crosscoder",
            "d_model": D,
            "expansion_factor": J / D,
            "act_fn": self.act_fn,
            "norm_activation": self.norm_activation,
            "hook_points": hooks,
            "top_k": 4,
            **self.config,
        }
        path = save(folder, "sae_weights.safetensors", saved, "config.json", config)
        reconstructions = decoded(tensors, codes) / scales[:, None].double()
        return Foreign(path, x.flatten(1), codes, reconstructions.flatten(1))


def load(made: Foreign, **options: Any) -> SAE[Any]:
    """The checkpoint as a SAE, with the options that it needs."""
    return load_crosscoder(made.folder, **{**made.options, **options})


def sources_of(sae: SAE[Any]) -> Sources:
    return Sources.from_metadata(sae.cfg.metadata)


BUILDERS: dict[str, Callable[[Path], Foreign]] = {
    "kissane": kissane,
    "nanda": nanda,
    "science-of-finetuning": lambda folder: DictionaryLearning(normalised=True).write(folder),
    "science-of-finetuning-diff-sae": difference_sae,
    "crosscode": lambda folder: Crosscode().write(folder),
    "stagewise-tinystories": stagewise,
    "antebe": lambda folder: antebe(folder, masked=False),
    "llamascopium": lambda folder: Llamascopium().write(folder),
    "openinterp": openinterp,
    "crosscoder-through-time": through_time,
}
"""One checkpoint a format."""
