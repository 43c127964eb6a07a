"""Fetching a crosscoder from the Hub: the files that it needs, all of one commit, checked against its manifest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, RevisionNotFoundError

from sae_lens_crosscoder.errors import ConfigError, HubError, NotFoundError
from sae_lens_crosscoder.hub.names import checked_id, checked_repo_id
from sae_lens_crosscoder.hub.published_file import check_against_manifest
from sae_lens_crosscoder.hub.refusals import refusals_named
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME

_WEIGHTS = (".safetensors", ".pt")
_CONFIGS = (".json", ".yaml", ".yml")
_SAFE_NAME = re.compile(r"\w[\w.\-+=]*", re.ASCII)
_CHECKPOINT = re.compile(r"checkpoint_\d+\.pt")
_N_TRIES = 3


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit."""

    repo_id: str
    revision: str
    """What was asked for: a branch, a tag or a commit."""

    commit: str
    paths: tuple[str, ...]
    on_disk: Path | None = None
    """Where the files lie if the Hub was not asked, because it cannot be reached."""

    @property
    def ids(self) -> dict[str, list[str]]:
        """The crosscoders and the paths each one needs; "" is one that lies in the root of the repository."""
        return crosscoder_ids(self.paths)


def crosscoder_ids(paths: Iterable[str]) -> dict[str, list[str]]:
    """The crosscoders among the files of a repository, with the files that each needs.

    One is a folder with weights (`.safetensors`, `.pt`) and a configuration (`*cfg*.json`, `*config*.json` or YAML), or
    a pair `<id>.pt`, `<id>_cfg.json`. Names that no file of ours or of other systems has are passed over.
    """
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, name = _split(path)
        if _SAFE_NAME.fullmatch(name) and all(_SAFE_NAME.fullmatch(part) for part in PurePosixPath(folder).parts):
            folders.setdefault(folder, []).append(name)
    found: dict[str, list[str]] = {}
    for folder, names in sorted(folders.items()):
        pairs = [name[: -len(".pt")] for name in names if name.endswith(".pt") and f"{name[:-3]}_cfg.json" in names]
        for stem in pairs:
            found[_join(folder, stem)] = [_join(folder, f"{stem}_cfg.json"), _join(folder, f"{stem}.pt")]
        needed = [name for name in names if _is_needed(name, names) and not _is_of_pair(name, pairs)]
        if any(name.endswith(_CONFIGS) and name != MANIFEST_FILENAME for name in needed) and any(
            name.endswith(_WEIGHTS) for name in needed
        ):
            # The configuration first: it is small, and tells soonest what cannot be had.
            ordered = sorted(needed, key=lambda name: (name.endswith(_WEIGHTS), name))
            found[folder] = [_join(folder, name) for name in ordered]
    return found


def snapshot(repo_id: str, revision: str | None = None) -> Snapshot:
    """What a repository holds; without a connection, what of it was fetched before.

    Raises:
        ConfigError: `repo_id` is not "owner/name".
        NotFoundError: There is no such repository or revision.
        HubError: The Hub refuses, or cannot be reached and nothing was fetched before.
    """
    checked_repo_id(repo_id)
    asked = revision or "main"
    api = HfApi()
    try:
        with refusals_named(f"Fetching {repo_id}", repo_id):
            try:
                info = api.model_info(repo_id, revision=asked)
            except RevisionNotFoundError as error:
                branches = ", ".join(sorted(branch.name for branch in api.list_repo_refs(repo_id).branches))
                raise NotFoundError(
                    f"{repo_id} has no revision {asked!r}. Its branches are: {branches}. Tags and commits count too."
                ) from error
    except HubError:
        cached = _cached(repo_id, asked)
        if cached is None:
            raise
        return cached
    paths = tuple(file.rfilename for file in info.siblings or [])
    return Snapshot(repo_id, asked, str(info.sha), paths)


def fetch(repo_id: str, id: str | None = None, revision: str | None = None) -> Path:
    """Download a crosscoder's files into the Hub's own cache and return where they lie.

    Only configuration, weights and manifest are fetched, no reports. All come from one commit. If there is a manifest
    (`publish_crosscoder` writes one), their hashes are compared with it.

    Args:
        repo_id: The repository, "owner/name".
        id: Folder of the crosscoder in it; for pairs `<id>.pt`, `<id>_cfg.json` their common beginning. May be left
            out where there is only one, or one in the root.
        revision: Branch, tag or commit; None is "main".

    Returns:
        The folder; for a pair the path of its `.pt`.

    Raises:
        ConfigError: `repo_id` or `id` cannot be such a name, or the repository has several crosscoders and no id was
            given.
        NotFoundError: There is no such repository, revision or crosscoder.
        DataError: A file is not what was published.
        HubError: The Hub refuses, or cannot be reached.
        SaveError: The cache cannot be written to.
    """
    if id is not None:
        checked_id(id)
    for _ in range(_N_TRIES):
        listed = snapshot(repo_id, revision)
        chosen = _choose(listed, id)
        paths = listed.ids[chosen]
        files = _downloaded(listed, paths)
        if files is not None:
            break
    else:
        raise HubError(f"{repo_id} changes faster than it can be fetched. Name a commit by its hash as the revision.")
    check_against_manifest(files[0].parent, [path.name for path in files], f"{chosen or 'the crosscoder'} in {repo_id}")
    is_pair = not any(path.startswith(f"{chosen}/") for path in paths) and chosen != ""
    return files[-1] if is_pair else files[0].parent


def _downloaded(listed: Snapshot, paths: list[str]) -> list[Path] | None:
    """The files, or None if the branch moved to another commit since it was listed."""
    if listed.on_disk is not None:
        return [listed.on_disk / path for path in paths]
    api = HfApi()
    with refusals_named(f"Fetching {listed.repo_id}", listed.repo_id):
        # By the branch's name, so that the cache knows the name too when there is no connection.
        first = Path(api.hf_hub_download(listed.repo_id, paths[0], revision=listed.revision))
        if listed.commit not in first.parts:
            return None
        return [first, *(Path(api.hf_hub_download(listed.repo_id, path, revision=listed.commit)) for path in paths[1:])]


def _choose(listed: Snapshot, id: str | None) -> str:
    ids = list(listed.ids)
    where = f"{listed.repo_id} at {listed.revision!r}"
    if not ids:
        seen = " of what was fetched before" if listed.on_disk else ""
        raise NotFoundError(f"There is no crosscoder in {where}{seen}: no weights with a configuration beside them.")
    named = ", ".join(repr(name) for name in ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    if id is None:
        if "" not in ids and len(ids) > 1:
            raise ConfigError(f"{where} has several crosscoders; name one by its id: {named}.")
        return "" if "" in ids else ids[0]
    if id not in ids:
        near = difflib.get_close_matches(id, ids, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise NotFoundError(f"There is no crosscoder {id!r} in {where}. It has: {named}.{hint}")
    return id


def _cached(repo_id: str, revision: str) -> Snapshot | None:
    """What the cache holds of a repository."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    for repository in repositories:
        for version in repository.revisions if (repository.repo_id, repository.repo_type) == (repo_id, "model") else ():
            if revision in version.refs or version.commit_hash == revision:
                root = version.snapshot_path
                paths = tuple(file.file_path.relative_to(root).as_posix() for file in version.files)
                return Snapshot(repo_id, revision, version.commit_hash, paths, root)
    return None


def _is_needed(name: str, names: list[str]) -> bool:
    if name == MANIFEST_FILENAME:
        return True
    if name.endswith(_WEIGHTS):
        # Of a run with its checkpoints only the end is read.
        return not (_CHECKPOINT.fullmatch(name) and "model_final.pt" in names)
    return name.endswith(_CONFIGS) and any(word in name for word in ("cfg", "config"))


def _is_of_pair(name: str, pairs: list[str]) -> bool:
    return any(name in (f"{stem}.pt", f"{stem}_cfg.json") for stem in pairs)


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
