"""The latents that a rank holds: a run of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from sae_lens_crosscoder.errors import ConfigError


@dataclass(frozen=True)
class LatentShard:
    """The latents from `start` up to `stop`."""

    start: int
    """The first of them."""

    stop: int
    """The first after them."""

    @classmethod
    def of_rank(cls, d_sae: int, rank: int, n_ranks: int) -> LatentShard:
        """The latents of a rank: equally many for each, in the order of ranks.

        Raises:
            ConfigError: Latents that cannot be divided equally.
        """
        if d_sae % n_ranks:
            raise ConfigError(
                f"d_sae={d_sae} latents cannot be divided equally among {n_ranks} processes: each would hold another "
                f"number, and all would wait for the largest. Use d_sae={d_sae // n_ranks * n_ranks + n_ranks}, or "
                "another number of processes."
            )
        n = d_sae // n_ranks
        return cls(rank * n, (rank + 1) * n)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The same as a slice."""
        return slice(self.start, self.stop)

    def position(self, latent: int) -> int:
        """How many of these latents stand before a latent of the whole dictionary."""
        return min(max(latent - self.start, 0), len(self))

    def counts(self, sizes: Iterable[int]) -> list[int]:
        """How many of these latents are in each of consecutive groups, the first of which begins at latent 0."""
        ends = [self.position(end) for end in itertools.accumulate(sizes)]
        return [end - start for start, end in itertools.pairwise([0, *ends])]
