"""Names on the Hub: repositories, crosscoders inside them, and what cannot be such a name."""

from __future__ import annotations

import re
from pathlib import Path

from sae_lens_crosscoder.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
_PART_OF_ID = re.compile(r"\w[\w.\-+=]*", re.ASCII)
_PATH_BEGINS = re.compile(r"[/~\\]|\.{1,2}([/\\]|$)|[A-Za-z]:[\\/]|file:", re.ASCII)


def checked_repo_id(repo_id: str) -> str:
    """The name of a repository.

    Raises:
        ConfigError: It is not "owner/name".
    """
    if not is_hub_id(repo_id):
        raise ConfigError(f"{repo_id!r} is no repository of the Hub: name it as owner/name, such as alice/crosscoders.")
    return repo_id


def checked_id(id: str) -> str:
    """The id of a crosscoder: its folder in the repository.

    Raises:
        ConfigError: It could leave the repository or meet files that are no crosscoder's.
    """
    parts = id.split("/")
    if not all(_PART_OF_ID.fullmatch(part) for part in parts):
        raise ConfigError(
            f"{id!r} cannot be the id of a crosscoder, which is its folder in the repository. Use letters, digits, "
            "'_', '-', '.', '+' and '=', beginning with a letter or digit, and '/' between folders."
        )
    return id


def is_hub_id(name: str) -> bool:
    """Whether this is the name of a repository of the Hub, "owner/name"; it need not be there."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def is_local(name: str) -> bool:
    """Whether a model or data set of this name comes from this machine: a path, or a folder that is here."""
    return looks_like_path(name) or "\\" in name or name.count("/") > 1 or (bool(name) and Path(name).exists())


def looks_like_path(text: str) -> bool:
    """Whether this text begins as paths do: with "/", "~", "./", a drive letter or "file:"."""
    return _PATH_BEGINS.match(text) is not None
