"""A model diff from start to end, on a trained crosscoder and its models."""

from sae_lens_crosscoder.model_diff.run import ModelDiff, diff_models
from sae_lens_crosscoder.model_diff.saved import subject_of_run
from sae_lens_crosscoder.model_diff.setup import DiffConfig, DiffSubject

__all__ = ["DiffConfig", "DiffSubject", "ModelDiff", "diff_models", "subject_of_run"]
