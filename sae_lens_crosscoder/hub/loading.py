"""Loading a crosscoder of any known format, from a folder or the Hub, as a stock SAELens SAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_crosscoder.errors import ConfigError, NotFoundError
from sae_lens_crosscoder.fields import checked_fields
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder, find_checkpoint
from sae_lens_crosscoder.hub.formats import detected, format_of
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.names import is_hub_id, looks_like_path
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.published_file import check_against_manifest
from sae_lens_crosscoder.hub.registry import KnownCrosscoder, known_at, known_crosscoder
from sae_lens_crosscoder.hub.repository import fetch
from sae_lens_crosscoder.hub.weights import CrosscoderWeights

_MAX_DEPTH = 3


def load_crosscoder(
    repo_or_path: str | Path,
    id: str | None = None,
    *,
    format: str = "auto",
    revision: str | None = None,
    device: str = "cpu",
    **options: Any,
) -> SAE[Any]:
    """The crosscoder as a stock SAELens SAE on raw joint activations, with its sources in the metadata.

    Its codes and reconstructions are those of the system that made it: codes in that system's own units (decoder norms
    are not folded in), reconstructions in raw units. Whatever the system does to activations before its crosscoder is
    folded into the weights and kept as `metadata.sources[i].activation_scale`.

    Files are checked before use, and nothing in them is run. Where a checksum is known (archives of torch.save, folders
    with our manifest) a flipped bit is found; in a safetensors file without one it gives another number.

    Args:
        repo_or_path: A folder, a weights file, a repository of the Hub ("owner/name"), or the name of a known public
            crosscoder ("kissane-gemma-2-2b-l14", see `registry`). What is known of one beside its files is used unless
            it is given here.
        id: Folder or file in it, such as "blocks.14.hook_resid_pre"; may be left out where there is only one.
        format: One of `FORMATS`; "auto" tells it by the files.
        revision: Branch, tag or commit of the repository; None is "main".
        device: Where the SAE is put.
        options: What the files do not say: `sources` (fields of the sources in the checkpoint's order), `scales` (a
            factor a source, for formats that keep it nowhere), `threshold` (of a BatchTopK saved without one).

    Raises:
        NotFoundError: There is no such folder, file, repository or revision.
        HubError: The Hub cannot be reached or refuses.
        DataError: A file is not what its manifest says.
        CheckpointError: Files that are damaged, of no known format, or that no single SAE can stand for.
        ConfigError: Something that has to be said is not, or an option that the format does not have.
        SourceError: Sources that do not fit the checkpoint.
    """
    said = ReadOptions(**checked_fields(ReadOptions, options, "load_crosscoder", ConfigError, ("sources",)))
    origin: dict[str, str | None] = {}
    if Path(repo_or_path).exists():
        if revision is not None:
            raise ConfigError(
                f"{repo_or_path} is a folder or file of this machine, which has no revision {revision!r}. Leave the "
                "revision out; if a repository of the Hub is meant, call from where there is no such folder."
            )
        folder = _located(Path(repo_or_path), id)
        check_against_manifest(folder.path, folder.names, str(folder.path))
    else:
        known = _known(str(repo_or_path), id)
        repo_id, id = (known.repo_id, known.id) if known else (str(repo_or_path), id)
        folder = find_checkpoint(_fetched(repo_id, id, revision))
        if known is not None and format in ("auto", known.format):
            format, said = known.format, _completed(said, known)
        origin = {"repo_id": repo_id, "id": id, "revision": revision}
    chosen = format_of(folder, format)
    _check_options(chosen, said)
    crosscoder = chosen.read(folder, said)
    if not isinstance(crosscoder, CrosscoderWeights):
        return crosscoder.to(device=device)
    sae = crosscoder.to_sae(device)
    sae.cfg.metadata["converted_from"] = {"format": chosen.name, **origin}
    return sae


def _known(name: str, id: str | None) -> KnownCrosscoder | None:
    """What is known of a public crosscoder, by its own name or by its repository.

    Raises:
        NotFoundError: There is no known crosscoder of this name.
        ConfigError: The name is that of one crosscoder, and the id that of another.
    """
    if "/" in name or looks_like_path(name):
        return known_at(name, id)
    known = known_crosscoder(name)
    if id not in (None, known.id):
        raise ConfigError(
            f"{name!r} is the crosscoder {known.id or 'in the root'} of {known.repo_id}: its sources and activation "
            f"scales would be wrong for {id!r}. Leave the id out, or name the repository instead."
        )
    return known


def _completed(said: ReadOptions, known: KnownCrosscoder) -> ReadOptions:
    """What the caller says, and where nothing is said what is known."""
    sources = known.sources if said.sources is None else said.sources
    return replace(said, sources=sources, scales=known.scales if said.scales is None else said.scales)


def _fetched(repo_id: str, id: str | None, revision: str | None) -> Path:
    """The crosscoder's folder or file in the Hub's cache, its files checked against their manifest."""
    if looks_like_path(repo_id) or not is_hub_id(repo_id):
        raise NotFoundError(f"There is no folder or file {repo_id}, and it is no repository of the Hub (owner/name).")
    return fetch(repo_id, id, revision)


def _located(path: Path, id: str | None) -> CheckpointFolder:
    """The checkpoint's folder: the one that is named, or the only one below it."""
    folder = find_checkpoint(path, id)
    if folder.chosen is not None or detected(folder):
        return folder
    below = [found for found in _folders_below(folder.path, _MAX_DEPTH) if detected(found)]
    if len(below) > 1:
        ids = ", ".join(repr(found.path.relative_to(path).as_posix()) for found in below[:20])
        raise ConfigError(f"{path} holds {len(below)} checkpoints. Give one as the id: {ids}.")
    return below[0] if below else folder


def _folders_below(path: Path, depth: int) -> Iterator[CheckpointFolder]:
    for entry in sorted(path.iterdir()):
        # Links may lead out of the folder, or in a circle.
        if entry.is_dir() and not entry.is_symlink():
            yield CheckpointFolder(entry)
            if depth > 1:
                yield from _folders_below(entry, depth - 1)


def _check_options(chosen: CheckpointFormat, said: ReadOptions) -> None:
    for name in ("scales", "threshold"):
        if getattr(said, name) is not None and name not in chosen.options:
            raise ConfigError(
                f"{name} would have no effect: checkpoints of format {chosen.name!r} hold what is needed. Leave it out."
            )
