"""What is fixed before training: which sources a latent may read and write, and which latents write alike into all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError, ShapeError
from sae_lens_crosscoder.training.parallel.latent_shard import LatentShard


@dataclass(frozen=True)
class LatentLayout:
    """Latents in the order shared | exclusive to source 0 | exclusive to source 1 | ... | free.

    The decoder rows of *shared* latents are the same in every source (designated shared latents: Anthropic, February
    2025 update). *Exclusive* latents read and write one source only (dedicated feature crosscoders: Jiralerspong and
    Bricken 2025). Free latents are those of a usual crosscoder.

    Raises:
        ConfigError: More latents than there are, exclusive latents of a source that is not read, an unknown source.
        ShapeError: Shared latents over sources of different width.
    """

    d_sae: int
    """Latents."""

    widths: Sequence[int]
    """Columns of each source."""

    n_shared: int = 0
    """Latents, from the first, with one decoder row for all sources."""

    n_exclusive: Sequence[int] = ()
    """Exclusive latents of each source; empty is none."""

    encoder_sources: Sequence[int] = ()
    """Positions of the sources that are read; empty is all."""

    def __post_init__(self) -> None:
        n_sources = len(self.widths)
        counts = [self.n_shared, *self.n_exclusive]
        if min(counts) < 0:
            raise ConfigError(
                f"n_shared_latents={self.n_shared} and n_exclusive_latents={list(self.n_exclusive)} must be 0 or more."
            )
        if sum(counts) > self.d_sae:
            raise ConfigError(
                f"n_shared_latents={self.n_shared} and n_exclusive_latents={list(self.n_exclusive)} make "
                f"{sum(counts)} designated latents, but there are d_sae={self.d_sae}. Designate at most that many."
            )
        if self.n_exclusive and len(self.n_exclusive) != n_sources:
            raise ConfigError(
                f"n_exclusive_latents={list(self.n_exclusive)} has {len(self.n_exclusive)} counts for {n_sources} "
                "sources. Give one count a source."
            )
        if self.n_shared and len(set(self.widths)) != 1:
            raise ShapeError(
                f"n_shared_latents={self.n_shared} gives latents one decoder row for all sources, but these have "
                f"widths {list(self.widths)}. Set it to 0."
            )
        self._check_encoder_sources()

    def check_written(self) -> None:
        """Raises:
        ConfigError: A source that no latent writes.
        """
        for source, n in enumerate(self.n_exclusive):
            if sum(self.n_exclusive) == self.d_sae and n == 0:
                raise ConfigError(
                    f"n_exclusive_latents={list(self.n_exclusive)} gives all d_sae={self.d_sae} latents to other "
                    f"sources: none would write source {source}, and it would never be reconstructed. Leave it some."
                )

    def _check_encoder_sources(self) -> None:
        read, n_sources = list(self.encoder_sources), len(self.widths)
        if len(set(read)) != len(read) or not all(0 <= source < n_sources for source in read):
            raise ConfigError(
                f"encoder_sources={read} must name different sources out of 0 to {n_sources - 1}; leave it empty to "
                "read all."
            )
        unread = [i for i, n in enumerate(self.n_exclusive) if n and read and i not in read]
        if unread:
            raise ConfigError(
                f"Source {unread[0]} has exclusive latents, but encoder_sources={read} does not read it: they would "
                "never fire. Read it, or give it none."
            )

    @property
    def is_free(self) -> bool:
        """Whether every latent may read and write everything."""
        return not (self.n_shared or any(self.n_exclusive) or self.encoder_sources)

    def part(self, shard: LatentShard) -> LatentLayout:
        """The layout of some of the latents."""
        n_shared, *n_exclusive = shard.counts([self.n_shared, *self.n_exclusive])
        return LatentLayout(len(shard), self.widths, n_shared, n_exclusive, self.encoder_sources)

    def unwritten_by_first(self, n_latents: int) -> list[int]:
        """Positions of the sources that none of the first latents may write."""
        if self.n_shared or n_latents > sum(self.n_exclusive):
            return []
        starts = [sum(self.n_exclusive[:source]) for source in range(len(self.n_exclusive))]
        blocks = enumerate(zip(starts, self.n_exclusive, strict=True))
        return [source for source, (start, n) in blocks if n == 0 or start >= n_latents]

    @torch.no_grad()
    def clear_encoder_(self, W_enc: Float[Tensor, "d_in d_sae"]) -> None:
        """Set to 0, in place, what latents may not read."""
        for source, rows in enumerate(W_enc.split(list(self.widths), dim=0)):
            if self.encoder_sources and source not in self.encoder_sources:
                rows.zero_()
            for latents in self._exclusive_elsewhere(source):
                rows[:, latents] = 0

    @torch.no_grad()
    def clear_decoder_(self, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Set to 0, in place, what latents may not write."""
        for source, columns in enumerate(W_dec.split(list(self.widths), dim=1)):
            for latents in self._exclusive_elsewhere(source):
                columns[latents] = 0

    @torch.no_grad()
    def tie_(self, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Copy, in place, the first source's part of shared rows into all sources."""
        if self.n_shared == 0:
            return
        first, *others = W_dec[: self.n_shared].split(list(self.widths), dim=1)
        for part in others:
            part.copy_(first)

    @torch.no_grad()
    def sum_tied_(self, gradient: Float[Tensor, "d_sae d_in"]) -> None:
        """Replace, in place, every source's part of shared rows by the sum over the sources."""
        if self.n_shared == 0:
            return
        parts = gradient[: self.n_shared].split(list(self.widths), dim=1)
        total = torch.stack(parts).sum(dim=0)
        for part in parts:
            part.copy_(total)

    def _exclusive_elsewhere(self, source: int) -> Iterator[slice]:
        """The latents that are exclusive to other sources, a block a source."""
        start = self.n_shared
        for owner, n in enumerate(self.n_exclusive):
            if n and owner != source:
                yield slice(start, start + n)
            start += n


def check_widths(source_widths: Sequence[int], d_in: int) -> None:
    """Raises:
    ShapeError: The widths of the sources do not add up to `d_in`.
    """
    if not source_widths:
        raise ShapeError(
            f"source_widths is empty: it is unknown which of the d_in={d_in} columns belong to which source. Set "
            "source_widths in the crosscoder's configuration, or pass sources to CrosscoderRunnerConfig, which does."
        )
    if sum(source_widths) != d_in or min(source_widths) < 1:
        raise ShapeError(
            f"d_in={d_in} is not the sum of the sources' widths {list(source_widths)} = {sum(source_widths)}. Set "
            f"d_in={sum(source_widths)}, or correct the widths."
        )
