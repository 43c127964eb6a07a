"""Files of checkpoints that strangers made: nothing in them is run, and they are checked before anything is used.

A checkpoint reads no file outside its own folder. Weights come from safetensors files or from archives of
`torch.save`, whose pickle may hold tensors and plain values and nothing else. An archive has a checksum a record, so
that a flipped bit is found; safetensors has none, and what its numbers should be only whoever wrote them knows.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError, NotFoundError, first_line
from sae_lens_crosscoder.hub.config_values import ConfigValues

_MAX_CONFIG_BYTES = 16 * 2**20
_WRAPPERS = ("state_dict", "model_state_dict", "model", "sae", "cc")
"""Names under which a file of `torch.save` may hold the weights beside other things."""


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one checkpoint."""

    path: Path
    """The folder."""

    chosen: str | None = None
    """Stem of the weights file that was asked for, where a folder holds several checkpoints."""

    @cached_property
    def names(self) -> list[str]:
        """Names of the files in the folder, sorted."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_file())

    def has(self, *names: str) -> bool:
        """Whether all these files are there."""
        return set(names) <= set(self.names)

    def file(self, name: str) -> Path:
        """The file with this name.

        Raises:
            CheckpointError: It is not there, or lies outside the folder.
        """
        if name not in self.names:
            raise CheckpointError(f"{self.path} lacks {name}. It holds {', '.join(self.names[:12]) or 'no file'}.")
        return inside(self.path, name)

    def config(self, name: str) -> ConfigValues:
        """The mapping in a JSON or YAML file.

        Raises:
            CheckpointError: The file is missing, is damaged or holds something else.
        """
        path = self.file(name)
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, which no configuration has.")
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.load(text, _TupleLoader) if path.suffix in (".yaml", ".yml") else json.loads(text)
        except (ValueError, RecursionError, OSError, yaml.YAMLError) as error:
            raise CheckpointError(
                f"{path} cannot be read as {path.suffix[1:].upper()}: {first_line(error)}. Download it again."
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold a mapping, not {type(values).__name__}.")
        return ConfigValues(str(path), cast("dict[str, Any]", values))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors in a weights file, on the CPU; values that are no tensors are left out.

        Raises:
            CheckpointError: The file is missing or damaged, or holds what could run code.
        """
        path = self.file(name)
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_archive(path)


def find_checkpoint(root: Path, id: str | None = None) -> CheckpointFolder:
    """The folder or the single file below `root` that an id names; `root` itself, which may be a file, without one.

    Raises:
        CheckpointError: The id leads out of the folder.
        NotFoundError: There is no such checkpoint.
    """
    path = root if id is None else inside(root, id)
    if path.is_dir():
        return CheckpointFolder(path)
    stem = path.name.removesuffix(".pt").removesuffix(".safetensors")
    if any((path.parent / f"{stem}{suffix}").is_file() for suffix in (".pt", ".safetensors")):
        return CheckpointFolder(path.parent, stem)
    raise NotFoundError(f"There is no checkpoint {path}: neither a folder nor a weights file of that name.")


def inside(root: Path, name: str) -> Path:
    """The path of a file or folder below `root`.

    Raises:
        CheckpointError: The name, or a link on the way, leads out of the folder.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
        raise CheckpointError(
            f"{name!r} leads out of {root}. Name a folder or file below it, such as 'blocks.14.hook_resid_pre'."
        )
    path = root / name
    if not any(path.resolve().is_relative_to(allowed) for allowed in _allowed(root)):
        raise CheckpointError(f"{path} is a link out of the checkpoint, to {path.resolve()}: it is not followed.")
    return path


def _allowed(root: Path) -> list[Path]:
    """Where files of the folder may lie: in it, or in the blobs that a snapshot of the Hub's cache links to."""
    absolute = root.absolute()
    blobs = [parent.parent / "blobs" for parent in absolute.parents if parent.name == "snapshots"]
    return [root.resolve(), *(folder.resolve() for folder in blobs)]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    # The library has its own error for a bad header, and others for what its header says of dtypes and sizes.
    except Exception as error:
        raise CheckpointError(
            f"{path} is no intact safetensors file: {first_line(error)}. Download it again."
        ) from error


def _read_archive(path: Path) -> dict[str, Tensor]:
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A hostile pickle can make the reader stumble over anything.
    except Exception as error:
        raise CheckpointError(
            f"{path} is refused: {first_line(error)} Only archives of torch.save that hold tensors and plain values "
            "are read (weights_only=True); other objects could run code. Load it where you trust it and save its "
            "state_dict."
        ) from error
    found = _tensors_in(content)
    if not found:
        raise CheckpointError(f"{path} holds no tensors by name (a {type(content).__name__}): it is no state_dict.")
    size = path.stat().st_size
    for name, tensor in found.items():
        dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        # A few bytes can describe a tensor of any shape that repeats one number.
        if not dense or tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(
                f"{path}: {name} of shape {tuple(tensor.shape)} is not stored as a dense tensor, as weights are."
            )
    return {name: tensor.detach() for name, tensor in found.items()}


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is no archive of torch.save (cut off, another format, or older than PyTorch 1.6), so it is not "
            "unpickled: a bare pickle could run code. Download it again, or save its state_dict with torch.save."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            names = [entry.filename for entry in entries]
            damaged = archive.testzip() if plain else None
    # Besides BadZipFile: sizes and offsets that cannot be, unknown methods, names that cannot be decoded.
    except Exception as error:
        raise CheckpointError(f"{path} is no intact archive: {first_line(error)}. Download it again.") from error
    if not plain or len(set(names)) < len(names):
        raise CheckpointError(
            f"{path} is an archive with compressed or repeated entries, which torch.save does not write: refused."
        )
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of its record {damaged!r} does not fit. Download it again."
        )


def _tensors_in(content: Any) -> dict[str, Tensor]:
    """The named tensors of a state_dict, or of the one that stands in it under a usual name."""
    if not isinstance(content, dict):
        return {}
    values = cast("dict[Any, Any]", content)
    found = {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}
    inner = [values[name] for name in _WRAPPERS if isinstance(values.get(name), dict)]
    return found if found or len(inner) != 1 else _tensors_in(inner[0])


class _TupleLoader(yaml.SafeLoader):
    """YAML's safe loader, which also reads Python's tuples, as lists: they stand in files of crosscode's ancestors."""


_TupleLoader.add_constructor("tag:yaml.org,2002:python/tuple", yaml.SafeLoader.construct_yaml_seq)
