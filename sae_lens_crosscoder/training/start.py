"""Where a run starts: at the beginning, at a checkpoint, at its evaluation, or not at all, since it is finished."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sae_lens_crosscoder._saelens import SAE_CFG_FILENAME
from sae_lens_crosscoder.errors import ConfigError, FinishedError
from sae_lens_crosscoder.training.checkpoints import AUTO, check_checkpoint, is_finished, newest_whole_checkpoint
from sae_lens_crosscoder.training.final_evaluation import lacks_metrics
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import METRICS_FILENAME

logger = logging.getLogger(__name__)


def choose_start(cfg: CrosscoderRunnerConfig[Any], run: str) -> bool:
    """Fill in the checkpoint that "auto" stands for.

    Args:
        cfg: The run.
        run: Fingerprint of its configuration.

    Returns:
        Whether the run is finished but for its evaluation.

    Raises:
        FinishedError: It is finished.
        ConfigError: It would replace another run's output, or has no folder to look for checkpoints in.
        NotFoundError: There is no checkpoint at the path.
        DamagedError: There is one, but it is not what was written.
    """
    output = None if cfg.output_path is None else Path(cfg.output_path)
    resumes, auto = cfg.resume_from_checkpoint is not None, cfg.resume_from_checkpoint == AUTO
    if output is not None and (output / SAE_CFG_FILENAME).is_file() and not cfg.overwrite_output:
        if is_finished(output, run):
            is_evaluated = not lacks_metrics(output, cfg)
            if resumes and not is_evaluated:
                return True
            told = "" if is_evaluated else f" Only its {METRICS_FILENAME} is missing, which --resume auto makes."
            raise FinishedError(
                f"The run is finished: {output} holds the crosscoder of this very configuration.{told} Raise "
                "training_tokens to train on, or set overwrite_output=True to train it once more."
            )
        if not resumes or auto:
            raise ConfigError(
                f"{output} holds a crosscoder of another run, which would be replaced. Choose another output_path, or "
                "set overwrite_output=True."
            )
    if auto:
        if cfg.checkpoint_path is None:
            raise ConfigError(f"resume_from_checkpoint={AUTO!r} looks below checkpoint_path, which is not set. Set it.")
        found = newest_whole_checkpoint(Path(cfg.checkpoint_path).parent, run)
        if found is None:
            logger.info("There is no checkpoint of this configuration yet; the run begins.")
            cfg.resume_from_checkpoint = None
        else:
            logger.info("The run goes on from %s.", found)
            cfg.resume_from_checkpoint, cfg.checkpoint_path = str(found), str(found.parent)
    elif cfg.resume_from_checkpoint is not None:
        check_checkpoint(cfg.resume_from_checkpoint)
    return False
