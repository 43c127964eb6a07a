from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers import batchtopk_config, run_config, tiny_pair, token_dataset

from sae_lens_crosscoder import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.health import HealthWatch

HEALTHY = {"sparsity/dead_features": 40.0, "losses/overall_loss": 10.0, "metrics/explained_variance/base": 0.8}


def watch(n_steps: int = 1000) -> HealthWatch:
    return HealthWatch(d_sae=100, n_steps=n_steps, dead_after_steps=50)


def look(watched: HealthWatch, steps: range, **changed: float) -> None:
    names = {"dead": "sparsity/dead_features", "loss": "losses/overall_loss", "base": "metrics/explained_variance/base"}
    for step in steps:
        watched.look(step, HEALTHY | {names[name]: value for name, value in changed.items()})


def test_a_healthy_run_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    look(watch(), range(1, 1000))
    assert caplog.text == ""


def test_dead_latents_are_told_once_with_numbers(caplog: pytest.LogCaptureFixture) -> None:
    watched = watch()
    look(watched, range(1, 30), dead=70)
    assert caplog.text == ""
    look(watched, range(30, 60), dead=71)
    assert len(caplog.records) == 1
    assert "71 of 100 latents (71%) are dead at step 30" in caplog.text
    assert "not fired for 50 steps" in caplog.text
    assert "Lower lr" in caplog.text


def test_a_spike_of_the_loss_is_told_once_with_what_was_usual(caplog: pytest.LogCaptureFixture) -> None:
    watched = watch()
    look(watched, range(1, 20))
    look(watched, range(20, 21), loss=1000)  # nothing is usual yet
    look(watched, range(21, 40))
    look(watched, range(40, 41), loss=49.9)
    assert caplog.text == ""
    look(watched, range(41, 42), loss=51)
    look(watched, range(42, 43), loss=500)
    assert len(caplog.records) == 1
    assert "The loss at step 41 is 51, 5.1 times the median of 20 readings before it (10)" in caplog.text


def test_a_penalty_that_rises_slowly_is_no_spike(caplog: pytest.LogCaptureFixture) -> None:
    watched = watch()
    for step in range(1, 500):
        look(watched, range(step, step + 1), loss=1 + 0.2 * step)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("explained", "what"),
    [(-0.1, "it is not learnt"), (float("nan"), "the same for every token"), (float("-inf"), "the same for every")],
)
def test_a_source_that_stands_still_is_told_once(caplog: pytest.LogCaptureFixture, explained: float, what: str) -> None:
    watched = watch()
    look(watched, range(1, 251), base=explained)  # the beginning
    look(watched, range(251, 451), base=explained)
    look(watched, range(451, 452))
    look(watched, range(452, 652), base=explained)
    assert caplog.text == ""
    look(watched, range(652, 900), base=explained)
    assert len(caplog.records) == 1
    assert "Of source 'base' nothing is explained" in caplog.text
    assert "since step 452" in caplog.text
    assert what in caplog.text


def test_a_run_whose_second_model_stands_still_says_so_and_its_sister_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(pair: object, name: str) -> list[dict[str, str]]:
        cfg = run_config(batchtopk_config(k=8.0), tmp_path / name, training_tokens=64 * 350, lr=3e-3, n_eval_batches=0)
        CrosscoderTrainingRunner(cfg, token_dataset(3000), pair).run()  # type: ignore[arg-type]
        return list(csv.DictReader((tmp_path / name / "output" / "training_curve.csv").read_text().splitlines()))

    rows = run(tiny_pair(), "healthy")
    assert float(rows[-1]["metrics/explained_variance/chat"]) > 0
    assert "nothing is explained" not in caplog.text
    pair = tiny_pair()
    harvest = pair.source_activations
    monkeypatch.setattr(pair, "source_activations", lambda tokens: [harvest(tokens)[0], torch.ones(*tokens.shape, 16)])
    run(pair, "constant")
    told = [record.getMessage() for record in caplog.records if "nothing is explained" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("Of source 'chat' nothing is explained")
    assert "the same for every token" in told[0]
