"""What a model diff is made of, and with which effort."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.activations import LabelledSequences, TokenRole
from sae_lens_crosscoder.causal.comparison import all_but_first
from sae_lens_crosscoder.diffing import ClassThresholds, ScalingThresholds
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.fingerprint import fingerprint
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
        lowest = {"n_kl_documents": 0, "n_equivalence": 0}
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, int) and value < lowest.get(field_.name, 1):
                raise ConfigError(f"{field_.name}={value} must be at least {lowest.get(field_.name, 1)}.")


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
        return all_but_first(tokens) & ~torch.isin(tokens, torch.tensor(self.excluded_tokens, dtype=torch.long))

    def first_sequences(self, budget_tokens: int) -> slice:
        """As many sequences as the budget pays for, at least one; every data set keeps its share."""
        return slice(0, max(1, budget_tokens // self.sequences.tokens.shape[1]))

    def fingerprint(self, config: DiffConfig) -> str:
        """Changes with the weights, the text, the dead latents and the effort: work on others is not taken for this."""
        described = {
            "config": asdict(config),
            "sae": self.sae.cfg.to_dict(),
            "sources": self.joint.sources.to_metadata(),
            "data": [*self.sequences.dataset_names],
            "excluded": list(self.excluded_tokens),
            "dead": None if self.dead is None else self.dead.nonzero()[:, 0].tolist(),
        }
        # The first sequence's activations stand for the models' weights.
        models = self.joint(self.sequences.tokens[:1])
        text = (self.sequences.tokens, self.sequences.roles, self.sequences.datasets)
        return fingerprint(described, (*self.sae.state_dict().values(), *text, models))


def predicts(is_group: Bool[Tensor, "*batch pos"]) -> Bool[Tensor, "*batch pos"]:
    """Positions at which a token of the group is predicted: each stands one before it."""
    shifted = torch.zeros_like(is_group)
    shifted[..., :-1] = is_group[..., 1:]
    return shifted


ROLES_OF_ANSWERS = {"first ten of an answer": TokenRole.ASSISTANT_START, "rest of an answer": TokenRole.ASSISTANT}
"""Groups of predicted tokens that causal tests report beside all of them, where there are chats."""
