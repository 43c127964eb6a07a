"""The export of dashboards to Neuronpedia: one source a model, in the form of its importer and of its upload API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm.auto import tqdm

from sae_lens_crosscoder.dashboards.neuronpedia.latents import BatchHeader, read_header, read_latents
from sae_lens_crosscoder.dashboards.neuronpedia.names import upload_id_fault
from sae_lens_crosscoder.dashboards.neuronpedia.payloads import PayloadWriter
from sae_lens_crosscoder.dashboards.neuronpedia.records import (
    ExportModel,
    Release,
    activation_rows,
    metadata_rows,
    neuron_row,
)
from sae_lens_crosscoder.dashboards.neuronpedia.rows_file import RowsWriter, row_bytes
from sae_lens_crosscoder.dashboards.neuronpedia.validator import validate_export
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.files import check_writable, written_aside


@dataclass(frozen=True)
class ExportSource:
    """One model of the crosscoder: where its batches are, and what they do not say."""

    batches: str | Path
    """Folder with sae-dashboard's batches for this model; they name the model, the source set and the layer."""

    hook_name: str
    """Hook point that the crosscoder reads the model at, and that steering adds the vector at."""

    model: ExportModel = field(default_factory=ExportModel)
    """What Neuronpedia is told of the model if it does not know it."""

    notes: str | None = None
    """A remark that is kept with the source."""


@dataclass(frozen=True)
class ExportedSource:
    """What was written for one model."""

    folder: Path
    """Folder of the source, in the form of Neuronpedia's importer."""

    n_latents: int
    n_dead: int
    """Latents that no window shows firing: rows without activations, left out of the payloads."""

    n_windows: int
    n_silent_windows: int
    """Windows of the batches in which their latent does not fire, which are left out."""

    n_payloads: int
    """Bodies for the upload API; 0 for a source with a suffix, which the API has no place for."""


def export_neuronpedia(sources: Sequence[ExportSource], out: str | Path, release: Release) -> list[ExportedSource]:
    """Write what Neuronpedia imports, and what its upload API takes, for all models of a crosscoder.

    `out/exports/{model id}/{source id}/` is the form of Neuronpedia's importer; `out/payloads/{model id}/{source id}/`
    that of its API. One batch is in memory at a time. What is written passes `validate_export`, or nothing is kept.

    Args:
        sources: The models, each with its batches.
        out: Folder to write to; it must hold no export yet.
        release: What is published, and by whom.

    Raises:
        ConfigError: No sources, two with one name, a name that Neuronpedia does not take, or a folder that holds an
            export already.
        DataError: Batches that cannot be read, or that Neuronpedia would refuse.
        NotFoundError: A folder of batches that is not there.
        SaveError: The system refused a write; nothing half-written stays.
    """
    headers = [read_header(source.batches) for source in sources]
    _check_names(headers)
    target = Path(out)
    check_place(target)
    with written_aside(target) as aside:
        exported = [
            _SourceWriter(aside, source, header, release).write()
            for source, header in zip(sources, headers, strict=True)
        ]
        problems = validate_export(aside)
        if problems:
            shown = "\n".join(f"  {problem}" for problem in problems[:5])
            raise DataError(
                f"Neuronpedia would not take this export whole, so it is not kept. {len(problems)} problems:\n{shown}"
            )
    return [replace(source, folder=target / source.folder.relative_to(aside)) for source in exported]


def check_place(out: str | Path) -> None:
    """Raises:
    ConfigError: The folder holds an export already.
    SaveError: Nothing can be written there.
    """
    if any((Path(out) / name).exists() for name in ("exports", "payloads")):
        raise ConfigError(
            f"{out} holds an export already; rows of two exports would mix. Choose another folder or delete it."
        )
    check_writable(out)


class _SourceWriter:
    def __init__(self, root: Path, source: ExportSource, header: BatchHeader, release: Release) -> None:
        self.source = source
        self.header = header
        self.release = release
        place = Path(header.name.model_id) / header.name.source_id
        self.folder = root / "exports" / place
        self.payloads = PayloadWriter(root / "payloads" / place, header.name)

    def write(self) -> ExportedSource:
        name, source, release = self.header.name, self.source, self.release
        for file, row in metadata_rows(name, self.header, source.model, release, source.notes).items():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_bytes(row_bytes(row))
        has_payloads = upload_id_fault(name.source_id) is None
        n_latents = n_dead = n_windows = n_silent = 0
        with RowsWriter(self.folder / "features") as features, RowsWriter(self.folder / "activations") as activations:
            title = f"Exporting {name.model_id}"
            for latent in tqdm(read_latents(source.batches), desc=title, unit=" latents", disable=None):
                features.write(neuron_row(latent, name, source.hook_name, release.creator_id))
                for row in activation_rows(latent, name, release.creator_id):
                    activations.write(row)
                if has_payloads:
                    self.payloads.add(latent)
                n_latents += 1
                n_dead += not latent.windows
                n_windows += len(latent.windows)
                n_silent += latent.n_silent_windows
        self.payloads.close()
        return ExportedSource(self.folder, n_latents, n_dead, n_windows, n_silent, self.payloads.n_files)


def _check_names(headers: Sequence[BatchHeader]) -> None:
    if not headers:
        raise ConfigError("There are no sources to export. Give one folder of batches for each model.")
    places = [(header.name.model_id, header.name.source_id) for header in headers]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"Two sources are named {'/'.join(twice)}, and Neuronpedia would keep the first alone. Give one of them "
            "another source set or a suffix."
        )
