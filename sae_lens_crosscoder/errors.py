"""The errors this package raises on purpose, as one tree.

Every one of them is also the built-in error that fits (`ValueError`, `FileNotFoundError`, ...), so callers that do
not know this package catch them as usual. Each message says what is wrong with the values, what it would cause, and
what to do.
"""


class CrosscoderError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(CrosscoderError, ValueError):
    """A configuration that cannot be run, or that would give wrong results."""


class ShapeError(CrosscoderError, ValueError):
    """Tensors or widths that do not fit together."""


class SourceError(CrosscoderError, ValueError):
    """Sources that are missing, misspelt or do not fit each other or their models."""


class VocabularyError(SourceError):
    """Models that do not share one vocabulary, so that one token id means two things."""


class DataError(CrosscoderError, ValueError):
    """A data set that cannot be read as configured, or that is too small."""


class NotFoundError(CrosscoderError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class SaveError(CrosscoderError, OSError):
    """Writing failed; what was there before is untouched."""


class MissingDependencyError(CrosscoderError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class TrainingInterrupted(CrosscoderError):
    """Training was asked to stop (SIGINT or SIGTERM) and saved a checkpoint before it did."""
