"""How a store harvests, drops and shuffles, and what it asks of a run's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from sae_lens_crosscoder._saelens import get_special_token_ids
from sae_lens_crosscoder.activations.datasets import DatasetConfig, SequenceFormat
from sae_lens_crosscoder.activations.stream_care import Patience
from sae_lens_crosscoder.errors import ConfigError


@dataclass(frozen=True)
class StoreConfig:
    """How a store harvests, drops and shuffles. Tokens are counted after BOS and special tokens were dropped."""

    sequence_format: SequenceFormat
    """How documents become sequences."""

    batch_size_tokens: int = 4096
    """Tokens of a training batch."""

    batch_size_prompts: int = 32
    """Sequences that go through the models at once."""

    buffer_tokens: int = 524_288
    """Tokens in the shuffle buffer: more mix better and take more memory."""

    mix_fraction: float = 0.5
    """Share of the buffer that is kept for the next shuffle; 0 does not shuffle."""

    dtype: str = "float32"
    """Dtype of the batches."""

    buffer_dtype: str | None = None
    """Dtype in the buffer; None is `dtype`. "bfloat16" halves the memory."""

    device: str = "cpu"
    """Where the buffer and the batches live."""

    seed: int = 42
    """Seed of the shuffle and of the mixture."""

    excluded_tokens: tuple[int, ...] = ()
    """Token ids whose activations are dropped."""

    excludes_special_tokens: bool = False
    """Where each model reads tokens of its own: drop positions at which any model reads a special token of its own."""

    max_norm_multiple: float | None = None
    """Drop tokens whose norm, in any source, is above this multiple of the batch's median norm; None keeps all."""

    n_eval_sequences: int = 0
    """Sequences at the head of each data set that are held out of training for evaluation."""

    seqpos_slice: tuple[int | None, ...] = (None,)
    """Positions of each sequence that are used, as the arguments of `slice`."""

    autocast_lm: bool = False
    """Run the models in bfloat16 autocast."""

    cached_activations_path: str | None = None
    """Cache of joint activations to read in place of running the models (see `disk_cache`); None runs them."""

    n_shards: int = 1
    """Parts into which the documents are divided, each with a store of its own."""

    shard: int = 0
    """Which of the parts this store reads."""

    n_ahead_prompts: int = 0
    """Sequences that can be harvested ahead of the batches beside those whose room served batches leave."""

    patience: Patience = field(default_factory=Patience)
    """How long a stream that breaks is tried again, and whether shards that cannot be decoded are left out."""

    def check_for_own_tokens(self) -> None:
        """Whether this can be done where each model reads tokens of its own.

        Raises:
            ConfigError: A field that means something only where all models read the same token ids.
        """
        separator = self.sequence_format.sequence_separator_token
        ids_differ = "one id is another token for each model"
        refused = (
            (bool(self.excluded_tokens), f"exclude_special_tokens as a list: {ids_differ}. Use True or False"),
            (isinstance(separator, int), f"sequence_separator_token={separator}: {ids_differ}. Use 'bos' or 'eos'"),
            (
                tuple(self.seqpos_slice) != (None,),
                "seqpos_slice: one position is another place of the text for each model. Leave it out",
            ),
        )
        for is_given, reason in refused:
            if is_given:
                raise ConfigError(f"token_alignment='character_offsets' does not go with {reason}.")


@runtime_checkable
class DescribesStore(Protocol):
    """A run's configuration, as far as the store reads it."""

    @property
    def dataset_configs(self) -> Sequence[DatasetConfig]:
        """The data sets of the mixture."""
        ...

    def store_config(self, tokenizer: Any) -> StoreConfig:
        """How activations are harvested, dropped and shuffled."""
        ...


def excluded_token_ids(excluded: bool | Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """The ids that `exclude_special_tokens` of a SAELens configuration means.

    True means BOS, EOS, padding and separator. The tokens of chat templates are kept, as SAELens keeps them: much of
    what chat fine-tuning changes happens on them.

    Raises:
        ConfigError: All special tokens are to be dropped, but there is no tokenizer that knows them.
    """
    if isinstance(excluded, bool):
        if not excluded:
            return ()
        if tokenizer is None:
            raise ConfigError(
                "exclude_special_tokens=True needs a tokenizer to know BOS and the special tokens. Give their ids as a "
                "list, or False to keep all tokens."
            )
        return tuple(sorted(get_special_token_ids(tokenizer)))
    return tuple(excluded)
