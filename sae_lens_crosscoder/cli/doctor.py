"""`doctor`: say what this machine and its Python have, and what to mend."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sae_lens_crosscoder.errors import MissingDependencyError

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands
    from sae_lens_crosscoder.doctor import Finding

_DESCRIPTION = """Look at versions that must fit together, imports, devices, memory, disk and the Hub login, and say
how to mend what is wrong. Nothing is changed, and nothing is sent anywhere."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("doctor", help="check the installation and this machine", description=_DESCRIPTION)
    parser.runs(_doctor)


def _doctor(_: Namespace) -> None:
    from sae_lens_crosscoder.doctor import examine

    problems = examine(_print)
    if problems:
        commands = "; ".join(dict.fromkeys(problem.remedy for problem in problems if problem.remedy is not None))
        raise MissingDependencyError(f"{len(problems)} found. To mend: {commands}")
    print("All is well.")


def _print(finding: Finding) -> None:
    mark = "!" if finding.remedy is not None else " "
    print(f"{mark} {finding.name:<24} {finding.text}", flush=True)
