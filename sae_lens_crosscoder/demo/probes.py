"""Linear probes: what each model represents at the hook, before any latent is called one model's own."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sae_lens_crosscoder.demo.documents import Corpus, generator
from sae_lens_crosscoder.joint_model import JointModel


def probe_aurocs(joint: JointModel, corpus: Corpus, seed: int, n: int = 1500) -> dict[str, float]:
    """Held-out AUROC, for each source, of a linear probe for the planted state: do the two words match?

    Read where the second word ends, on triggers and decoys in equal numbers; trained on documents of the training text
    and measured on held-out text. 0.5 is chance.
    """
    parts: list[tuple[list[Tensor], Tensor]] = []
    for held_out in (False, True):
        rng = generator(seed, f"probe, held out {held_out}")
        documents = corpus.of_kinds(["trigger", "decoy"], n, rng, held_out)
        rows = torch.arange(len(documents.tokens))
        states = [acts.cpu()[rows, documents.at] for acts in joint.source_activations(documents.tokens)]
        parts.append((states, documents.matches == 1))
    (x, y), (x_test, y_test) = parts
    return {label: auroc(linear_probe(x[i], y, x_test[i]), y_test) for i, label in enumerate(joint.sources.labels)}


def linear_probe(
    x: Float[Tensor, "n d"], y: Bool[Tensor, " n"], x_test: Float[Tensor, "m d"], decay: float = 1e-3
) -> Float[Tensor, " m"]:
    """Scores on test points of a logistic regression on standardised inputs."""
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weight = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight + bias, y.float()) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return (x_test @ weight).detach()


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Probability that a positive scores above a negative, ties counted half (area under the ROC curve)."""
    negatives = scores[~positive].sort().values.contiguous()
    above = torch.searchsorted(negatives, scores[positive].contiguous())
    not_below = torch.searchsorted(negatives, scores[positive].contiguous(), right=True)
    return ((above + not_below).double() / (2 * len(negatives))).mean().item()
