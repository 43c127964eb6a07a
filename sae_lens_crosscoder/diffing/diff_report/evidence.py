"""What the page shows beside numbers: contexts in which latents fire, logit lenses, and documents with their KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.errors import DataError, ShapeError

PADDING = -1
"""Token id of positions that a context does not have."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """Pieces of text in which latents fire. The page shows activations in 127 steps of the latent's largest.

    Raises:
        ShapeError: Not one row of tokens and of activations and one data set for every context.
    """

    latents: Int[Tensor, " n_contexts"]
    """The latent that each context is shown for; a latent's contexts are shown in this order."""

    token_ids: Int[Tensor, "n_contexts n_tokens"]
    """Tokens of each context; -1 where a context is shorter than the others."""

    activations: Float[Tensor, "n_contexts n_tokens"]
    """Activation of that latent at every token; ignored at -1."""

    datasets: Sequence[str]
    """Data set that each context is from; contexts of one data set are shown together."""

    def __post_init__(self) -> None:
        n_contexts = len(self.latents)
        if self.token_ids.shape != self.activations.shape or {len(self.token_ids), len(self.datasets)} != {n_contexts}:
            raise ShapeError(
                f"There are {n_contexts} contexts, tokens of shape {tuple(self.token_ids.shape)}, activations of shape "
                f"{tuple(self.activations.shape)} and {len(self.datasets)} data sets: pass one row and one data set "
                "for every context."
            )


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The tokens that one source's decoder row raises and lowers most, best first, for some or all latents.

    Raises:
        ShapeError: Ids and values of different shape, or not one row for every latent.
    """

    latents: Int[Tensor, " n_latents"]
    top_ids: Int[Tensor, "n_latents n_tokens"]
    """Tokens whose logit the latent raises most."""

    top_values: Float[Tensor, "n_latents n_tokens"]
    """Change of their logit per unit of activation."""

    bottom_ids: Int[Tensor, "n_latents n_tokens"]
    """Tokens whose logit the latent lowers most."""

    bottom_values: Float[Tensor, "n_latents n_tokens"]
    """Change of their logit per unit of activation."""

    def __post_init__(self) -> None:
        shapes = {tuple(part.shape) for part in (self.top_ids, self.top_values, self.bottom_ids, self.bottom_values)}
        if len(shapes) > 1 or len(self.top_ids) != len(self.latents):
            raise ShapeError(
                f"A logit lens of {len(self.latents)} latents needs ids and values of one shape with as many rows, and "
                f"these have {sorted(shapes)}."
            )


@dataclass(frozen=True, eq=False)
class KLDocument:
    """A text with the KL of the models' predictions at every token, and which latents carry it.

    Raises:
        ShapeError: Parts that do not fit the number of tokens or of latents.
    """

    token_ids: Int[Tensor, " n_tokens"]
    kl: Float[Tensor, " n_tokens"]
    """KL(finetuned || base), in nats, of what is predicted to follow each token; NaN where it does not count."""

    top_ids: Int[Tensor, "n_sources n_tokens n_next"]
    """The most probable next tokens after each token, best first, for every source in the order of the labels."""

    top_probabilities: Float[Tensor, "n_sources n_tokens n_next"]
    """Their probabilities, shown in steps of 1/65,535."""

    latents: Int[Tensor, " n_latents"]
    """The latents that carry most of this document's KL."""

    attributions: Float[Tensor, "n_latents n_tokens"]
    """KL attribution of those latents at every token, in nats; shown in 127 steps of the latent's largest."""

    dataset: str = ""
    """Where the document is from."""

    def __post_init__(self) -> None:
        n_tokens, n_latents = len(self.token_ids), len(self.latents)
        fits = (
            n_tokens > 0
            and len(self.kl) == n_tokens == self.top_ids.shape[1]
            and self.top_ids.shape == self.top_probabilities.shape
            and self.attributions.shape == (n_latents, n_tokens)
        )
        if not fits:
            raise ShapeError(
                f"A document of {n_tokens} tokens and {n_latents} latents has KL of shape {tuple(self.kl.shape)}, next "
                f"tokens of shape {tuple(self.top_ids.shape)} with probabilities of shape "
                f"{tuple(self.top_probabilities.shape)}, and attributions of shape {tuple(self.attributions.shape)}: "
                "pass (n_tokens,), twice (n_sources, n_tokens, n_next), and (n_latents, n_tokens)."
            )


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything on the page that consists of tokens, and the strings of those tokens.

    Raises:
        DataError: A token id that has no string.
    """

    tokens: Mapping[int, str] = field(default_factory=dict[int, str])
    """String of every token id that occurs, decoded, with leading spaces; more may be in it."""

    contexts: Contexts | None = None
    logit_lens: Mapping[str, LogitLens] = field(default_factory=dict[str, LogitLens])
    """One lens a source, by its label."""

    kl_documents: Sequence[KLDocument] = ()
    """Their order is their number in the page's addresses (`#kl=0`); the page sorts them by KL."""

    def __post_init__(self) -> None:
        missing = [token for token in self.token_ids if token not in self.tokens]
        if missing:
            raise DataError(
                f"{len(missing)} token ids have no string, the first ones {missing[:5]}: they could not be shown. Pass "
                "the decoded string of every id in `tokens`."
            )

    @property
    def token_ids(self) -> list[int]:
        """All token ids that occur, in ascending order."""
        parts = [] if self.contexts is None else [self.contexts.token_ids]
        for lens in self.logit_lens.values():
            parts += [lens.top_ids, lens.bottom_ids]
        for document in self.kl_documents:
            parts += [document.token_ids, document.top_ids]
        return sorted({token for part in parts for token in part.unique().tolist()} - {PADDING})

    @property
    def latents(self) -> list[int]:
        """All latents that something is shown for, in ascending order."""
        parts = [] if self.contexts is None else [self.contexts.latents]
        parts += [lens.latents for lens in self.logit_lens.values()]
        parts += [document.latents for document in self.kl_documents]
        return sorted({latent for part in parts for latent in part.unique().tolist()})
