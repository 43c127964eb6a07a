"""Flags that say which crosscoder is read, from a folder or the Hub, and what its files do not say."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.cli.parser import given, parse_pairs
from sae_lens_crosscoder.errors import ConfigError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import CommandParser


def add_checkpoint_flags(parser: CommandParser) -> None:
    """Declare the flags."""
    flag = parser.add_argument
    flag("--id", help="folder or file of the crosscoder in it; may be left out where there is only one")
    flag("--revision", help="branch, tag or commit of the repository; default main")
    flag("--format", default="auto", help='format of the checkpoint; default "auto": told by its files')
    flag("--scales", metavar="G,G", help="activation scale of each source, for formats that do not keep them")
    flag("--threshold", type=float, help="threshold of a BatchTopK that was saved without one")
    flag(
        "--source",
        action="append",
        metavar="FIELD=VALUE,...",
        help="fields of the sources in the checkpoint's order, such as label=base,model_name=google/gemma-2-2b",
    )


def checkpoint_options(options: Namespace) -> dict[str, Any]:
    """The flags as `load_crosscoder` takes them.

    Raises:
        ConfigError: Scales that are no numbers.
    """
    chosen = given(options, "id", "revision", "format", "threshold")
    if options.scales is not None:
        try:
            chosen["scales"] = [float(scale) for scale in options.scales.split(",")]
        except ValueError as error:
            raise ConfigError(f"--scales {options.scales} must be numbers with commas between them.") from error
    if options.source:
        chosen["sources"] = [parse_pairs(text) for text in options.source]
    return chosen
