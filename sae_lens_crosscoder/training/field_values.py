"""Fields of a run's configuration that can be judged one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.access_token import secret_in
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.devices import check_device
from sae_lens_crosscoder.training.parallel.layouts import check_dictionary_layout

if TYPE_CHECKING:
    from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

_DTYPES = ("float32", "float64", "bfloat16", "float16")
_SCHEDULES = ("constant", "cosineannealing", "cosineannealingwarmrestarts")


def check_values(cfg: CrosscoderRunnerConfig[Any]) -> None:
    """Raises:
    ConfigError: A dtype, device, schedule, layout, size or patience that cannot be.
    """
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
    if cfg.context_size < 1 or cfg.store_batch_size_prompts < 1:
        raise ConfigError(
            f"context_size={cfg.context_size} and store_batch_size_prompts={cfg.store_batch_size_prompts} must "
            "be positive."
        )
    _ = cfg.patience  # which checks itself
    if secret := secret_in(f"{cfg.dataset_path} {cfg.datasets} {cfg.model_from_pretrained_kwargs}"):
        raise ConfigError(
            f"The configuration holds {secret}. It would be written into every checkpoint and sent to W&B. Take it "
            "out: log in to the Hub with `hf auth login` or set HF_TOKEN, and fetch files that need a password first. "
            "Revoke it if it was shared."
        )
