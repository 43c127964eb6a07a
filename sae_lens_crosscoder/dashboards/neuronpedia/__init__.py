"""Neuronpedia: dashboards in the form of its importer and its upload API, their check, and the upload.

A crosscoder gives one Neuronpedia source for each of its models: the same latents with the same activations, that
model's logits, and that model's slice of the decoder as the vector to steer with. Nothing here needs sae-dashboard,
which makes the batches that are exported.
"""

from sae_lens_crosscoder.dashboards.neuronpedia.api import ApiKey
from sae_lens_crosscoder.dashboards.neuronpedia.export import ExportedSource, ExportSource, export_neuronpedia
from sae_lens_crosscoder.dashboards.neuronpedia.names import SEEDED_CREATOR_ID, SourceName
from sae_lens_crosscoder.dashboards.neuronpedia.problems import Problem
from sae_lens_crosscoder.dashboards.neuronpedia.records import ExportModel, Release
from sae_lens_crosscoder.dashboards.neuronpedia.upload import UploadConfig, UploadSummary, upload_payloads
from sae_lens_crosscoder.dashboards.neuronpedia.validator import validate_export

__all__ = [
    "SEEDED_CREATOR_ID",
    "ApiKey",
    "ExportModel",
    "ExportSource",
    "ExportedSource",
    "Problem",
    "Release",
    "SourceName",
    "UploadConfig",
    "UploadSummary",
    "export_neuronpedia",
    "upload_payloads",
    "validate_export",
]
