"""Publishing a crosscoder to the Hugging Face Hub, in SAELens's layout, whole or not at all.

SAELens's `upload_saes_to_huggingface` is not used: it uploads four files and never the report, metrics or figures,
sends the card in a commit of its own, knows no private repositories and publishes paths of this machine. The layout is
its layout, so that stock SAELens loads what is published.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from sae_lens import SAE

from sae_lens_crosscoder.errors import ConfigError, DamagedError, DataError, HubError
from sae_lens_crosscoder.hub.bundle import PUBLISHED_NAMES, Bundle, BundleOptions, folder_of
from sae_lens_crosscoder.hub.card_section import Place
from sae_lens_crosscoder.hub.model_card import CARD, card_with
from sae_lens_crosscoder.hub.names import checked_id, checked_repo_id
from sae_lens_crosscoder.hub.published_file import PublishedFile
from sae_lens_crosscoder.hub.refusals import LOG_IN, refusals_named, status_of
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME, read_manifest

_N_TRIES = 3


@dataclass(frozen=True)
class PublishOptions:
    """How a crosscoder is published."""

    revision: str | None = None
    """Branch to publish to; made from "main" if it is not there. None is "main"."""

    private: bool | None = None
    """Whether a repository that is made is private. One that is there already has to be so. None: as the Hub does."""

    replace: bool = False
    """Put the crosscoder in the place of another one with this id. The old one stays in the repository's history."""

    license: str | None = None
    """Licence of what is published, as the Hub names it ("mit", "apache-2.0", "gemma"); None says nothing."""

    contents: BundleOptions = field(default_factory=BundleOptions)
    """What goes into the files."""


@dataclass(frozen=True)
class Publication:
    """What was published, or what would be."""

    place: Place
    sizes_bytes: Mapping[str, int]
    """The files of the crosscoder and their sizes."""

    left_out: Mapping[str, str]
    """Files that were not published, with the reason."""

    card: str
    """The model card of the repository; in a dry run that of a repository with nothing else in it."""

    commit: str | None
    """The commit; None in a dry run, and where all of it was there already."""


def publish_crosscoder(
    path_or_sae: str | Path | SAE[Any],
    repo_id: str,
    id: str | None = None,
    options: PublishOptions | None = None,
    *,
    dry_run: bool = False,
) -> Publication:
    """Publish a crosscoder with its configuration, metrics, diff report, figures and model card.

    All files of the crosscoder and the card are one commit, so the Hub never shows a part of it. After a broken upload
    call again: what the Hub has received is not sent again. The repository is made if it is not there; other
    crosscoders in it and what was written into its card by hand stay as they are. Names of the Hub and of
    TransformerLens are published, paths of this machine are not (see `redaction`).

    The login is the Hub's own (`hf auth login` or HF_TOKEN).

    Args:
        path_or_sae: Folder of a finished run, or a crosscoder in memory (`sae.cfg.metadata.sources` has to be there).
        repo_id: The repository, "owner/name".
        id: The crosscoder's folder in it. None is the hook point if all sources share it, else their labels.
        options: How.
        dry_run: Only say what would be published; nothing is asked of the Hub.

    Raises:
        NotFoundError: The folder is not there or holds no SAELens SAE; there is no report where one was asked for.
        DataError: Weights that cannot be read or are not finite; a card on the Hub that cannot be read.
        SourceError: The SAE is no crosscoder.
        ConfigError: A repository or id that cannot be; another crosscoder with this id and not `replace`; a public
            repository and `private`; something private that cannot be taken out of a file.
        HubError: The Hub refuses or cannot be reached.
    """
    options = options or PublishOptions()
    checked_repo_id(repo_id)
    with folder_of(path_or_sae) as folder:
        bundle = Bundle(folder, options.contents)
        place = Place(repo_id, checked_id(id if id is not None else _default_id(bundle)), options.revision)
        files = bundle.files
        if dry_run:
            card, commit = card_with(None, bundle, place, options.license), None
        else:
            card, commit = _send(bundle, files, place, options)
        sizes = {file.name: file.size_bytes for file in files}
        return Publication(place, sizes, bundle.left_out, card, commit)


def _default_id(bundle: Bundle) -> str:
    hooks = list(dict.fromkeys(source.hook_name for source in bundle.sources))
    return hooks[0] if len(hooks) == 1 else "-".join(bundle.sources.labels)


def _send(bundle: Bundle, files: list[PublishedFile], place: Place, options: PublishOptions) -> tuple[str, str | None]:
    if get_token() is None:
        log_in = LOG_IN.format(right="write to")
        raise HubError(f"Publishing to {place.repo_id} needs a login, and there is none on this machine. {log_in}")
    api, n_tries_left = HfApi(), _N_TRIES
    with refusals_named(f"Publishing to {place.repo_id}", place.repo_id, "write to"):
        _prepare_repository(api, place, options)
        while True:
            n_tries_left -= 1
            try:
                return _commit(api, bundle, files, place, options)
            except HfHubHTTPError as error:
                # Somebody else's commit came between: their card and files are read again and kept.
                if status_of(error) != 412 or n_tries_left == 0:
                    raise


def _commit(
    api: HfApi, bundle: Bundle, files: list[PublishedFile], place: Place, options: PublishOptions
) -> tuple[str, str | None]:
    """One commit on top of what is there; the card, and the commit or None if there was nothing to change."""
    head = api.model_info(place.repo_id, revision=place.revision)
    present = [file.rfilename for file in head.siblings or []]
    commit = str(head.sha)
    stale = _stale_files(api, files, place, options.replace, (commit, present))
    old = _old_card(_downloaded(api, place, commit, CARD)) if CARD in present else None
    card = card_with(old, bundle, place, options.license)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(f"{place.id}/{file.name}", file.content) for file in files
    ]
    operations += [CommitOperationDelete(f"{place.id}/{name}") for name in stale]
    operations += [CommitOperationAdd(CARD, card.encode())] if card != old else []
    with warnings.catch_warnings():
        # The table of latents is a parquet file, which the client takes for a data set.
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        made = api.create_commit(
            place.repo_id,
            operations,
            commit_message=f"Publish crosscoder {place.id}",
            revision=place.revision,
            parent_commit=commit,
        )
    return card, None if made.oid == commit else made.oid


def _prepare_repository(api: HfApi, place: Place, options: PublishOptions) -> None:
    """Make the repository and the branch if they are not there."""
    is_private = _is_private(api, place.repo_id)
    if is_private is None:
        api.create_repo(place.repo_id, private=options.private, exist_ok=True)
    elif options.private and not is_private:
        raise ConfigError(
            f"{place.repo_id} is a public repository, and this crosscoder is to be private. Nothing was sent. Name "
            "another repository, or make this one private in its settings on the Hub."
        )
    if place.revision is not None and not api.revision_exists(place.repo_id, place.revision):
        api.create_branch(place.repo_id, branch=place.revision, exist_ok=True)


def _is_private(api: HfApi, repo_id: str) -> bool | None:
    """Whether the repository is private; None if there is none that this login sees."""
    try:
        return bool(api.model_info(repo_id).private)
    except RepositoryNotFoundError:
        return None


def _stale_files(
    api: HfApi, files: list[PublishedFile], place: Place, replace: bool, head: tuple[str, list[str]]
) -> list[str]:
    """Files of the crosscoder that has this id on the Hub now and that the new one does not have.

    Raises:
        ConfigError: It is another crosscoder, and is not to be replaced.
    """
    commit, present = head
    own = [path.removeprefix(f"{place.id}/") for path in present if path.startswith(f"{place.id}/")]
    names = {file.name for file in files}
    listed: Mapping[str, Any] = {}
    if MANIFEST_FILENAME in own:
        manifest = _downloaded(api, place, commit, f"{place.id}/{MANIFEST_FILENAME}")
        # One that cannot be read lists nothing, so that what it was for counts as another crosscoder.
        with suppress(DamagedError):
            listed = read_manifest(manifest.parent)["files"]
    known = PUBLISHED_NAMES | {MANIFEST_FILENAME, *listed}
    there = [name for name in own if name in known]
    ours = {file.name: file.sha256 for file in files if file.name != MANIFEST_FILENAME}
    is_same = {name: _sha256_in(entry) for name, entry in listed.items()} == ours
    if there and not is_same and not replace:
        raise ConfigError(
            f"There is another crosscoder called {place.id} in {place.repo_id}. Take another id, or ask for it "
            "to be replaced (replace=True, --replace); the old one stays in the repository's history."
        )
    return [name for name in there if name not in names]


def _sha256_in(entry: Any) -> Any:
    """The checksum in an entry of a manifest that may have been changed by hand."""
    return cast("Mapping[str, Any]", entry).get("sha256") if isinstance(entry, Mapping) else None


def _old_card(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"The {CARD} of the repository is no UTF-8 text, so what was written by hand would be lost. Save it as "
            "UTF-8 there, then publish again."
        ) from error


def _downloaded(api: HfApi, place: Place, commit: str, path: str) -> Path:
    return Path(api.hf_hub_download(place.repo_id, path, revision=commit))
