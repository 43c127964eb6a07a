"""The checkpoint formats that are read, one module each, and the recognition of a folder's format."""

from __future__ import annotations

from sae_lens_crosscoder.errors import CheckpointError, ConfigError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.antebe import ANTEBE
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.crosscode import CROSSCODE
from sae_lens_crosscoder.hub.formats.difference_sae import DIFFERENCE_SAE
from sae_lens_crosscoder.hub.formats.kissane import KISSANE
from sae_lens_crosscoder.hub.formats.llamascopium import LLAMASCOPIUM
from sae_lens_crosscoder.hub.formats.nanda import NANDA
from sae_lens_crosscoder.hub.formats.openinterp import OPENINTERP
from sae_lens_crosscoder.hub.formats.saelens_folder import SAELENS
from sae_lens_crosscoder.hub.formats.science_of_finetuning import SCIENCE_OF_FINETUNING
from sae_lens_crosscoder.hub.formats.stagewise import STAGEWISE
from sae_lens_crosscoder.hub.formats.through_time import THROUGH_TIME

FORMATS: dict[str, CheckpointFormat] = {
    checkpoint_format.name: checkpoint_format
    for checkpoint_format in (
        SAELENS,
        KISSANE,
        NANDA,
        SCIENCE_OF_FINETUNING,
        DIFFERENCE_SAE,
        CROSSCODE,
        STAGEWISE,
        ANTEBE,
        LLAMASCOPIUM,
        OPENINTERP,
        THROUGH_TIME,
    )
}
"""The formats by name."""


def detected(folder: CheckpointFolder) -> list[CheckpointFormat]:
    """The formats that a folder looks like."""
    return [checkpoint_format for checkpoint_format in FORMATS.values() if checkpoint_format.detect(folder)]


def format_of(folder: CheckpointFolder, name: str = "auto") -> CheckpointFormat:
    """The format with this name, or with "auto" the one that the folder looks like.

    Raises:
        ConfigError: There is no format of this name.
        CheckpointError: The folder looks like none, or like several.
    """
    if name != "auto":
        if name not in FORMATS:
            raise ConfigError(f"There is no checkpoint format {name!r}. Use 'auto' or one of {', '.join(FORMATS)}.")
        return FORMATS[name]
    found = detected(folder)
    if len(found) == 1:
        return found[0]
    there = f"It holds {', '.join(folder.names[:20]) or 'no file'}."
    if found:
        names = " and ".join(repr(checkpoint_format.name) for checkpoint_format in found)
        raise CheckpointError(f"{folder.path} looks like {names}. {there} Say which with format=....")
    known = "; ".join(f"{checkpoint_format.name}: {checkpoint_format.files}" for checkpoint_format in FORMATS.values())
    raise CheckpointError(f"{folder.path} looks like no known format. {there} Known are {known}.")
