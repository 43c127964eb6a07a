"""What dashboards are made of: the models, their crosscoder and the text, and with which effort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.activations import PairedActivationsStore
from sae_lens_crosscoder.dashboards.token_strings import PADDING
from sae_lens_crosscoder.diffing import LinearDecoder
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.fingerprint import fingerprint
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.training.saved_run import SavedRun


@dataclass(frozen=True)
class DashboardConfig:
    """How much a dashboard shows, and how it is made.

    Raises:
        ConfigError: A number that is too small.
    """

    n_latents_per_page: int = 128
    """Latents of one page (and of one batch file). The memory for their activations is 12 bytes a token and latent."""

    n_sequences_at_once: int = 8
    """Sequences that go through the models at once."""

    n_top_contexts: int = 20
    """Contexts with the largest activations."""

    n_intervals: int = 5
    """Equal intervals between 0 and the largest activation, of each of which random contexts are shown."""

    n_contexts_per_interval: int = 5
    """Random contexts of each interval."""

    tokens_before: int = 16
    """Tokens of a context on a page before the one that it is about; batch files hold whole sequences."""

    tokens_after: int = 8
    """Tokens of a context on a page after the one that it is about."""

    n_logits: int = 10
    """Tokens whose logits a latent raises most, and as many that it lowers most."""

    fold_final_norm: bool = False
    """Whether a model's unembedding contains the weights of its final norm (and, for a LayerNorm, its centring)."""

    seed: int = 0
    """Seed of the random contexts."""

    cache_gb: float = 8.0
    """Disk that the activations may take while several pages are made; if they need more, each page runs the models."""

    def __post_init__(self) -> None:
        lowest = {"n_intervals": 0, "tokens_before": 0, "tokens_after": 0, "seed": 0, "cache_gb": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if value < lowest.get(field.name, 1) and not isinstance(value, bool):
                raise ConfigError(f"{field.name}={value} must be at least {lowest.get(field.name, 1)}.")


@dataclass(frozen=True)
class DashboardSubject:
    """The models, their crosscoder, and the text that latents are shown on.

    Contexts are shown in the tokens of the first source's model. Where each model reads tokens of its own
    (`token_alignment="character_offsets"`), a latent has no activation at tokens that end where another model's do not.

    Raises:
        DataError: No sequence of at least two tokens.
    """

    joint: JointModel
    sae: SAE[Any]
    tokens: Int[Tensor, "n_sequences row"]
    """What the joint model reads: sequences of equal length, or packed rows of `JointModel.to_tokens`."""

    excluded_tokens: tuple[int, ...] = ()
    """Token ids at which no activation counts, as in training; nor does the first token of a sequence."""

    dataset: str = ""
    """Where the text is from, for batch files."""

    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents that were dead at the end of training."""

    def __post_init__(self) -> None:
        if len(self.tokens) == 0 or self.shown_tokens.shape[1] < 2:
            raise DataError(
                f"There is nothing to show: the text has shape {tuple(self.tokens.shape)}, and a sequence needs "
                "at least two tokens, since the first (BOS, as a rule) is never shown."
            )

    @classmethod
    def of_run(
        cls, run: SavedRun, budget_tokens: int = 262_144, overrides: Mapping[str, Any] | None = None
    ) -> DashboardSubject:
        """The models, the crosscoder and the training text of a finished run.

        Args:
            run: The finished run.
            budget_tokens: Tokens of text; fewer if the data sets hold fewer.
            overrides: Fields of the run's configuration to change, such as the data sets.

        Raises:
            NotFoundError: A model or a data set that is not there, or a folder without the run's configuration.
            ConfigError: No tokens, or fields that the configuration does not have.
        """
        if budget_tokens < 1:
            raise ConfigError(f"budget_tokens={budget_tokens} must be at least 1: latents are shown on text.")
        place = {"device": run.device, "llm_device": None, "act_store_device": None}
        cfg = run.config({**(overrides or {}), **place})
        joint = JointModel.from_pretrained(run.sources, run.device)
        store = PairedActivationsStore.from_config(joint, cfg)
        rows: list[Tensor] = []
        for _ in range(max(1, budget_tokens // cfg.context_size)):
            try:
                rows.append(store.get_batch_tokens(1, raise_at_epoch_end=True))
            except StopIteration:
                break
        if not rows:
            raise DataError(f"The data sets give no sequence of {cfg.context_size} tokens. Lower context_size.")
        dataset = ", ".join(config.title for config in cfg.dataset_configs)
        return cls(joint, run.sae, torch.cat(rows).cpu(), store.cfg.excluded_tokens, dataset, run.dead)

    @cached_property
    def directions(self) -> Float[Tensor, "d_sae d_in"]:
        """What one unit of each latent adds to the reconstruction (see `LinearDecoder`)."""
        return LinearDecoder.of(self.sae).directions

    @cached_property
    def shown_tokens(self) -> Int[Tensor, "n_sequences context"]:
        """The tokens of the first source's model; `PADDING` after the end of a sequence."""
        own = self.joint.own_tokens(0, self.tokens)
        return self.tokens if own is None else own.ids.masked_fill(own.is_padding, PADDING)

    @cached_property
    def is_counted(self) -> Bool[Tensor, "n_sequences context"]:
        """Tokens at which activations count."""
        own = self.joint.own_tokens(0, self.tokens)
        counts = torch.ones_like(self.shown_tokens, dtype=torch.bool) if own is None else own.is_aligned.clone()
        counts[:, 0] = False
        return counts & ~torch.isin(self.shown_tokens, torch.tensor(self.excluded_tokens, dtype=torch.long))

    def fingerprint(self, config: DashboardConfig) -> str:
        """Changes with the weights, the text and the settings, so that pages of others are not taken for this one's."""
        settings = asdict(config)
        del settings["cache_gb"]
        described = {
            "config": settings,
            "sae": self.sae.cfg.to_dict(),
            "sources": self.joint.sources.to_metadata(),
            "excluded": list(self.excluded_tokens),
        }
        # The first sequence's activations stand for the models' weights.
        models = self.joint(self.tokens[:1])
        return fingerprint(described, (*self.sae.state_dict().values(), self.tokens, models))
