"""The crosscoder runs of the demos: one recipe, in sizes that suit tiny models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import LoggingConfig

from sae_lens_crosscoder.demo.pair import ModelPair
from sae_lens_crosscoder.sources import Sources
from sae_lens_crosscoder.training import BatchTopKTrainingCrosscoderConfig, CrosscoderRunnerConfig

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class CrosscoderSizes:
    """What differs between the demos' crosscoders."""

    d_sae: int
    """Latents."""

    k: int
    """Active latents a token while training."""

    n_steps: int
    """Training steps of 2,048 tokens."""

    lr: float
    """Learning rate."""

    n_eval_batches: int
    """Batches of 64 documents that are held out of each data set for evaluation."""


def crosscoder_run(
    pair: ModelPair, sources: Sources, sizes: CrosscoderSizes, out: Path, device: str, **fields: Any
) -> CrosscoderRunnerConfig[BatchTopKTrainingCrosscoderConfig]:
    """A run on models of the pair that writes to `out`; further fields of the configuration, such as `datasets`."""
    return CrosscoderRunnerConfig(
        sae=BatchTopKTrainingCrosscoderConfig(
            d_in=sources.d_in,
            d_sae=sizes.d_sae,
            k=sizes.k,
            aux_loss_coefficient=0.5,
            b_dec_init="geometric_median",
            device=device,
        ),
        sources=list(sources),
        context_size=pair.config.context,
        training_tokens=BATCH_TOKENS * sizes.n_steps,
        train_batch_size_tokens=BATCH_TOKENS,
        store_batch_size_prompts=64,
        n_batches_in_buffer=1024,
        n_batches_for_norm_estimate=10,
        n_eval_batches=sizes.n_eval_batches,
        lr=sizes.lr,
        lr_warm_up_steps=20,
        lr_decay_steps=sizes.n_steps // 5,
        dead_feature_window=25,
        feature_sampling_window=min(100, sizes.n_steps),
        prepend_bos=True,
        device=device,
        seed=pair.config.seed,
        checkpoint_path=None,
        output_path=str(out),
        overwrite_output=True,
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
        **fields,
    )
