"""Model diffing on tensors: what the decoder of a crosscoder says about its sources, for anyone's crosscoder.

Tensors in, tensors out: nothing here knows SAELens or a model library.
"""

from sae_lens_crosscoder.diffing.classes import ClassThresholds, class_counts, class_names, classify_latents
from sae_lens_crosscoder.diffing.decoder_report import write_decoder_report
from sae_lens_crosscoder.diffing.figures import decoder_figure
from sae_lens_crosscoder.diffing.geometry import (
    decoder_cosine,
    decoder_norm_shares,
    decoder_norms,
    minder_delta,
    relative_decoder_norms,
)
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry
from sae_lens_crosscoder.diffing.png import save_png
from sae_lens_crosscoder.diffing.report import ReportTable, write_report_html
from sae_lens_crosscoder.diffing.rotation import StageRotations, rotation
from sae_lens_crosscoder.diffing.rotation_figure import rotation_figure, save_rotation_png
from sae_lens_crosscoder.diffing.rotation_report import write_rotation_report

__all__ = [
    "ClassThresholds",
    "PairGeometry",
    "ReportTable",
    "StageRotations",
    "class_counts",
    "class_names",
    "classify_latents",
    "decoder_cosine",
    "decoder_figure",
    "decoder_norm_shares",
    "decoder_norms",
    "minder_delta",
    "relative_decoder_norms",
    "rotation",
    "rotation_figure",
    "save_png",
    "save_rotation_png",
    "write_decoder_report",
    "write_report_html",
    "write_rotation_report",
]
