"""One row a latent, and one page that shows it: what a diffing run found, as parquet, CSV and self-contained HTML."""

from sae_lens_crosscoder.diffing.diff_report.evidence import Contexts, Evidence, KLDocument, LogitLens
from sae_lens_crosscoder.diffing.diff_report.latent_table import Column, LatentTable
from sae_lens_crosscoder.diffing.diff_report.report import DiffReport, KeyFigure, Overview

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
