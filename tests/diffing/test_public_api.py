"""What the package offers, and that every name of it is explained."""

import inspect

from sae_lens_crosscoder import diffing


def test_the_public_names():
    assert sorted(diffing.__all__) == [
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


def test_every_public_name_has_a_docstring_of_its_own():
    for name in diffing.__all__:
        docstring = inspect.getdoc(getattr(diffing, name))
        assert docstring, name
        assert not docstring.startswith(f"{name}("), f"{name} has only the docstring that dataclass made"
