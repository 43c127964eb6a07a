"""`load`: fetch a crosscoder and say what it is."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.cli.checkpoint_flags import add_checkpoint_flags, checkpoint_options
from sae_lens_crosscoder.errors import ConfigError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Load a crosscoder from a folder or the Hugging Face Hub, in any known format, and say what it is. Give
"owner/name" of the Hub, a path, or the name of a known public crosscoder (--known lists them)."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("load", help="fetch a crosscoder and say what it is", description=_DESCRIPTION)
    parser.add_argument("repo_or_path", nargs="?", metavar="REPO_OR_PATH", help="repository, path or known name")
    parser.add_argument("--known", action="store_true", help="list the known public crosscoders")
    parser.add_argument("--out", type=Path, help="folder to save it to, as a SAELens SAE")
    add_checkpoint_flags(parser)
    parser.runs(_load)


def _load(options: Namespace) -> None:
    if options.known:
        _print_known()
        return
    if options.repo_or_path is None:
        raise ConfigError("Say what to load: a repository of the Hub, a path, or a name that --known lists.")
    from sae_lens_crosscoder.files import check_writable
    from sae_lens_crosscoder.hub import load_crosscoder, save_crosscoder

    if options.out is not None:
        check_writable(options.out)
    sae = load_crosscoder(options.repo_or_path, **checkpoint_options(options))
    describe(sae)
    if options.out is not None:
        print(f"Saved to {save_crosscoder(sae, options.out)}.")


def describe(sae: SAE[Any]) -> None:
    """Print what a crosscoder is: its architecture, its size and its sources."""
    from sae_lens_crosscoder.sources import Sources

    sources = Sources.from_metadata(sae.cfg.metadata)
    origin = sae.cfg.metadata.converted_from
    if origin is not None:
        place = ", ".join(f"{name} {value}" for name, value in origin.items() if value is not None)
        print(f"converted from {place}")
    n_parameters = sum(parameter.numel() for parameter in sae.parameters())
    kind = "the second source minus the first" if sources.combine == "difference" else f"{len(sources)} sources"
    print(f"{sae.cfg.architecture()}, {sae.cfg.d_sae:,} latents over {kind}, {n_parameters:,} parameters")
    for source in sources:
        print(
            f"{source.label:>12}  {source.model_name} at {source.hook_name}, width {source.d_in}, "
            f"activation scale {source.activation_scale:.6g}"
        )


def _print_known() -> None:
    from sae_lens_crosscoder.hub.registry import known_crosscoders

    for known in known_crosscoders():
        print(f"{known.name}\n    {known.about}")
        print(f"    {known.repo_id}{f', id {known.id}' if known.id else ''}; licence {known.license or 'not known'}")
