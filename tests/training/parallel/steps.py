"""Training steps of one process and of several, for comparison; run as a process of `torchrun` it makes the latter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from architectures import make

from sae_lens_crosscoder._saelens import TrainCoefficientConfig, TrainStepInput
from sae_lens_crosscoder.ranks import Ranks
from sae_lens_crosscoder.training.clipped_adam import clipped_step
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder
from sae_lens_crosscoder.training.parallel.division import Division, SplitLatents, SplitTokens
from sae_lens_crosscoder.training.parallel.weights import complete_gradients, divide

DIVISIONS = {"replicated": SplitTokens, "sharded": SplitLatents}
WIDTHS = [8, 8]
N_TOKENS = 24
DEAD_AFTER = 3


def train(sae: TrainingCrosscoder[Any], division: Division, case: dict[str, Any]) -> list[float]:
    """Steps as the trainer makes them, on batches that all processes draw alike; the losses."""
    divide(sae, division)
    sae.train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for group in optimizer.param_groups:
        group["fused"] = True
    coefficients = {
        name: value.value if isinstance(value, TrainCoefficientConfig) else value
        for name, value in sae.get_coefficients().items()
    }
    data = torch.Generator().manual_seed(5)
    since_fired = torch.zeros(len(sae.shard))
    losses: list[float] = []
    always_dead = torch.arange(sae.cfg.d_sae)[sae.shard.slice] % 5 < case.get("n_dead_of_five", 0)
    for step in range(case["n_steps"]):
        x = torch.randn(N_TOKENS, sum(WIDTHS), dtype=torch.float64, generator=data)
        if case.get("alike"):
            x[:] = x[0]
        if division.splits_tokens:
            x = x.chunk(division.ranks.n)[division.ranks.rank]
        dead = (since_fired > DEAD_AFTER) | always_dead
        output = sae.training_forward_pass(TrainStepInput(x, coefficients, dead, step, False))
        acts = output.feature_acts.to_dense() if output.feature_acts.is_sparse else output.feature_acts
        since_fired = (since_fired + 1) * (division.sum_of_tokens((acts != 0).sum(dim=0)) == 0)
        output.loss.backward()
        clipped_step(optimizer, 1.0, complete_gradients(sae))
        optimizer.zero_grad()
        loss = output.loss.detach()
        losses.append(float(division.sum_of_tokens(loss) / (division.ranks.n if division.splits_tokens else 1)))
    return losses


def whole_weights(sae: TrainingCrosscoder[Any]) -> dict[str, torch.Tensor]:
    """The weights of all ranks together."""
    state = {name: value.detach() for name, value in sae.state_dict().items()}
    if not sae.division.splits_latents:
        return {name: value.contiguous() for name, value in state.items()}
    for name, _ in sae.named_parameters():
        if name != "b_dec":
            state[name] = torch.cat(sae.division.ranks.gather(state[name]), dim=1 if name == "W_enc" else 0)
    return {name: value.contiguous() for name, value in state.items()}


def crosscoder(case: dict[str, Any]) -> TrainingCrosscoder[Any]:
    sae = make(case["architecture"], WIDTHS, **case.get("fields", {}))
    if case.get("alike"):  # tokens and latents that are alike have equal scores
        half = sae.cfg.d_sae // 2
        with torch.no_grad():
            sae.W_enc[:, half:], sae.W_dec[half:], sae.b_enc[half:] = (
                sae.W_enc[:, :half],
                sae.W_dec[:half],
                sae.b_enc[:half],
            )
    return sae


def main(cases: Path, out: Path) -> None:
    """Train every case in the division that it names, and write losses and weights."""
    dist.init_process_group("gloo")
    ranks = Ranks()
    for name, case in json.loads(cases.read_text()).items():
        sae = crosscoder(case)
        losses = train(sae, DIVISIONS[case["division"]](ranks), case)
        weights = whole_weights(sae)
        if ranks.is_first:
            torch.save({"losses": losses, "weights": weights}, out / f"{name}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
