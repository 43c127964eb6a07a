"""Checkpoints hold no state of torch's global random numbers, because nothing that is repeated uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import N_LATENTS, activations, every_architecture, gradients, make
from helpers import batchtopk_config, run_config, tiny_pair, token_dataset

from sae_lens_crosscoder import CrosscoderTrainer, CrosscoderTrainingRunner, PairedActivationsStore


@every_architecture
def test_no_step_of_any_architecture_uses_the_global_random_numbers(name: str) -> None:
    widths = [8, 8]
    sae, x = make(name, widths), activations(widths)
    before = torch.get_rng_state()
    for dead in (None, torch.arange(N_LATENTS) % 2 == 0):
        assert any(gradient.abs().sum() > 0 for gradient in gradients(sae, x, dead).values())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_neither_does_the_loop_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_prefetched: int) -> None:
    states: list[torch.Tensor] = []

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            made = function(*arguments, **named)
            states.append(torch.get_rng_state())
            return made

        monkeypatch.setattr(owner, name, watched)

    for owner, name in (
        (CrosscoderTrainer, "step"),
        (CrosscoderTrainer, "save_checkpoint"),
        (CrosscoderTrainer, "_evaluate"),
        (PairedActivationsStore, "add_pass"),
    ):
        watch(owner, name)
    cfg = run_config(batchtopk_config(), tmp_path, n_checkpoints=2, prefetch_llm_batches=n_prefetched)
    cfg.logger.eval_every_n_wandb_logs = 3
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    assert len(states) > 2 * 12
    assert all(torch.equal(state, states[0]) for state in states)
