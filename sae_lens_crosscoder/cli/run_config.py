"""The configuration of a run from a file and flags, for the commands that take one."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.cli.parser import CommandParser, parse_fields, parse_pairs

if TYPE_CHECKING:
    from sae_lens_crosscoder.training import CrosscoderRunnerConfig


def add_run_config(parser: CommandParser) -> None:
    """Declare the arguments. The command has to take fields."""
    parser.add_argument("config", nargs="?", type=Path, help="configuration file, JSON or YAML")
    parser.add_argument("--source", action="append", default=[], metavar="FIELD=VALUE,...", help="add a source")
    parser.add_argument(
        "--skip-bad-shards",
        action="store_true",
        help="leave out files of the data that cannot be decoded, in place of ending with their name",
    )
    parser.add_argument("--dataset", action="append", default=[], metavar="FIELD=VALUE,...", help="add a data set")


def run_config(options: Namespace, **fixed: Any) -> CrosscoderRunnerConfig[Any]:
    """The configuration: flags win over the file.

    Args:
        options: What was given.
        fixed: Fields that the command sets whatever was given.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: An unknown field, or fields that contradict each other.
    """
    values = parse_fields(options.fields)
    from sae_lens_crosscoder.fields import merged, read_config_file
    from sae_lens_crosscoder.training import CrosscoderRunnerConfig

    base = read_config_file(options.config) if options.config is not None else {}
    if options.source:
        values["sources"] = [parse_pairs(text) for text in options.source]
    if options.skip_bad_shards:
        values["skip_bad_shards"] = True
    if options.dataset:
        values["datasets"] = [parse_pairs(text) for text in options.dataset]
    return CrosscoderRunnerConfig.from_dict({**merged(base, values), **fixed}, new_run=True)
