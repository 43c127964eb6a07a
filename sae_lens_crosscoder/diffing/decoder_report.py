"""What a decoder says about two models, as files: an HTML report, a PNG of the histograms and a CSV of all latents."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.diffing.figures import decoder_figure
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry
from sae_lens_crosscoder.diffing.png import save_png
from sae_lens_crosscoder.diffing.report import Cell, ReportTable, write_report_html
from sae_lens_crosscoder.files import write_file

_N_SHOWN = 20


def write_decoder_report(
    geometry: PairGeometry, folder: str | Path, tables: Sequence[ReportTable] = ()
) -> dict[str, Path]:
    """Write `report.html`, `decoder.png` and `latents.csv`; return their paths by name.

    Args:
        geometry: What the decoder says.
        folder: Where the files go; made if needed.
        tables: Further tables for the report, shown first.

    Raises:
        SaveError: A file cannot be written.
    """
    first, second = geometry.labels
    counts = ReportTable(
        "Latents by class", ["class", "latents"], list(geometry.counts.items()), geometry.thresholds.describe()
    )
    extremes = [_extremes(geometry, f"{label}-only", label == second) for label in geometry.labels]
    title = f"{first} and {second}: what differs"
    folder = Path(folder)
    report = write_report_html(decoder_figure(geometry), folder / "report.html", title, [*tables, counts, *extremes])
    return {
        "report": report,
        "figure": save_png(geometry, folder / "decoder.png"),
        "latents": write_file(folder / "latents.csv", _csv(geometry).encode()),
    }


def _rows(geometry: PairGeometry) -> list[tuple[int, float, float | None, str]]:
    cosines: Sequence[float | None]
    cosines = [None] * len(geometry.classes) if geometry.cosines is None else geometry.cosines.tolist()
    return list(
        zip(range(len(geometry.classes)), geometry.relative_norms.tolist(), cosines, geometry.classes, strict=True)
    )


def _extremes(geometry: PairGeometry, name: str, descending: bool) -> ReportTable:
    members = sorted((row for row in _rows(geometry) if row[3] == name), key=lambda row: row[1], reverse=descending)
    shown: list[Sequence[Cell]] = [row[:3] for row in members[:_N_SHOWN]]
    note = f"The {len(shown)} most extreme of {len(members)}." if members else "There are none."
    return ReportTable(name, ["latent", "relative decoder norm", "decoder cosine"], shown, note)


def _csv(geometry: PairGeometry) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["latent", "relative_decoder_norm", "decoder_cosine", "class"])
    writer.writerows(_rows(geometry))
    return text.getvalue()
