"""One row a latent, and one page that shows it: what a diffing run found, as parquet, CSV and self-contained HTML."""

from sae_lens_crosscoder.diffing.diff_report.column import Column
from sae_lens_crosscoder.diffing.diff_report.evidence import Contexts, Evidence, KLDocument, LogitLens
from sae_lens_crosscoder.diffing.diff_report.latent_table import LatentTable
from sae_lens_crosscoder.diffing.diff_report.overview import KeyFigure, Overview
from sae_lens_crosscoder.diffing.diff_report.report import DiffReport

__all__ = [
    "Column",
    "Contexts",
    "DiffReport",
    "Evidence",
    "KLDocument",
    "KeyFigure",
    "LatentTable",
    "LogitLens",
    "Overview",
]
