"""`DiffReport`: the findings of a diffing run, and the files they are written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.diffing.diff_report.evidence import Evidence
from sae_lens_crosscoder.diffing.diff_report.latent_table import PARQUET, LatentTable
from sae_lens_crosscoder.diffing.diff_report.overview import Overview
from sae_lens_crosscoder.diffing.diff_report.page_files import assemble
from sae_lens_crosscoder.diffing.diff_report.payload import payload
from sae_lens_crosscoder.errors import ConfigError, ShapeError
from sae_lens_crosscoder.files import written_aside

if TYPE_CHECKING:
    import pandas as pd

PAGE = "report.html"
CSV = "latents.csv"


@dataclass(frozen=True, eq=False)
class DiffReport:
    """What a diffing run found: one row a latent, with the texts and figures that explain it.

    Raises:
        ConfigError: A figure of a column that is missing or holds text; a logit lens of a source that has no label.
        ShapeError: Contexts, lenses or documents of latents that the table does not have, or documents with next
            tokens of another number of sources.
    """

    table: LatentTable
    overview: Overview = field(default_factory=Overview)
    evidence: Evidence = field(default_factory=Evidence)
    title: str = ""
    """Heading of the page; by default the labels."""

    metadata: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    """What was compared and how (models, layer, data, seed), shown on the first page."""

    def __post_init__(self) -> None:
        for name in [*self.overview.histograms, *(self.overview.scatter or ())]:
            if self.table.column(name).is_text:
                raise ConfigError(f"The column {name!r} holds text, which has no axis: draw a numeric one.")
        labels = list(self.table.labels)
        if unknown := [label for label in self.evidence.logit_lens if label not in labels]:
            raise ConfigError(f"There are logit lenses of {unknown}, and the sources are {labels}.")
        latents = self.evidence.latents
        if latents and not 0 <= latents[0] <= latents[-1] < self.table.d_sae:
            raise ShapeError(
                f"Contexts, lenses and documents name latents from {latents[0]} to {latents[-1]}, and the table has "
                f"{self.table.d_sae}: they belong to another crosscoder."
            )
        if any(len(document.top_ids) != len(labels) for document in self.evidence.kl_documents):
            raise ShapeError(f"Every KL document needs next tokens of all {len(labels)} sources, in their order.")

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame (see `LatentTable.to_pandas`)."""
        return self.table.to_pandas()

    def to_html(self) -> str:
        """The page: one HTML document that holds all data, loads nothing, and opens without a network.

        The table is in the page in single precision. Strings of any kind (labels, tokens) reach the page as data and
        are shown as text, control characters and marks that turn the reading direction spelt out.
        """
        title = self.title or " and ".join(self.table.labels) + ": what differs"
        manifest, blocks = payload(title, self.table, self.overview, self.evidence, self.metadata)
        return assemble(title, manifest, blocks)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write `report.html`, `latents.parquet` and `latents.csv`; return their paths by name.

        Either all three are replaced or none. `LatentTable.load` reads the parquet file back.

        Args:
            folder: Where the files go; made if needed. Other files in it stay.

        Raises:
            SaveError: A file cannot be written; what was there before is untouched.
        """
        names = {"report": PAGE, "table": PARQUET, "csv": CSV}
        contents = {PAGE: self.to_html().encode(), PARQUET: self.table.to_parquet(), CSV: self.table.to_csv()}
        with written_aside(folder) as aside:
            for name, content in contents.items():
                (aside / name).write_bytes(content)
        return {key: Path(folder) / name for key, name in names.items()}
