"""`fields`: list the fields of a training configuration."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("fields", help="list the fields of a training configuration")
    parser.add_argument("architecture", nargs="?", default="batchtopk_crosscoder")
    parser.runs(_fields)


def _fields(options: Namespace) -> None:
    from sae_lens_crosscoder.training.field_docs import describe_fields

    print(describe_fields(options.architecture))
