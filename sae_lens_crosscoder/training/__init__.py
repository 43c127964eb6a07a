"""Training: the architectures, the run's configuration and the runner. Importing it registers them with SAELens."""

from sae_lens import register_sae_training_class

from sae_lens_crosscoder.training.batchtopk_crosscoder import (
    BatchTopKTrainingCrosscoder,
    BatchTopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig
from sae_lens_crosscoder.training.gated_crosscoder import GatedTrainingCrosscoder, GatedTrainingCrosscoderConfig
from sae_lens_crosscoder.training.jumprelu_crosscoder import (
    JumpReLUTrainingCrosscoder,
    JumpReLUTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.matryoshka_crosscoder import (
    MatryoshkaBatchTopKTrainingCrosscoder,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.standard_crosscoder import (
    StandardTrainingCrosscoder,
    StandardTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.topk_crosscoder import TopKTrainingCrosscoder, TopKTrainingCrosscoderConfig
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer, TrainerParts

for _sae, _config in (
    (StandardTrainingCrosscoder, StandardTrainingCrosscoderConfig),
    (GatedTrainingCrosscoder, GatedTrainingCrosscoderConfig),
    (JumpReLUTrainingCrosscoder, JumpReLUTrainingCrosscoderConfig),
    (TopKTrainingCrosscoder, TopKTrainingCrosscoderConfig),
    (BatchTopKTrainingCrosscoder, BatchTopKTrainingCrosscoderConfig),
    (MatryoshkaBatchTopKTrainingCrosscoder, MatryoshkaBatchTopKTrainingCrosscoderConfig),
):
    register_sae_training_class(_config.architecture(), _sae, _config)

__all__ = [
    "BatchTopKTrainingCrosscoder",
    "BatchTopKTrainingCrosscoderConfig",
    "CrosscoderRunnerConfig",
    "CrosscoderTrainer",
    "CrosscoderTrainingRunner",
    "GatedTrainingCrosscoder",
    "GatedTrainingCrosscoderConfig",
    "JumpReLUTrainingCrosscoder",
    "JumpReLUTrainingCrosscoderConfig",
    "MatryoshkaBatchTopKTrainingCrosscoder",
    "MatryoshkaBatchTopKTrainingCrosscoderConfig",
    "StandardTrainingCrosscoder",
    "StandardTrainingCrosscoderConfig",
    "TopKTrainingCrosscoder",
    "TopKTrainingCrosscoderConfig",
    "TrainerParts",
    "TrainingCrosscoder",
    "TrainingCrosscoderConfig",
]
