"""`completion`: the script by which a shell completes commands, flags, fields and paths."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Print the script by which a shell completes commands, flags, fields of configurations and paths.
Write it to a file that the shell reads when it starts, once for each version of this package:

  bash:  sae-lens-crosscoder completion bash > ~/.local/share/bash-completion/completions/sae-lens-crosscoder
  zsh:   sae-lens-crosscoder completion zsh > DIR/_sae-lens-crosscoder    (DIR is one of $fpath)
  fish:  sae-lens-crosscoder completion fish > ~/.config/fish/completions/sae-lens-crosscoder.fish"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("completion", help="print a shell's completion script", description=_DESCRIPTION)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    parser.runs(_completion)


def _completion(options: Namespace) -> None:
    import shtab

    from sae_lens_crosscoder.cli import parsers
    from sae_lens_crosscoder.training.field_docs import field_flags

    parser, commands = parsers()
    flags = field_flags()
    for command in commands.values():
        if command.takes_fields:
            command.add_fields(flags)
        command.complete_paths(shtab.FILE)
    print(shtab.complete(parser, options.shell))
