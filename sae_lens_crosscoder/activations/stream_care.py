"""How the streams of a run are cared for: how often they are tried again, and which shards were left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sae_lens_crosscoder.errors import ConfigError, StreamError, WaitStopped, first_line

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 300.0
_LOOK_SECONDS = 0.2  # how soon a wait hears that the run is asked to stop


@dataclass(frozen=True)
class Patience:
    """How long a stream that breaks is tried again, and whether shards that cannot be decoded are left out.

    Raises:
        ConfigError: Less than no retries, or a wait that is not positive.
    """

    retries: int = 8
    """How often a stream is opened anew before the run ends, without a document in between."""

    retry_seconds: float = 1.0
    """The wait before the first retry; every further one is twice as long, up to five minutes."""

    skip_bad_shards: bool = False
    """Leave out the rest of a shard that cannot be decoded, in place of ending the run."""

    def __post_init__(self) -> None:
        if self.retries < 0 or not 0 < self.retry_seconds < float("inf"):
            raise ConfigError(
                f"stream_retries={self.retries} and stream_retry_seconds={self.retry_seconds} must be at least 0 and "
                "positive: a stream is opened anew that often, after waits that double."
            )

    def wait_seconds(self, n_failed: int) -> float:
        """The wait after so many failures, 1 or more."""
        # A power that a float cannot hold is an error in Python.
        return min(self.retry_seconds * 2.0 ** min(n_failed - 1, 1000), LONGEST_WAIT_SECONDS)


@dataclass
class StreamCare:
    """What all streams of a store share."""

    patience: Patience = field(default_factory=Patience)
    """How long they are tried again."""

    stops: list[Callable[[], bool]] = field(default_factory=list[Callable[[], bool]])
    """Asked several times a second while a stream, or a shard of the cache, is waited for: whether to stop."""

    skipped: list[str] = field(default_factory=list[str])
    """The shards that were left out, each named once."""

    def wait_to_retry(self, title: str, place: str, error: Exception, n_failed: int) -> None:
        """Tell that a data set broke, and wait for as long as its next retry asks.

        Args:
            title: The data set.
            place: Where it broke.
            error: What it said.
            n_failed: How often it has failed there, 1 or more.

        Raises:
            StreamError: All retries have failed.
            WaitStopped: The run was asked to stop.
        """
        retries = self.patience.retries
        if n_failed > retries:
            raise StreamError(
                f"Data set {title!r} broke at {place} and did not come back in {retries} retries: {first_line(error)}. "
                "Nothing of it was lost. Look at the connection, then start the run again with --resume auto: it goes "
                "on at this very place. With a larger stream_retries or stream_retry_seconds it waits longer."
            ) from error
        seconds = self.patience.wait_seconds(n_failed)
        logger.warning(
            "Data set %r broke at %s (%s). It is opened anew there in %.3g s, retry %d of %d.",
            *(title, place, first_line(error), seconds, n_failed, retries),
        )
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Wait.

        Raises:
            WaitStopped: The run was asked to stop.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check_stopped()
            time.sleep(min(left, _LOOK_SECONDS))
        self.check_stopped()

    def check_stopped(self) -> None:
        """Raises:
        WaitStopped: The run was asked to stop.
        """
        if any(is_asked() for is_asked in self.stops):
            raise WaitStopped("The run was asked to stop while it waited for data.")

    def skip(self, shard: str, reason: str) -> None:
        """Note that a shard is left out; warns of each once."""
        if shard not in self.skipped:
            self.skipped.append(shard)
            logger.warning(
                "Left out because of skip_bad_shards: %s (%s). The run trains without its text.", shard, reason
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamCare:
        # `datasets` copies the streams that it mixes; they are still those of one store.
        return self
