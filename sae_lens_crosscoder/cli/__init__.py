"""The command line: `sae-lens-crosscoder COMMAND`, one module a command.

A module of a command has `add(commands)`, which declares its parser, and imports Torch and SAELens only when it runs,
so that help comes at once.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence

from sae_lens_crosscoder import __version__
from sae_lens_crosscoder.cli import (
    cache,
    completion,
    convert,
    dashboard,
    demo,
    diff,
    doctor,
    evaluate,
    fields,
    load,
    neuronpedia,
    publish,
    steer,
    train,
)
from sae_lens_crosscoder.cli.parser import CommandParser, split_fields
from sae_lens_crosscoder.cli.plain_warnings import plain_warnings
from sae_lens_crosscoder.errors import CrosscoderError, StreamError, TrainingInterrupted

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75  # "temporary failure, try again": a checkpoint was saved, or a server did not answer
EXIT_STOPPED = 130  # as a shell says of a program that was interrupted: nothing was saved


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    0, 2 for bad input, 75 for an interrupted run that saved a checkpoint and for data that a server did not give, 130
    for an interrupted run that saved none.
    """
    parser, commands = parsers()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = Namespace(when_stopped="")
    try:
        own, given = split_fields(words or ["--help"], commands)
        options = parser.parse_args(own)
        options.fields = given
        with plain_warnings():
            options.command(options)
    except TrainingInterrupted as error:
        print(error, file=sys.stderr)
        return EXIT_INTERRUPTED if error.checkpoint is not None else EXIT_STOPPED
    except KeyboardInterrupt:
        print(f"Stopped. {options.when_stopped}".rstrip(), file=sys.stderr)
        return EXIT_STOPPED
    except StreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except CrosscoderError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def parsers() -> tuple[argparse.ArgumentParser, dict[str, CommandParser]]:
    """The whole parser, and the parser of each command by its name."""
    parser = argparse.ArgumentParser(
        prog="sae-lens-crosscoder", description="Train crosscoders with SAELens and see what fine-tuning changed."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=CommandParser)
    reading = (evaluate, diff, steer, dashboard, neuronpedia)
    for module in (train, cache, *reading, publish, load, convert, demo, fields, doctor, completion):
        module.add(commands)
    return parser, commands.choices
