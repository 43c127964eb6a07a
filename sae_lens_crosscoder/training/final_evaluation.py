"""The evaluation of what a run has saved: its last part, which can be made up for where it did not come to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_crosscoder.errors import MemoryFullError, first_line
from sae_lens_crosscoder.evals import CrosscoderEvaluator
from sae_lens_crosscoder.files import write_json
from sae_lens_crosscoder.manifest import read_manifest
from sae_lens_crosscoder.training.failing import is_out_of_memory
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import METRICS_FILENAME

TRAINING = "training"
"""What `metrics.json`, and the manifest of a finished crosscoder, call the facts of its training."""


def lacks_metrics(folder: Path, cfg: CrosscoderRunnerConfig[Any]) -> bool:
    """Whether the evaluation of a finished crosscoder, which its configuration asks for, is not there."""
    return cfg.n_eval_batches > 0 and not (folder / METRICS_FILENAME).is_file()


def evaluate_saved(folder: Path, evaluator: CrosscoderEvaluator, cfg: CrosscoderRunnerConfig[Any]) -> dict[str, Any]:
    """Measure a finished crosscoder, as anyone will load it, and write `metrics.json` with the facts of its training.

    Returns:
        What was measured.

    Raises:
        MemoryFullError: A device has no memory left; the message holds the commands that evaluate the crosscoder.
        SaveError: The system refused the write.
    """
    try:
        metrics = evaluator.evaluate(SAE.load_from_disk(folder, device=cfg.device), progress=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFullError(_advice(error, folder, cfg)) from error
    manifest = read_manifest(folder)
    facts = {TRAINING: manifest[TRAINING]} if TRAINING in manifest else {}
    write_json(folder / METRICS_FILENAME, metrics | facts)
    return metrics


def _advice(error: BaseException, folder: Path, cfg: CrosscoderRunnerConfig[Any]) -> str:
    n_prompts = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
    fewer = max(1, n_prompts // 2)
    n_batches = cfg.n_eval_batches * n_prompts // fewer  # one more would reach into the training data
    return (
        f"There was no memory left for the evaluation of what was saved: {first_line(error)}. Training is finished and "
        f"{folder} holds the crosscoder, whole; only its {METRICS_FILENAME} is missing. Start the run again with "
        "--resume auto: it only evaluates, without the memory that training held. If that does not fit either, "
        f"evaluate fewer sequences at once: sae-lens-crosscoder eval {folder} --eval_batch_size_prompts {fewer} "
        f"--n_eval_batches {n_batches} --out {folder / METRICS_FILENAME}"
    )
