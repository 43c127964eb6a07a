"""Stage-wise rotation as files: an HTML report, a PNG and a CSV of all latents."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from sae_lens_crosscoder.diffing.report import Cell, ReportTable, write_report_html
from sae_lens_crosscoder.diffing.rotation import StageRotations
from sae_lens_crosscoder.diffing.rotation_figure import rotation_figure, save_rotation_png
from sae_lens_crosscoder.files import write_file

_COLUMNS = ("latent", "cosine D → DF", "cosine M → MF", "rank D → DF", "rank M → MF", "joint rank", "quadrant")
_CSV_COLUMNS = ("latent", "cosine_d_df", "cosine_m_mf", "rank_d_df", "rank_m_mf", "joint_rank", "quadrant")
_N_SHOWN = 20


def write_rotation_report(
    rotations: StageRotations,
    folder: str | Path,
    marked: Mapping[str, Sequence[int]] | None = None,
    tables: Sequence[ReportTable] = (),
) -> dict[str, Path]:
    """Write `report.html`, `rotation.png` and `rotation.csv`; return their paths by name.

    Args:
        rotations: How far the latents turned.
        folder: Where the files go; made if needed.
        marked: Latents to put rings around in the figures, under a name for each group.
        tables: Further tables for the report, shown first.

    Raises:
        SaveError: A file cannot be written.
    """
    folder = Path(folder)
    counts = ReportTable(
        "Latents by quadrant",
        ["quadrant", "latents"],
        list(rotations.counts.items()),
        "D: turned far from D to DF, where the model changes under the fine-tuning data. M: turned far from M to MF, "
        "where the data change under the fine-tuned model. DM: both.",
    )
    figure = rotation_figure(rotations, marked)
    report = write_report_html(
        figure, folder / "report.html", "Stage-wise diffing", [*tables, counts, most_rotated(rotations)]
    )
    return {
        "report": report,
        "figure": save_rotation_png(rotations, folder / "rotation.png", marked),
        "latents": write_file(folder / "rotation.csv", _csv(rotations).encode()),
    }


def most_rotated(rotations: StageRotations, n_shown: int = _N_SHOWN) -> ReportTable:
    """The latents that turned furthest on both axes, as a table."""
    rows = sorted(_rows(rotations), key=lambda row: row[5])[:n_shown]
    shown: list[Sequence[Cell]] = list(rows)
    note = "Ranked by the worse of the two ranks; rank 1 turned furthest."
    return ReportTable(f"The {len(rows)} latents that turned furthest with both", _COLUMNS, shown, note)


def _rows(rotations: StageRotations) -> list[tuple[int, float, float, int, int, int, str]]:
    return list(
        zip(
            range(len(rotations.quadrants)),
            rotations.model_change.tolist(),
            rotations.data_change.tolist(),
            rotations.model_ranks.tolist(),
            rotations.data_ranks.tolist(),
            rotations.joint_ranks.tolist(),
            rotations.quadrants,
            strict=True,
        )
    )


def _csv(rotations: StageRotations) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_CSV_COLUMNS)
    writer.writerows(_rows(rotations))
    return text.getvalue()
