"""The subject of a diff from the folder of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lens_crosscoder.activations import LabelledSequences
from sae_lens_crosscoder.activations.datasets import load_documents
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.model_diff.setup import DiffSubject
from sae_lens_crosscoder.training.saved_run import SavedRun


def subject_of_run(run: SavedRun, budget_tokens: int, overrides: Mapping[str, Any] | None = None) -> DiffSubject:
    """The models, the crosscoder and the text of a run.

    Args:
        run: The finished run.
        budget_tokens: Tokens of text that are collected from the run's data sets.
        overrides: Fields of the run's configuration to change, such as the data sets.

    Raises:
        NotFoundError: A model or a data set that is not there, or a folder without the run's configuration.
        SourceError: Models that read tokens of their own.
    """
    place = {"device": run.device, "llm_device": None, "act_store_device": None}
    cfg = run.config({**(overrides or {}), **place})
    joint = JointModel.from_pretrained(run.sources, run.device)
    store_config = cfg.store_config(joint.tokenizer)
    configs = cfg.dataset_configs
    sequences = LabelledSequences.collect(
        {config.title: load_documents(config) for config in configs},
        configs,
        joint.tokenizer,
        store_config.sequence_format,
        budget_tokens,
    )
    return DiffSubject(joint, run.sae, sequences, store_config.excluded_tokens, run.dead)
