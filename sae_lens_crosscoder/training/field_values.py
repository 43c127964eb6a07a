"""Fields of a run's configuration that can be judged one by one."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.credentials import secret_in
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.devices import check_device
from sae_lens_crosscoder.training.parallel.layouts import check_dictionary_layout

if TYPE_CHECKING:
    from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

_DTYPES = ("float32", "float64", "bfloat16", "float16")
_SCHEDULES = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
_LEAST = {
    "context_size": (1, "a sequence has at least one token"),
    "store_batch_size_prompts": (1, "so many sequences go through the models at once"),
    "train_batch_size_tokens": (1, "a step is made on so many tokens"),
    "eval_batch_size_prompts": (1, "leave it out to take store_batch_size_prompts"),
    "n_eval_batches": (0, "0 evaluates nothing"),
    "n_checkpoints": (0, "0 makes none on the way"),
    "n_kept_checkpoints": (1, "fewer would remove every checkpoint as soon as it is whole; leave it out to keep all"),
    "feature_sampling_window": (1, "firing is counted over so many steps"),
    "n_restart_cycles": (1, "the learning rate goes through so many cycles"),
    "lr": (0.0, "it is the length of a step"),
    "logger.wandb_log_frequency": (1, "it is the steps from one row of the curve to the next"),
    "logger.eval_every_n_wandb_logs": (1, "to evaluate at the end only, give more rows than the run writes"),
}
"""The least that fields may be, where they are set, with what to know of it."""


def check_values(cfg: CrosscoderRunnerConfig[Any]) -> None:
    """Raises:
    ConfigError: A dtype, device, schedule, layout, size or patience that cannot be.
    """
    for name, (least, advice) in _LEAST.items():
        value = attrgetter(name)(cfg)
        if value is not None and not value >= least:
            raise ConfigError(f"{name}={value} must be at least {least}: {advice}.")
    check_dictionary_layout(cfg.dictionary_layout)
    for name in ("dtype", "buffer_dtype"):
        value = getattr(cfg, name)
        if value is not None and value not in _DTYPES:
            raise ConfigError(f"{name}={value!r} is unknown. Use one of {', '.join(_DTYPES)}.")
    for name in ("device", "llm_device", "act_store_device"):
        check_device(getattr(cfg, name), name)
    check_device(cfg.sae.device, "sae.device")
    if cfg.lr_scheduler_name.lower() not in _SCHEDULES:
        raise ConfigError(
            f"lr_scheduler_name={cfg.lr_scheduler_name!r} is unknown. Use one of {', '.join(_SCHEDULES)}."
        )
    _ = cfg.patience  # which checks itself
    if secret := secret_in(f"{cfg.dataset_path} {cfg.datasets} {cfg.model_from_pretrained_kwargs}"):
        raise ConfigError(
            f"The configuration holds {secret}. It would be written into every checkpoint and sent to W&B. Take it "
            "out: log in to the Hub with `hf auth login` or set HF_TOKEN, and fetch files that need a password first. "
            "Revoke it if it was shared."
        )
