"""`train`: train a crosscoder from a configuration file and flags."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.run_config import add_run_config, run_config
from sae_lens_crosscoder.errors import FinishedError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Train a crosscoder.

Every field of the configuration is a flag, fields of the crosscoder with the prefix "sae.", those of the logger with
"logger."; lists and mappings are JSON. They win over the configuration file:

  sae-lens-crosscoder train run.yaml --lr 1e-4 --sae.k 50 --logger.log_to_wandb false
  sae-lens-crosscoder train
      --source label=base,model_name=google/gemma-2-2b,hook_name=blocks.13.hook_resid_post,d_in=2304
      --source label=chat,model_name=google/gemma-2-2b-it,hook_name=blocks.13.hook_resid_post,d_in=2304
      --dataset path=monology/pile-uncopyrighted,weight=0.5 --dataset path=lmsys/lmsys-chat-1m,weight=0.5
      --sae.architecture batchtopk_crosscoder --sae.d_in 4608 --sae.d_sae 16384 --training_tokens 100000000

`sae-lens-crosscoder fields [ARCHITECTURE]` lists all fields with their defaults.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("train", help="train a crosscoder", description=_DESCRIPTION)
    add_run_config(parser)
    parser.add_argument(
        "--resume",
        metavar="auto|CHECKPOINT",
        help="go on from a checkpoint; auto: from the newest undamaged one of this configuration, if there is one",
    )
    parser.runs(_train, takes_fields=True)


def _train(options: Namespace) -> None:
    import torch

    from sae_lens_crosscoder.training import CrosscoderTrainingRunner
    from sae_lens_crosscoder.training.parallel.joining import leave

    cfg = run_config(options, **({} if options.resume is None else {"resume_from_checkpoint": options.resume}))
    resumes = cfg.resume_from_checkpoint is not None
    torch.manual_seed(cfg.seed)  # of the first weights: a process would begin with others every time
    try:
        runner = CrosscoderTrainingRunner(cfg)
        runner.run()
    except FinishedError as error:
        if not resumes:
            raise
        print(error)  # whoever restarts a job until it is done must see that it is
    else:
        if runner.ranks.is_first:
            print(f"The crosscoder is in {cfg.output_path}.")
    leave()
