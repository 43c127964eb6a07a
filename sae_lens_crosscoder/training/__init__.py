"""Training: the architectures, the run's configuration and the runner. Importing it registers them with SAELens."""

from sae_lens import register_sae_training_class

from sae_lens_crosscoder.training.batchtopk_crosscoder import (
    BatchTopKTrainingCrosscoder,
    BatchTopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.standard_crosscoder import (
    StandardTrainingCrosscoder,
    StandardTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer, TrainerParts

for _sae, _config in (
    (StandardTrainingCrosscoder, StandardTrainingCrosscoderConfig),
    (BatchTopKTrainingCrosscoder, BatchTopKTrainingCrosscoderConfig),
):
    register_sae_training_class(_config.architecture(), _sae, _config)

__all__ = [
    "BatchTopKTrainingCrosscoder",
    "BatchTopKTrainingCrosscoderConfig",
    "CrosscoderRunnerConfig",
    "CrosscoderTrainer",
    "CrosscoderTrainingRunner",
    "StandardTrainingCrosscoder",
    "StandardTrainingCrosscoderConfig",
    "TrainerParts",
    "TrainingCrosscoder",
    "TrainingCrosscoderConfig",
]
