"""Model diffing on tensors: what a crosscoder's decoder and activations say about its sources, for anyone's crosscoder.

Tensors in, tensors out: nothing here knows SAELens or a model library.
"""

from sae_lens_crosscoder.diffing.active_latents import ActiveLatents
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
from sae_lens_crosscoder.diffing.latent_scaling import LatentScaling, latent_scaling
from sae_lens_crosscoder.diffing.latent_statistics import GroupStatistics, LatentStatistics, LatentStatisticsResult
from sae_lens_crosscoder.diffing.linear_decoder import LinearDecoder, SparseAutoencoder
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry
from sae_lens_crosscoder.diffing.png import save_png
from sae_lens_crosscoder.diffing.report import ReportTable, write_report_html
from sae_lens_crosscoder.diffing.rotation import StageRotations, rotation
from sae_lens_crosscoder.diffing.rotation_figure import rotation_figure, save_rotation_png
from sae_lens_crosscoder.diffing.rotation_report import write_rotation_report
from sae_lens_crosscoder.diffing.sae_pass import Accumulator, CodedBatch, TokenBatch, run_pass
from sae_lens_crosscoder.diffing.scaling_result import LatentScalingResult, ScalingFlags, ScalingThresholds
from sae_lens_crosscoder.diffing.top_contexts import ContextTable, TopContexts

__all__ = [
    "Accumulator",
    "ActiveLatents",
    "ClassThresholds",
    "CodedBatch",
    "ContextTable",
    "GroupStatistics",
    "LatentScaling",
    "LatentScalingResult",
    "LatentStatistics",
    "LatentStatisticsResult",
    "LinearDecoder",
    "PairGeometry",
    "ReportTable",
    "ScalingFlags",
    "ScalingThresholds",
    "SparseAutoencoder",
    "StageRotations",
    "TokenBatch",
    "TopContexts",
    "class_counts",
    "class_names",
    "classify_latents",
    "decoder_cosine",
    "decoder_figure",
    "decoder_norm_shares",
    "decoder_norms",
    "latent_scaling",
    "minder_delta",
    "relative_decoder_norms",
    "rotation",
    "rotation_figure",
    "run_pass",
    "save_png",
    "save_rotation_png",
    "write_decoder_report",
    "write_report_html",
    "write_rotation_report",
]
