"""What W&B is told: every name is in the documentation's table, and every name of the table is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import wandb
from helpers import batchtopk_config, run_config, standard_config, tiny_pair, token_dataset
from sae_lens import LoggingConfig

from sae_lens_crosscoder import CrosscoderTrainingRunner, DatasetConfig

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "wandb.md"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What runs of two architectures on two data sets tell W&B, by name."""
    found: dict[str, list[float]] = {}

    def log(row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            found.setdefault(name, []).append(value)

    patch = pytest.MonkeyPatch()
    patch.setattr(wandb, "init", lambda **_: None)
    patch.setattr(wandb, "finish", lambda: None)
    patch.setattr(wandb, "log", log)
    patch.setattr(LoggingConfig, "log", lambda *_, **__: None)
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=3)
    datasets = [DatasetConfig(label=label) for label in ("plain", "chats")]
    documents = {label: token_dataset(400, seed=seed) for seed, label in enumerate(("plain", "chats"))}
    for config in (batchtopk_config(), standard_config()):
        folder = tmp_path_factory.mktemp("run")
        cfg = run_config(config, folder, datasets=datasets, logger=logger, feature_sampling_window=4, dataset_path="")
        CrosscoderTrainingRunner(cfg, documents, tiny_pair()).run()
    patch.undo()
    return found


def documented() -> list[str]:
    rows = [row.split("|")[1] for row in PAGE.read_text().splitlines() if row.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def matches(documented_name: str, name: str) -> bool:
    pattern = re.escape(documented_name).replace("LABEL", "(base|chat)").replace("SET", "(plain|chats)")
    return re.fullmatch(pattern.replace(re.escape("..."), ".+"), name) is not None


def test_every_name_is_in_the_documentation(told: dict[str, list[float]]) -> None:
    further = r"eval/(sources/\w+/)?\w+|losses/\w+|details/\w+_coefficient"
    unknown = {name for name in told if not any(matches(known, name) for known in documented())}
    assert {name for name in unknown if not re.fullmatch(further, name)} == set()


def test_every_name_of_the_documentation_is_told(told: dict[str, list[float]]) -> None:
    assert [known for known in documented() if not any(matches(known, name) for name in told)] == []


def test_names_that_saelens_users_know_are_kept(told: dict[str, list[float]]) -> None:
    known = {"losses/overall_loss", "losses/mse_loss", "metrics/explained_variance", "metrics/l0"}
    assert known | {"sparsity/dead_features", "details/current_learning_rate"} <= set(told)


def test_the_last_evaluation_is_that_of_the_saved_crosscoder(told: dict[str, list[float]]) -> None:
    # 12 steps, a row every 2, an evaluation every 3 rows: two on the way and one at the end, of two runs.
    assert len(told["eval/sources/base/ce_loss_score"]) == 2 * 3
