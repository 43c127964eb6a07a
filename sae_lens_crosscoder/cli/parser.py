"""The parser of one command, and the flags that are fields of a configuration and not its own."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["CommandParser"]  # pyright: ignore[reportPrivateUsage]


class CommandParser(argparse.ArgumentParser):
    """Parser of one command, which remembers the flags that are its own.

    Descriptions are printed with their line breaks.
    """

    def __init__(self, **options: Any) -> None:
        self.own_flags: list[str] = []
        self.flags_with_value: list[str] = []
        self.takes_fields = False
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        self.own_flags.extend(action.option_strings)
        self.flags_with_value.extend(action.option_strings if action.nargs != 0 else ())
        return action

    def add_crosscoder(self) -> None:
        """Add the folder of a crosscoder, and the device that it is read on with its models."""
        self.add_argument("path", type=Path, help="folder of a crosscoder")
        self.add_argument("--device", default="cpu", help="device of the models and the crosscoder")

    def add_pair(self) -> None:
        """Add the labels of the two models that are compared."""
        self.add_argument("--base", metavar="LABEL", help="the base model; default the first source")
        self.add_argument("--finetuned", metavar="LABEL", help="the fine-tuned model; default the second source")

    def add_fields(self, flags: Mapping[str, str]) -> None:
        """Declare fields of a configuration, with their meaning, for a shell to complete."""
        for flag, meaning in flags.items():
            if flag not in self.own_flags:
                self.add_argument(flag, help=meaning.replace("%", "%%"))

    def complete_paths(self, completer: object) -> None:
        """Have a shell complete every argument that is a path."""
        for action in self._actions:
            if action.type is Path:
                vars(action)["complete"] = completer

    def runs(
        self, command: Callable[[argparse.Namespace], None], *, takes_fields: bool = False, when_stopped: str = ""
    ) -> None:
        """Say which function runs the command.

        Args:
            command: The function. It finds the flags that are not its own in `options.fields`.
            takes_fields: Whether flags that are not its own are fields of a configuration, and no error.
            when_stopped: What the user should know who has stopped it.
        """
        self.takes_fields = takes_fields
        self.set_defaults(command=command, when_stopped=when_stopped)


def split_fields(arguments: list[str], commands: Mapping[str, CommandParser]) -> tuple[list[str], list[str]]:
    """The arguments that argparse reads, and the flags with their values that are fields of a configuration.

    Raises:
        ConfigError: A command that there is not, or a flag that is nearly one of the command's own.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], list(commands), 1)
        hint = f"Did you mean `{near[0]}`?" if near else "sae-lens-crosscoder --help lists those that there are."
        raise ConfigError(f"There is no command {arguments[0]!r}. {hint}")
    parser = commands.get(arguments[0]) if arguments else None
    if parser is None or not parser.takes_fields:
        return arguments, []
    own, fields, remaining = arguments[:1], list[str](), arguments[1:]
    while remaining:
        argument = remaining.pop(0)
        flag, *value = argument.split("=", 1)
        if (own_name := flag.replace("_", "-")) in parser.flags_with_value:
            flag, argument = own_name, "=".join([own_name, *value])
        is_field = argument.startswith("--") and flag not in parser.own_flags
        # Flags have hyphens, fields underscores; a field that is written with hyphens is not this near to a flag.
        if is_field and "-" in flag[2:] and (near := difflib.get_close_matches(flag, parser.own_flags, 1, 0.85)):
            raise ConfigError(f"`{arguments[0]}` has no flag {flag}. Did you mean {near[0]}?")
        (fields if is_field else own).append(argument)
        if is_field and "=" not in argument and remaining and not remaining[0].startswith("--"):
            fields.append(remaining.pop(0))
    return own, fields


def parse_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """`--lr 1e-4 --sae.k 50 --flag=true` as `{"lr": 1e-4, "sae": {"k": 50}, "flag": True}`.

    Raises:
        ConfigError: A flag without a value, a value without a flag, or a field of what another flag gives as a value.
    """
    values: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        flag = remaining.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"{flag!r} belongs to no flag. Fields are given as --name value.")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{name} has no value. Fields are given as --name value.")
            text = remaining.pop(0)
        target = values
        *groups, field = name.split(".")
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--{name} sets a field of {group!r}, which another flag gives as {target!r}.")
        target[field.replace("-", "_")] = _parse_value(text)
    return values


def parse_pairs(text: str) -> dict[str, Any]:
    """`label=base,d_in=128` as a mapping; a JSON object is taken as it is.

    Raises:
        ConfigError: A part without "=".
    """
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{text[:200]!r} is no JSON object: {error}.") from error
    pairs = [part.partition("=") for part in text.split(",")]
    broken = [name for name, equals, _ in pairs if not equals]
    if broken:
        raise ConfigError(f"{broken[0]!r} is no field=value, in {text!r}.")
    return {name.strip(): _parse_value(value) for name, _, value in pairs}


def labelled(texts: Sequence[str]) -> dict[str, str]:
    """`["base=gpt2", "chat=alice/x"]` as `{"base": "gpt2", "chat": "alice/x"}`.

    Raises:
        ConfigError: A text without a label, "=" or a value.
    """
    pairs = {text: text.partition("=") for text in texts}
    if broken := [text for text, parts in pairs.items() if not all(parts)]:
        raise ConfigError(f"{broken[0]!r} is not of the form LABEL=VALUE, such as base=google/gemma-2-2b.")
    return {label: value for label, _, value in pairs.values()}


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a number of more digits than Python reads, brackets of brackets
        return None if text == "None" else text
