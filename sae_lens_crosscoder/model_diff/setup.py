"""What a model diff is made of, and with which effort."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.activations import LabelledSequences, TokenRole
from sae_lens_crosscoder.diffing import ClassThresholds, ScalingThresholds
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.joint_model import JointModel


@dataclass(frozen=True)
class DiffConfig:
    """How much is read, tested and kept.

    Raises:
        ConfigError: A number that must be positive and is not.
    """

    base: str | None = None
    """Label of the base model; None is the first source."""

    finetuned: str | None = None
    """Label of the fine-tuned model; None is the second source."""

    budget_tokens: int = 1_000_000
    """Tokens that latents are read on: scaling, statistics and contexts."""

    kl_budget_tokens: int = 65_536
    """Tokens on which the KL of the models is measured and attributed; each is read about a dozen times."""

    causal_budget_tokens: int = 16_384
    """Tokens on which single latents are removed and sets of latents are patched; each is read hundreds of times."""

    n_sequences_at_once: int = 8
    """Sequences that go through the models at once."""

    n_contexts: int = 8
    """Top activating contexts of every latent."""

    n_kl_documents: int = 24
    """Sequences with the largest KL that are shown with their latents."""

    n_path_points: int = 4
    """Points of the path from the base model's activations to the fine-tuned model's that KL is attributed along."""

    n_exact: int = 24
    """Latents whose attribution is also measured exactly."""

    n_equivalence: int = 24
    """Shared latents that are ablated in both models to see whether they are used alike."""

    class_thresholds: ClassThresholds = field(default_factory=ClassThresholds)
    """Where classes by decoder norm begin."""

    scaling_thresholds: ScalingThresholds = field(default_factory=ScalingThresholds)
    """Where latent scaling calls an exclusive latent an artefact."""

    def __post_init__(self) -> None:
        for name in ("budget_tokens", "kl_budget_tokens", "causal_budget_tokens", "n_sequences_at_once", "n_contexts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive.")


@dataclass(frozen=True)
class DiffSubject:
    """The models, their crosscoder, and the text that they are compared on."""

    joint: JointModel
    sae: SAE[Any]
    sequences: LabelledSequences
    excluded_tokens: tuple[int, ...] = ()
    """Token ids that nothing is counted on, as in training."""

    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents that were dead at the end of training."""

    def counted(self, rows: slice) -> Bool[Tensor, "n_sequences context"]:
        """Tokens that count: neither the first of a sequence nor excluded."""
        tokens = self.sequences.tokens[rows]
        counted = ~torch.isin(tokens, torch.tensor(self.excluded_tokens, dtype=torch.long))
        counted[:, 0] = False
        return counted

    def first_sequences(self, budget_tokens: int) -> slice:
        """As many sequences as the budget pays for, at least one; every data set keeps its share."""
        return slice(0, max(1, budget_tokens // self.sequences.tokens.shape[1]))

    def fingerprint(self, config: DiffConfig) -> str:
        """Changes with the weights, the text and the effort, so that work on others is not taken for this one's."""
        digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True, default=str).encode())
        for tensor in (self.sae.W_dec, self.sae.W_enc, self.sequences.tokens.float()):
            weights = torch.arange(1, tensor.shape[0] + 1, dtype=torch.float64, device=tensor.device)
            digest.update(repr(float((tensor.detach().double().sum(dim=1) * weights).sum())).encode())
        return digest.hexdigest()[:16]


ROLES_OF_ANSWERS = {"first ten of an answer": TokenRole.ASSISTANT_START, "rest of an answer": TokenRole.ASSISTANT}
"""Groups of tokens that causal tests report beside all of them, where there are chats."""
