"""A SAELens script that is run with our runner instead of SAELens's loses nothing of SAELens's behaviour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CONTEXT, run_config, source, tiny_model, token_dataset
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
    StandardTrainingSAEConfig,
)

from sae_lens_crosscoder import CrosscoderTrainer, CrosscoderTrainingRunner, JointModel, Sources


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    recorded: list[float] = []

    def recording(train_step: Any) -> Any:
        def recorded_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = train_step(self, *args, **kwargs)
            recorded.append(output.loss.item())
            return output

        return recorded_step

    for trainer in (SAETrainer, CrosscoderTrainer):
        monkeypatch.setattr(trainer, "_train_step", recording(trainer._train_step))
    return recorded


def run_of_saelens(sae: Any, model: Any, hook_name: str) -> None:
    cfg = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name="tiny",
        hook_name=hook_name,
        dataset_path="in-memory",
        context_size=CONTEXT,
        training_tokens=64 * 30,
        train_batch_size_tokens=64,
        store_batch_size_prompts=4,
        n_batches_in_buffer=16,
        n_batches_for_norm_estimate=2,
        exclude_special_tokens=[0],
        lr=1e-3,
        lr_warm_up_steps=3,
        lr_decay_steps=6,
        prepend_bos=False,
        dtype="float64",
        checkpoint_path=None,
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    torch.manual_seed(1)
    runner = LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset(), override_model=model)
    torch.manual_seed(2)
    runner.run()


def run_of_ours(sae: Any, model: JointModel) -> None:
    cfg = run_config(
        sae,
        sources=list(model.sources),
        training_tokens=64 * 30,
        lr_warm_up_steps=3,
        lr_decay_steps=6,
        n_eval_batches=0,
        dtype="float64",
        dead_feature_window=1000,
    )
    torch.manual_seed(1)
    runner = CrosscoderTrainingRunner(cfg, override_dataset=token_dataset(), override_model=model)
    # Ours shuffles with a generator of its own; here it shares SAELens's, torch's global one.
    runner.activations_store.buffer.generator = torch.default_generator
    torch.manual_seed(2)
    runner.run()


@pytest.mark.parametrize(
    "sae_config",
    [
        lambda d_in: StandardTrainingSAEConfig(
            d_in=d_in, d_sae=48, dtype="float64", normalize_activations="expected_average_only_in", l1_warm_up_steps=5
        ),
        lambda d_in: BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=48, dtype="float64", k=4),
    ],
    ids=["standard", "batchtopk"],
)
@pytest.mark.parametrize("n_sources", [1, 2])
def test_a_saelens_architecture_trains_to_the_same_loss_curve_as_in_saelens_own_runner(
    float64: None, losses: list[float], sae_config: Any, n_sources: int
) -> None:
    model = tiny_model(dtype=torch.float64)
    sources = Sources(tuple(source(f"copy{i}") for i in range(n_sources)))
    joint = JointModel(sources, [model] * n_sources)
    if n_sources == 1:
        run_of_saelens(sae_config(joint.sources.d_in), model, "blocks.1.hook_resid_pre")
    else:
        run_of_saelens(sae_config(joint.sources.d_in), joint, "blocks.0.hook_resid_joint")
    theirs = losses.copy()
    losses.clear()
    run_of_ours(sae_config(joint.sources.d_in), joint)
    assert len(theirs) == len(losses) == 30
    assert len(set(theirs)) == 30
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(theirs), rtol=1e-9, atol=1e-9)
