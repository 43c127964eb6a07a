"""Every SAELens name that this package uses and that SAELens does not export from its root.

Nothing else in the package imports a SAELens submodule, so a SAELens release that moves one of these breaks in one
place. What is assumed of their behaviour has one test each in `tests/test_saelens_contract.py`.
"""

from sae_lens.config import SAETrainerConfig
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.evals import EvalConfig
from sae_lens.load_model import load_model
from sae_lens.pretokenize_runner import get_special_token_from_cfg
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes.jumprelu_sae import JumpReLU, Step
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainStepInput,
    TrainStepOutput,
)
from sae_lens.saes.topk_sae import TopK
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.types import DataProvider
from sae_lens.util import (
    extract_layer_from_tlens_hook_name,
    get_special_token_ids,
    str_to_dtype,
)
from safetensors import SafetensorError

UNREADABLE_SAE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)
"""What reading an SAE raises where its files are damaged, are those of something else, or do not fit together."""

__all__ = [
    "ACTIVATIONS_STORE_STATE_FILENAME",
    "ACTIVATION_SCALER_CFG_FILENAME",
    "RUNNER_CFG_FILENAME",
    "SAE_CFG_FILENAME",
    "SAE_TRAINING_CLASS_REGISTRY",
    "SAE_WEIGHTS_FILENAME",
    "SPARSITY_FILENAME",
    "TRAINER_STATE_FILENAME",
    "UNREADABLE_SAE",
    "ActivationScaler",
    "DataProvider",
    "EvalConfig",
    "JumpReLU",
    "SAETrainerConfig",
    "Step",
    "TopK",
    "TrainCoefficientConfig",
    "TrainStepInput",
    "TrainStepOutput",
    "concat_and_batch_sequences",
    "extract_layer_from_tlens_hook_name",
    "get_sae_training_class",
    "get_special_token_from_cfg",
    "get_special_token_ids",
    "load_model",
    "str_to_dtype",
]
