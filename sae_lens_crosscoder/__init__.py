"""Crosscoders and model diffing for SAELens: what did fine-tuning change inside a language model?

Importing the package registers its training architectures with SAELens.
"""

import sys
from pathlib import Path

__version__ = "0.1.0"


def _runs_as_command() -> bool:
    """Whether this process is the command line tool, which imports torch only in the commands that need it."""
    started_by = sys.orig_argv[1:3]
    if started_by[:1] == ["-m"]:
        return started_by[1:] in (["sae_lens_crosscoder"], ["sae_lens_crosscoder.cli"])
    return bool(started_by) and Path(started_by[0]).name in ("sae-lens-crosscoder", "sae-lens-crosscoder.exe")


if not _runs_as_command():
    from sae_lens_crosscoder.activations import DatasetConfig, PairedActivationsStore, SourceScaler, StoreConfig
    from sae_lens_crosscoder.errors import CrosscoderError
    from sae_lens_crosscoder.evals import CrosscoderEvaluator, ExplainedVariance
    from sae_lens_crosscoder.hub import load_crosscoder, publish_crosscoder
    from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModel, JointModelView
    from sae_lens_crosscoder.sources import Source, Sources
    from sae_lens_crosscoder.training import (
        BatchTopKTrainingCrosscoder,
        BatchTopKTrainingCrosscoderConfig,
        CrosscoderRunnerConfig,
        CrosscoderTrainer,
        CrosscoderTrainingRunner,
        GatedTrainingCrosscoder,
        GatedTrainingCrosscoderConfig,
        JumpReLUTrainingCrosscoder,
        JumpReLUTrainingCrosscoderConfig,
        MatryoshkaBatchTopKTrainingCrosscoder,
        MatryoshkaBatchTopKTrainingCrosscoderConfig,
        StandardTrainingCrosscoder,
        StandardTrainingCrosscoderConfig,
        TopKTrainingCrosscoder,
        TopKTrainingCrosscoderConfig,
        TrainingCrosscoder,
        TrainingCrosscoderConfig,
    )

    __all__ = [
        "JOINT_HOOK_NAME",
        "BatchTopKTrainingCrosscoder",
        "BatchTopKTrainingCrosscoderConfig",
        "CrosscoderError",
        "CrosscoderEvaluator",
        "CrosscoderRunnerConfig",
        "CrosscoderTrainer",
        "CrosscoderTrainingRunner",
        "DatasetConfig",
        "ExplainedVariance",
        "GatedTrainingCrosscoder",
        "GatedTrainingCrosscoderConfig",
        "JointModel",
        "JointModelView",
        "JumpReLUTrainingCrosscoder",
        "JumpReLUTrainingCrosscoderConfig",
        "MatryoshkaBatchTopKTrainingCrosscoder",
        "MatryoshkaBatchTopKTrainingCrosscoderConfig",
        "PairedActivationsStore",
        "Source",
        "SourceScaler",
        "Sources",
        "StandardTrainingCrosscoder",
        "StandardTrainingCrosscoderConfig",
        "StoreConfig",
        "TopKTrainingCrosscoder",
        "TopKTrainingCrosscoderConfig",
        "TrainingCrosscoder",
        "TrainingCrosscoderConfig",
        "__version__",
        "load_crosscoder",
        "publish_crosscoder",
    ]
