"""The errors this package raises on purpose, as one tree.

Every one of them is also the built-in error that fits (`ValueError`, `FileNotFoundError`, ...), so callers that do
not know this package catch them as usual. Each message says what is wrong with the values, what it would cause, and
what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CrosscoderError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(CrosscoderError, ValueError):
    """A configuration that cannot be run, or that would give wrong results."""


class FinishedError(ConfigError):
    """A run that was started again although it has been finished."""


class ShapeError(CrosscoderError, ValueError):
    """Tensors or widths that do not fit together."""


class SourceError(CrosscoderError, ValueError):
    """Sources that are missing, misspelt or do not fit each other or their models."""


class VocabularyError(SourceError):
    """Models that do not share one vocabulary, so that one token id means two things."""


class DataError(CrosscoderError, ValueError):
    """A data set that cannot be read as configured, or that is too small."""


class CheckpointError(CrosscoderError, ValueError):
    """A checkpoint that is damaged, hostile, of unknown format, or that no SAE can hold."""


class DamagedError(DataError):
    """A file or folder that is not what was written: cut off, changed, or never finished."""


class StreamError(DataError):
    """A stream of documents that broke and did not come back; what was read so far is intact."""


class MemoryFullError(CrosscoderError, MemoryError):
    """A device has no memory left for what the configuration asks of it."""


class NotFoundError(CrosscoderError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class SaveError(CrosscoderError, OSError):
    """Writing failed; what was there before is untouched."""


class HubError(CrosscoderError, ConnectionError):
    """The Hugging Face Hub cannot be reached or refuses; nothing on it is half-changed."""


class UploadError(CrosscoderError, ConnectionError):
    """A service that refused what was sent, or that could not be reached."""


class LostProcessError(CrosscoderError, ConnectionError):
    """Another process of a run on several was lost, or did not answer in time."""


class MissingDependencyError(CrosscoderError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class DivergedError(CrosscoderError, ArithmeticError):
    """Training gave a loss or weights that are infinite or not a number."""


class NonFiniteError(DataError):
    """Activations that are infinite or not a number.

    Args:
        message: What happened.
        batch: Tokens and activations of the forward pass, by name.
    """

    def __init__(self, message: str, batch: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch


class TrainingInterrupted(CrosscoderError):
    """Training was asked to stop (SIGINT or SIGTERM).

    Args:
        message: What happened.
        checkpoint: The checkpoint that was saved; None if there was no path for one.
    """

    def __init__(self, message: str, checkpoint: str | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class WaitStopped(CrosscoderError):
    """A wait for data that was broken off because the run was asked to stop."""


def first_line(error: BaseException) -> str:
    """The message of another library's error on one line, for a message of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__
