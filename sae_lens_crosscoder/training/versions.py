"""Versions of what a run writes, and the steps by which what earlier versions wrote is read today.

A version goes up where today's code would misread a file of before: a field or tensor that gets another name, meaning
or default. The step from the version before is one function at the end of `steps`. A field that is new, with a default
that stands for how things were, needs none.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.files import written_aside
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME, read_manifest, write_manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Format(Generic[T]):
    """Something that is written with the version of its layout."""

    name: str
    """What it is, for messages."""

    key: str
    """Where its version stands."""

    steps: tuple[Callable[[T], None], ...] = ()
    """Step n changes what was written as version n, in place, into version n + 1; it passes over what is not there."""

    @property
    def version(self) -> int:
        """The version that is written today."""
        return len(self.steps) + 1

    def steps_from(self, values: Mapping[str, Any]) -> tuple[Callable[[T], None], ...]:
        """The steps that lead from the version of what was read to today's; without a version it is the first.

        Raises:
            ConfigError: It is of a later version, or the version is none.
        """
        given = values.get(self.key, 1)
        if type(given) is not int or given < 1:
            raise ConfigError(f"{self.key}={given!r} is no version of a {self.name}: versions are 1, 2 and so on.")
        if given > self.version:
            raise ConfigError(
                f"The {self.name} has {self.key}={given}, this package reads up to {self.version}: a later version "
                "wrote it, and what it says would be misread. Upgrade the package: pip install -U sae-lens-crosscoder."
            )
        return self.steps[given - 1 :]


CONFIG: Format[dict[str, Any]] = Format("run configuration", "config_version")
"""`runner_cfg.json` and configuration files; steps get its mapping."""

CHECKPOINT: Format[Path] = Format("checkpoint", "checkpoint_version")
"""The folder of a checkpoint, whose manifest has the version; steps get a folder with its files and replace some."""


def migrated_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run configuration, as today's version has them.

    Raises:
        ConfigError: A later version wrote it.
    """
    migrated = copy.deepcopy(dict(values))
    for step in CONFIG.steps_from(migrated):
        step(migrated)
    migrated.pop(CONFIG.key, None)
    return migrated


def migrate_checkpoint(folder: Path) -> None:
    """Bring a checkpoint that is whole to today's version, in its place and all at once.

    Raises:
        ConfigError: A later version wrote it.
        DamagedError: Its manifest is damaged.
    """
    manifest = read_manifest(folder)
    steps = CHECKPOINT.steps_from(manifest)
    if not steps:
        return
    facts = {name: value for name, value in manifest.items() if name not in ("manifest_version", "files")}
    with written_aside(folder) as aside:
        for path in folder.iterdir():
            if path.name != MANIFEST_FILENAME:
                shutil.copyfile(path, aside / path.name)
        for step in steps:
            step(aside)
        write_manifest(aside, **{**facts, CHECKPOINT.key: CHECKPOINT.version})
