"""`convert`: a crosscoder of any known format as a folder that stock SAELens loads."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.checkpoint_flags import add_checkpoint_flags, checkpoint_options
from sae_lens_crosscoder.cli.load import describe

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Write a crosscoder of any known format, from a folder or the Hugging Face Hub, as cfg.json and
sae_weights.safetensors, which SAE.load_from_disk gives without this package: its own codes and
reconstructions on raw activations."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("convert", help="write a crosscoder as a SAELens SAE", description=_DESCRIPTION)
    parser.add_argument(
        "repo_or_path", metavar="REPO_OR_PATH", help="repository, path or known name (see load --known)"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    add_checkpoint_flags(parser)
    parser.runs(_convert)


def _convert(options: Namespace) -> None:
    from sae_lens_crosscoder.files import check_writable
    from sae_lens_crosscoder.hub import load_crosscoder, save_crosscoder

    check_writable(options.out)
    sae = load_crosscoder(options.repo_or_path, **checkpoint_options(options))
    describe(sae)
    print(f"Saved to {save_crosscoder(sae, options.out)}.")
