"""`steer`: what both models say with latents added or removed, side by side."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from sae_lens_crosscoder.cli.parser import given

if TYPE_CHECKING:
    from sae_lens_crosscoder.cli.parser import Commands

_DESCRIPTION = """Continue prompts with both models of a crosscoder, as they are and with latents added or removed at
every position, side by side. Activations are in the units of the crosscoder's latents: the column
`largest` of a diff's table says how strong a latent becomes."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "steer", help="what the models say with latents added or removed", description=_DESCRIPTION
    )
    flag = parser.add_argument
    parser.add_crosscoder()
    flag("--prompt", action="append", required=True, help="text that is continued; may be given several times")
    flag("--add", action="append", default=[], type=_strength, metavar="LATENT=ACTIVATION", help="latent to add")
    flag("--remove", action="append", default=[], type=int, metavar="LATENT", help="latent to remove")
    flag("--max-new-tokens", type=int, default=32, help="tokens that are added; default 32")
    flag("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    flag("--seed", type=int, default=0, help="seed of the draws")
    parser.add_pair()
    parser.runs(_steer)


def _strength(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+)=(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not LATENT=ACTIVATION, such as 12=5.0")
    return int(match[1]), float(match[2])


def _steer(options: Namespace) -> None:
    from sae_lens_crosscoder.causal import ModelComparison, Steering, generate_side_by_side
    from sae_lens_crosscoder.joint_model import JointModel
    from sae_lens_crosscoder.training.devices import check_device
    from sae_lens_crosscoder.training.saved_run import SavedRun

    check_device(options.device)
    run = SavedRun(options.path, options.device)
    joint = JointModel.from_pretrained(run.sources, options.device)
    comparison = ModelComparison(joint, run.sae, **given(options, "base", "finetuned"))
    steering = Steering(dict(options.add), options.remove)
    steerings = {"as it is": Steering()} | ({"steered": steering} if steering.add or steering.remove else {})
    has_bos = getattr(joint.tokenizer, "bos_token_id", None) is not None
    for prompt in options.prompt:
        tokens = joint.to_tokens(prompt, prepend_bos=has_bos)
        said = generate_side_by_side(
            comparison, tokens, steerings, options.max_new_tokens, options.temperature, options.seed
        )
        print(f"\n{prompt}")
        for label, continuations in said.items():
            for name, continued in continuations.items():
                text = joint.tokenizer.decode(continued[0, tokens.shape[1] :].tolist())
                print(f"  {f'{label}, {name}':>24}: {text!r}")
