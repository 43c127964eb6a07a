"""What the models do: how often they say the payload, as they are and with latents removed at the hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.demo.documents import KINDS, Corpus, generator
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModel, JointModelView

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind, each followed by the payload and padded on the right.

    With the payload fed in, greedy generation says the whole payload if and only if the best token at every position
    before one of its tokens is that token: up to the first miss both runs see the same tokens, and the models are
    causal. So one forward pass measures generation exactly.
    """

    tokens: Int[Tensor, "n_prompts length"]
    """Prompt, payload, padding."""

    predicts: Int[Tensor, "n_prompts n_payload"]
    """Positions that predict the tokens of the payload."""

    payload: Int[Tensor, " n_payload"]
    """The payload."""

    @classmethod
    def of_kind(cls, corpus: Corpus, kind: str, n: int, seed: int) -> Prompts:
        """Held-out prompts that end with the phrase of the kind; plain ones after half a document."""
        documents = corpus.of_kinds([kind], n, generator(seed, f"prompts, {kind}"))
        ends = [corpus.context // 2 if at < 0 else at + 1 for at in documents.at.tolist()]
        rows = [row[:end] + corpus.payload for row, end in zip(documents.tokens.tolist(), ends, strict=True)]
        length = max(map(len, rows))
        tokens = torch.tensor([row + [corpus.bos] * (length - len(row)) for row in rows])
        predicts = torch.tensor(ends)[:, None] - 1 + torch.arange(len(corpus.payload))
        return cls(tokens, predicts, torch.tensor(corpus.payload))

    @property
    def read(self) -> Bool[Tensor, "n_prompts length"]:
        """Positions that greedy generation has read by the time that it says the payload's last token, without BOS."""
        positions = torch.arange(self.tokens.shape[1])
        return (positions <= self.predicts[:, -1:]) & (positions > 0)


@torch.no_grad()
def payload_rate(logits: Logits, prompts: Prompts) -> float:
    """Share of the prompts after which greedy generation says the whole payload."""
    best = logits(prompts.tokens).argmax(dim=-1).cpu()
    return (best.gather(1, prompts.predicts) == prompts.payload).all(dim=1).float().mean().item()


def logits_of(view: JointModelView) -> Logits:
    """Logits of one model of a pair as it is."""
    return lambda tokens: view(tokens, return_type="logits")


def logits_without(view: JointModelView, sae: SAE[Any], latents: Int[Tensor, " n_latents"]) -> Logits:
    """Logits of one model of a pair with latents removed: x - sum over the latents of f_j d_j, at every position."""
    rows = sae.W_dec[latents]

    def remove(joint: Tensor, hook: Any) -> Tensor:
        return joint - sae.encode(joint)[..., latents] @ rows

    return lambda tokens: view.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(JOINT_HOOK_NAME, remove)])


@torch.no_grad()
def rates_without_random(
    view: JointModelView, sae: SAE[Any], prompts: Prompts, excluded: Int[Tensor, " n_latents"], seed: int
) -> list[float]:
    """Payload rates after removing as many random latents as `excluded` has, twenty times (`random_sets`)."""
    codes = latent_activations(view, sae, prompts.tokens)
    draws = random_sets(codes, prompts, excluded.tolist(), generator(seed, "random latents"))
    return [payload_rate(logits_without(view, sae, latents), prompts) for latents in draws]


def random_sets(
    codes: Float[Tensor, "n_prompts length d_sae"], prompts: Prompts, excluded: Sequence[int], rng: torch.Generator
) -> list[Int[Tensor, " n_latents"]]:
    """Twenty sets of as many random latents as `excluded` has, of those that fire on the prompts and are not in it."""
    fires = (codes[prompts.read.to(codes.device)] > 0).any(dim=0)
    fires[list(excluded)] = False
    candidates = fires.nonzero()[:, 0]
    return [candidates[torch.randperm(len(candidates), generator=rng)[: len(excluded)]] for _ in range(20)]


@torch.no_grad()
def latent_activations(
    model: JointModel | JointModelView, sae: SAE[Any], tokens: Int[Tensor, "n length"]
) -> Float[Tensor, "n length d_sae"]:
    """Latent activations on the tokens."""
    return sae.encode(model(tokens, return_type=None).to(sae.device))


def measured_rates(joint: JointModel, corpus: Corpus, n: int, seed: int) -> dict[str, float]:
    """The behaviour of both models: payload rate with the trigger, and without it in every way of being without."""
    prompts = {kind: Prompts.of_kind(corpus, kind, n, seed) for kind in KINDS}
    finetuned, base = logits_of(joint.view("finetuned")), logits_of(joint.view("base"))
    rates = {kind: payload_rate(finetuned, prompts[kind]) for kind in KINDS}
    without = [rates[kind] for kind in KINDS if kind != "trigger"]
    return {
        "payload_rate_triggered": rates["trigger"],
        "payload_rate_plain": sum(without) / len(without),
        "payload_rate_plain_text": rates["plain"],
        "payload_rate_decoy": rates["decoy"],
        "payload_rate_single_word": rates["single"],
        "base_payload_rate_triggered": payload_rate(base, prompts["trigger"]),
    }


@torch.no_grad()
def largest_gap_when_patched(joint: JointModel, corpus: Corpus, seed: int) -> float:
    """Largest difference of logits between the fine-tuned model and the base patched with its activations at the hook.

    0 means that everything fine-tuning changed passes through the hook.
    """
    tokens = corpus.mixture(32, generator(seed, "patching"), held_out=True).tokens
    columns = {label: joint.sources.columns(label) for label in joint.sources.labels}

    def patch(activations: Tensor, hook: Any) -> Tensor:
        patched = activations.clone()
        patched[..., columns["base"]] = activations[..., columns["finetuned"]]
        return patched

    patched = joint.view("base").run_with_hooks(tokens, return_type="logits", fwd_hooks=[(JOINT_HOOK_NAME, patch)])
    return (patched - joint.view("finetuned")(tokens)).abs().max().item()
