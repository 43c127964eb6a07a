"""`cache`: write the joint activations of a run to disk, to train on them any number of times."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import given
from sae_lens_crosscoder.cli.run_config import add_run_config, run_config
from sae_lens_crosscoder.errors import ConfigError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Run the models of a training configuration once and write their joint activations to disk.

Training reads them with use_cached_activations, also while they are being written:

  sae-lens-crosscoder cache run.yaml --out activations --tokens 100000000
  sae-lens-crosscoder train run.yaml --use_cached_activations true --cached_activations_path activations

Several processes share the work, each with its own --rank of --world-size. A writer that was stopped goes on when it is
called again. The size is told before anything is written. Fields of the configuration can be changed by flags, as for
`train`; those of the crosscoder and its training do not matter here."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("cache", help="write the activations of a run to disk", description=_DESCRIPTION)
    add_run_config(parser)
    flag = parser.add_argument
    flag("--out", type=Path, help="folder to write to; default the configuration's cached_activations_path")
    flag("--tokens", type=int, help="tokens of text, special tokens among them; default training_tokens")
    flag("--dtype", help="dtype on disk; default bfloat16")
    flag("--rank", type=int, help="which of the writers this is, from 0; default 0")
    flag("--world-size", type=int, help="how many writers there are; default 1")
    parser.runs(_cache, takes_fields=True, when_stopped="The cache goes on from its last shard when you call it again.")


def _cache(options: Namespace) -> None:
    from sae_lens_crosscoder.activations import CacheRequest, PairedActivationsStore, write_cache
    from sae_lens_crosscoder.joint_model import JointModel

    # The file may be that of the run that is to read the cache.
    cfg = run_config(options, use_cached_activations=False)
    out = options.out or cfg.cached_activations_path
    if out is None:
        raise ConfigError("It is not said where the cache is to be. Give --out DIR.")
    tokens = cfg.training_tokens if options.tokens is None else options.tokens
    request = CacheRequest(tokens, **given(options, "dtype", "rank", "world_size"))
    model = JointModel.from_pretrained(cfg.joint_sources, cfg.llm_device or cfg.device)
    description = write_cache(PairedActivationsStore.from_config(model, cfg), out, request)
    share = f"the shards of writer {request.rank} of {request.world_size}" if request.world_size > 1 else "all shards"
    print(f"{out} has {share}: up to {description.n_sequences:,} sequences in {description.n_shards:,} shards.")
