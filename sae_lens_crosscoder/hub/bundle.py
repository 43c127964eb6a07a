"""The files of one crosscoder as they are published: which, without what is private, and what is left out and why."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_token
from sae_lens import SAE, TrainingSAE

from sae_lens_crosscoder._saelens import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens_crosscoder.diffing.diff_report.latent_table import PARQUET
from sae_lens_crosscoder.diffing.diff_report.report import CSV
from sae_lens_crosscoder.diffing.diff_report.report import PAGE as REPORT
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError
from sae_lens_crosscoder.fields import read_config_file
from sae_lens_crosscoder.files import existing_folder
from sae_lens_crosscoder.hub.names import is_hub_id
from sae_lens_crosscoder.hub.published_file import PublishedFile, check_against_manifest, make_manifest
from sae_lens_crosscoder.hub.redaction import Redaction
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME
from sae_lens_crosscoder.sources import Sources
from sae_lens_crosscoder.training.saved_run import METRICS_FILENAME, SavedRun
from sae_lens_crosscoder.training.trainer import CURVE_FILENAME, EVALUATIONS_FILENAME

_FROM_RUN = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    RUNNER_CFG_FILENAME,
    METRICS_FILENAME,
    "evaluation.json",
    CURVE_FILENAME,
    EVALUATIONS_FILENAME,
)
_FROM_REPORT = (REPORT, PARQUET, CSV, "decoder.png", "rotation.csv", "rotation.png")
PUBLISHED_NAMES = frozenset((*_FROM_RUN, *_FROM_REPORT))
"""Names of all files that may be published; others in the folder stay where they are."""

_LONGEST_HEADER = 2**24


@dataclass(frozen=True)
class BundleOptions:
    """What goes into the files of a published crosscoder."""

    report_folder: Path | None = None
    """Where `diff` wrote its report and tables; None is the crosscoder's own folder."""

    with_report: bool | None = None
    """Publish `report.html`, which quotes the text that latents fire on. None: only if all data sets are on the Hub."""

    model_names: Mapping[str, str] | None = None
    """Name on the Hub of models that were read from a local folder, by the label of the source."""

    dataset_names: Mapping[str, str] | None = None
    """The same for data sets, by their label."""


@dataclass(frozen=True)
class Bundle:
    """A crosscoder's folder as it is published.

    Raises:
        NotFoundError: A folder that is not there, holds no SAELens SAE, or not the report that was asked for.
        ConfigError: Names for sources or data sets that there are not.
    """

    folder: Path
    options: BundleOptions

    @cached_property
    def run(self) -> SavedRun:
        """The folder as it was saved.

        Raises:
            DataError: Weights that are damaged, infinite or not a number, or a sparsity that is none of theirs.
            SourceError: The SAE is no crosscoder.
        """
        run = SavedRun(self.folder)
        check_against_manifest(self.folder, (SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME), str(self.folder))
        if run.dead is not None and run.dead.numel() != run.sae.cfg.d_sae:
            raise DataError(
                f"{SPARSITY_FILENAME} in {self.folder} is of {run.dead.numel()} latents, but the crosscoder has "
                f"{run.sae.cfg.d_sae}: files of two crosscoders are mixed in this folder. It is not published."
            )
        for name, values in run.sae.state_dict().items():
            if values.is_floating_point() and not torch.isfinite(values).all():
                raise DataError(f"{name} of {self.folder} is infinite or not a number in places: it is not published.")
        return run

    @cached_property
    def report_folder(self) -> Path:
        """Where the report and its tables are.

        Raises:
            NotFoundError: The folder is not there, or what was asked for is not in it.
        """
        folder = existing_folder(self.options.report_folder or self.folder, "report")
        if self.options.report_folder is not None and not any((folder / name).is_file() for name in _FROM_REPORT):
            raise NotFoundError(
                f"{folder} holds nothing that `diff` writes: run `diff --out {folder}`, or leave it out."
            )
        if self.options.with_report and not (folder / REPORT).is_file():
            raise NotFoundError(f"There is no {REPORT} in {folder} to publish: run `diff` first, or leave it out.")
        return folder

    @cached_property
    def redaction(self) -> Redaction:
        """What is taken out."""
        names = (self.options.model_names, self.options.dataset_names)
        return Redaction.of_run(self.run.sources, self._saved_runner_cfg, *names)

    @cached_property
    def cfg(self) -> dict[str, Any]:
        """The published `cfg.json`."""
        return self.redaction.cfg(read_config_file(self.folder / SAE_CFG_FILENAME))

    @cached_property
    def runner_cfg(self) -> dict[str, Any]:
        """The published `runner_cfg.json`; empty if there is none."""
        return self.redaction.runner_cfg(self._saved_runner_cfg)

    @property
    def sources(self) -> Sources:
        """The sources under their public names."""
        return Sources.from_metadata(self.cfg["metadata"])

    @property
    def metrics(self) -> dict[str, Any]:
        """The evaluation that the run made; empty if it made none."""
        path = self.folder / METRICS_FILENAME
        return self.redaction.value(read_config_file(path)) if path.is_file() else {}

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Files that are there and are not published, with the reason."""
        reasons: dict[str, str] = {}
        if (self.report_folder / REPORT).is_file() and not self._with_report:
            reasons[REPORT] = (
                "it quotes text of the data sets, which are not all on the Hub; with_report publishes it all the same"
                if self.options.with_report is None
                else "with_report is false"
            )
        for path in sorted(self.folder.iterdir()):
            if path.name not in {*PUBLISHED_NAMES, MANIFEST_FILENAME}:
                reasons[path.name] = "no file of a crosscoder or its report"
        return reasons

    @cached_property
    def files(self) -> list[PublishedFile]:
        """The files with their manifest, without anything private.

        Raises:
            ConfigError: A file holds something private that could not be taken out, or is no configuration.
            DataError: A table or report that is no text.
        """
        files = [self._published(self.folder / name) for name in _FROM_RUN if (self.folder / name).is_file()]
        wanted = [name for name in _FROM_REPORT if name != REPORT or self._with_report]
        files += [
            self._published(self.report_folder / name) for name in wanted if (self.report_folder / name).is_file()
        ]
        folders = {str(path) for folder in (self.folder, self.report_folder) for path in _spelt_in_full(folder)}
        secrets = [*folders, *filter(None, [get_token()])]
        for file in files:
            # The report quotes texts of data sets, in which a home folder may be anybody's.
            of_account = [] if file.name == REPORT else _home()
            self.redaction.check(file.name, _text_of(file), [*secrets, *of_account])
        return [*files, make_manifest(files)]

    @property
    def _with_report(self) -> bool:
        if self.options.with_report is not None:
            return self.options.with_report
        datasets = self.redaction.datasets
        return bool(datasets) and all(is_hub_id(path) and path == public for _, path, public in datasets)

    @cached_property
    def _saved_runner_cfg(self) -> dict[str, Any]:
        path = self.folder / RUNNER_CFG_FILENAME
        return read_config_file(path) if path.is_file() else {}

    def _published(self, path: Path) -> PublishedFile:
        if path.name == SAE_CFG_FILENAME:
            return PublishedFile(path.name, _json_bytes(self.cfg))
        if path.name == RUNNER_CFG_FILENAME:
            return PublishedFile(path.name, _json_bytes(self.runner_cfg))
        if path.suffix == ".json":
            return PublishedFile(path.name, _json_bytes(self.redaction.value(read_config_file(path))))
        if path.suffix in (".csv", ".html"):
            return PublishedFile(path.name, self.redaction.text(_read_text(path)).encode())
        return PublishedFile(path.name, path)


@contextmanager
def folder_of(path_or_sae: str | Path | SAE[Any]) -> Generator[Path]:
    """A folder that holds the crosscoder: the one given, or a temporary one that an SAE is saved to.

    Raises:
        NotFoundError: There is no such folder, or it holds no SAELens SAE.
        ConfigError: An SAE that is still in training.
    """
    if isinstance(path_or_sae, TrainingSAE):
        raise ConfigError(
            "This crosscoder is in its training form, which needs this package to be loaded. Publish the folder that "
            "the run saved, or save it with save_inference_model and publish that folder."
        )
    if isinstance(path_or_sae, SAE):
        with tempfile.TemporaryDirectory() as folder:
            path_or_sae.save_model(folder)
            yield Path(folder)
        return
    folder = existing_folder(path_or_sae, "crosscoder")
    if not (folder / SAE_WEIGHTS_FILENAME).is_file():
        raise NotFoundError(f"{folder} holds no {SAE_WEIGHTS_FILENAME}, so it is no folder of a SAELens SAE.")
    yield folder


def _text_of(file: PublishedFile) -> bytes:
    """What of a file is text: all of it, or the header of tensors."""
    if isinstance(file.content, bytes):
        return file.content
    with file.content.open("rb") as opened:
        if file.content.suffix != ".safetensors":
            return opened.read()
        return opened.read(min(int.from_bytes(opened.read(8), "little"), _LONGEST_HEADER))


def _spelt_in_full(folder: Path) -> tuple[Path, Path]:
    """The path of a folder as it was given, and that which links on the way lead to."""
    return folder.absolute(), folder.resolve()


def _home() -> list[str]:
    """The home folder, which names the account; none where it says nothing, as "/root" does."""
    home = Path("~").expanduser()
    return [str(home)] if len(home.parts) > 2 else []


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: it was changed or damaged. Write it again, or remove it.") from error


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
