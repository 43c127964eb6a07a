"""Sources: which model is read at which hook, how wide, under which label, and how that is kept in SAE metadata.

A crosscoder's weights are flat, `W_dec (d_sae, d_in)`; which columns belong to which model stands here and nowhere
else. `Sources.from_metadata` is the only reader of `sae.cfg.metadata.sources`: SAELens's metadata returns None for
whatever is missing or misspelt, this reader raises.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from sae_lens_crosscoder.access_token import secret_in
from sae_lens_crosscoder.errors import SourceError
from sae_lens_crosscoder.fields import checked_fields

Combine = Literal["concat", "difference"]
"""How sources flow through the joint hook: side by side, or the second minus the first."""

TokenAlignment = Literal["same_ids", "character_offsets"]
"""How models read one text: as the same token ids, or each as tokens of its own, compared where those end together."""

TRUST_VARIABLE = "SAE_LENS_CROSSCODER_TRUST_REMOTE_CODE"
"""Variable of the environment by which a user lets files say `trust_remote_code`; in a configuration it does so itself.
"""

_SECRETS = {"token", "use_auth_token", "api_key", "password"}
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class Source:
    """One model read at one hook point: a slice of the crosscoder's `d_in`.

    Raises:
        SourceError: A label that cannot be a file or metric name, an empty model or hook name, a width that is not a
            positive integer, or an activation scale that is not positive.
    """

    label: str
    """Short name of the source in metrics, tables and files, such as "base" or "chat"."""

    model_name: str
    """Hub id, TransformerLens name or local folder of the model."""

    hook_name: str
    """Hook point that is read, such as "blocks.13.hook_resid_post"; for "AutoModelForCausalLM" a module's name."""

    d_in: int
    """Width of the activations at the hook."""

    model_class_name: str = "HookedTransformer"
    """How the model is loaded: "HookedTransformer", "AutoModelForCausalLM", "HookedMamba" or "TransformerBridge"."""

    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of the model's `from_pretrained`, such as {"dtype": "bfloat16"}."""

    device: str | None = None
    """Device that this source's model lives on; None is the run's `llm_device`."""

    activation_scale: float = 1.0
    """Factor that was folded into this source's weights: sqrt(width) / mean norm of its activations. 1 before."""

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not _LABEL.fullmatch(self.label):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SourceError(
                f"Source label {self.label!r} cannot name files and metrics. Use letters, digits, '_', '-' and '.', "
                "beginning with a letter or digit."
            )
        for name in ("model_name", "hook_name", "model_class_name"):
            if not getattr(self, name):
                raise SourceError(f"Source {self.label!r} has an empty {name}: say which one is read.")
        if isinstance(self.d_in, bool) or not isinstance(self.d_in, int) or self.d_in < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SourceError(f"Source {self.label!r} has width d_in={self.d_in!r}: it must be a positive integer.")
        # A torch.dtype is what loaders take, but no JSON; they take its name as well.
        kwargs = {
            name: str(value).removeprefix("torch.") if type(value).__name__ == "dtype" else value
            for name, value in self.model_from_pretrained_kwargs.items()
        }
        object.__setattr__(self, "model_from_pretrained_kwargs", kwargs)
        try:
            text = json.dumps(kwargs)
        except TypeError as error:
            raise SourceError(
                f"Source {self.label!r} has model_from_pretrained_kwargs that cannot be saved: {error}. "
                "Load the models yourself and pass override_model=JointModel(sources, models)."
            ) from error
        if secret_in(text) or any(isinstance(kwargs.get(name), str) for name in _SECRETS):
            raise SourceError(
                f"Source {self.label!r} has an access token or a password among its model_from_pretrained_kwargs. It "
                "would be written into every checkpoint, the saved crosscoder and the log. Take it out: log in with "
                "`hf auth login` or set HF_TOKEN, and HTTPS_PROXY for a proxy."
            )
        if not self.activation_scale > 0:
            raise SourceError(
                f"Source {self.label!r} has activation_scale={self.activation_scale!r}: it must be positive."
            )

    @property
    def model_key(self) -> tuple[Any, ...]:
        """What two sources must agree on to share one loaded model."""
        kwargs = tuple(sorted((key, repr(value)) for key, value in self.model_from_pretrained_kwargs.items()))
        return (self.model_class_name, self.model_name, kwargs, self.device)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """The source that `to_dict` wrote.

        Raises:
            SourceError: A field that is missing, unknown (the message suggests the nearest) or of another type.
        """
        if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SourceError(f"A source must be a mapping of its fields, not {type(values).__name__}: {values!r}.")
        return cls(**checked_fields(cls, values, f"Source {values.get('label', '')!r}", SourceError))

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-serialisable if `model_from_pretrained_kwargs` is."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Sources(Sequence[Source]):
    """The sources of one joint model, in the order of their columns.

    With `combine="concat"` the joint activation is all sources side by side and `d_in` is the sum of their widths.
    With `combine="difference"` it is the second source minus the first (fine-tuned minus base), as wide as each.
    With `token_alignment="character_offsets"` each model reads its own tokenizer's tokens (see `JointModel`).

    Raises:
        SourceError: No source, two with one label, or a difference of other than two sources of equal width.
    """

    sources: tuple[Source, ...]
    combine: Combine = "concat"
    token_alignment: TokenAlignment = "same_ids"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources:
            raise SourceError("There are no sources. Give one Source for each model (or layer) that is read.")
        if self.combine not in get_args(Combine):
            raise SourceError(f"combine={self.combine!r} is unknown. Use one of {', '.join(get_args(Combine))}.")
        if self.token_alignment not in get_args(TokenAlignment):
            known = ", ".join(get_args(TokenAlignment))
            raise SourceError(f"token_alignment={self.token_alignment!r} is unknown. Use one of {known}.")
        labels = self.labels
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise SourceError(f"Source labels must differ, but {', '.join(map(repr, twice))} stands more than once.")
        if self.combine == "difference":
            if len(self) != 2:
                raise SourceError(
                    f"combine='difference' subtracts the first source from the second and needs exactly two sources, "
                    f"not {len(self)} ({', '.join(labels)})."
                )
            if self[0].d_in != self[1].d_in:
                raise SourceError(
                    f"combine='difference' needs sources of equal width, but {labels[0]!r} has {self[0].d_in} and "
                    f"{labels[1]!r} has {self[1].d_in}. Use combine='concat' for sources of different width."
                )

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)

    def __getitem__(self, index: int) -> Source:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.sources[index]

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the columns."""
        return [source.label for source in self.sources]

    @property
    def widths(self) -> list[int]:
        """How many columns of the joint activation belong to each part: one part a source, or one for a difference."""
        if self.combine == "difference":
            return [self.sources[0].d_in]
        return [source.d_in for source in self.sources]

    @property
    def d_in(self) -> int:
        """Width of the joint activation."""
        return sum(self.widths)

    @property
    def activation_scales(self) -> list[float]:
        """The factor that was folded into each source's weights."""
        return [source.activation_scale for source in self.sources]

    @property
    def model_name(self) -> str:
        """The models' names in one, with only such characters as SAELens may put into the name of a W&B artifact."""
        names = dict.fromkeys(source.model_name for source in self)
        return "_and_".join(re.sub(r"[^\w.\-/]", "_", name) for name in names)

    def position(self, label: str) -> int:
        """Where the source with this label stands.

        Raises:
            SourceError: No source has this label.
        """
        if label not in self.labels:
            raise SourceError(f"There is no source {label!r}. The sources are {', '.join(map(repr, self.labels))}.")
        return self.labels.index(label)

    def pair(self, base: str | None = None, finetuned: str | None = None) -> tuple[str, str]:
        """Labels of two sources that are compared, the base first.

        Of two sources the first is the base if nothing else is named, and the other one follows from the one named.

        Raises:
            SourceError: A label that no source has, one label twice, or more than two sources and not both named.
        """
        labels = self.labels
        for label in (base, finetuned):
            if label is not None:
                self.position(label)
        if len(labels) == 2:
            base = base or labels[labels[0] == finetuned]
            finetuned = finetuned or labels[labels[0] == base]
        if base is None or finetuned is None or base == finetuned:
            raise SourceError(
                f"A comparison is between two of the sources {', '.join(labels)}, not between {base!r} and "
                f"{finetuned!r}. Name the base and the fine-tuned one."
            )
        return base, finetuned

    def columns(self, label: str) -> slice:
        """The columns of the joint activation that belong to the source with this label.

        For a difference both sources share all columns.
        """
        position = self.position(label)
        if self.combine == "difference":
            return slice(0, self.d_in)
        start = sum(self.widths[:position])
        return slice(start, start + self.widths[position])

    def with_activation_scales(self, scales: Sequence[float]) -> Sources:
        """These sources with the factors that were folded into their weights."""
        if len(scales) != len(self):
            raise SourceError(f"{len(scales)} activation scales were given for {len(self)} sources.")
        scaled = (dataclasses.replace(s, activation_scale=float(g)) for s, g in zip(self, scales, strict=True))
        return dataclasses.replace(self, sources=tuple(scaled))

    def unscaled(self) -> Sources:
        """These sources as they are before any factor is folded into weights."""
        return self.with_activation_scales([1.0] * len(self))

    @classmethod
    def from_dicts(
        cls,
        values: Sequence[Source | Mapping[str, Any]],
        combine: str = "concat",
        token_alignment: str = "same_ids",
    ) -> Sources:
        """Sources from a list of their fields, as they stand in configuration files."""
        if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SourceError(f"sources must be a list with one mapping a source, not {type(values).__name__}.")
        sources = tuple(v if isinstance(v, Source) else Source.from_dict(v) for v in values)
        return cls(sources, cast(Combine, combine), cast(TokenAlignment, token_alignment))

    def to_metadata(self) -> dict[str, Any]:
        """The entries that SAE metadata carries: `sources` (in column order), `combine` and `token_alignment`."""
        return {
            "sources": [source.to_dict() for source in self.sources],
            "combine": self.combine,
            "token_alignment": self.token_alignment,
        }

    @classmethod
    def from_metadata(cls, metadata: Any) -> Sources:
        """Read the sources from `sae.cfg.metadata` or from the `metadata` of a `cfg.json`.

        Metadata without `token_alignment` are those of models that read the same ids.

        Raises:
            SourceError: The metadata hold no sources (the SAE is no crosscoder, or they were lost), or a field is
                missing or misspelt.
        """
        entries: Any = metadata if isinstance(metadata, Mapping) else vars(metadata)
        entries = cast("Mapping[str, Any]", entries)
        for key in ("sources", "combine"):
            if entries.get(key) is None:
                raise SourceError(
                    f"The SAE's metadata have no {key!r}, so it is unknown which columns belong to which model. "
                    "Crosscoders of this package carry it; for others set it with `sae.cfg.metadata.sources = ...` "
                    "from Sources(...).to_metadata()."
                )
        alignment = entries.get("token_alignment")
        read = cls.from_dicts(entries["sources"], entries["combine"], "same_ids" if alignment is None else alignment)
        read.check_trusted()
        return read

    def check_trusted(self) -> None:
        """Whether sources that were read from a file, of whoever wrote it, load models without running their code.

        Raises:
            SourceError: A source says `trust_remote_code`, and `TRUST_VARIABLE` is not set in the environment.
        """
        for source in self.sources:
            if source.model_from_pretrained_kwargs.get("trust_remote_code") and not os.environ.get(TRUST_VARIABLE):
                raise SourceError(
                    f"The file of this crosscoder wants code from {source.model_name!r} to be run when the model of "
                    f"source {source.label!r} is loaded (trust_remote_code). Whoever wrote the file could run anything "
                    f"on this machine. If you trust its author and the model's, set {TRUST_VARIABLE}=1."
                )
