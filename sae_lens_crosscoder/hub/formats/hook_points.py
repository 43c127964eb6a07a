"""TransformerLens's names of hook points, from what configurations of other systems say."""

from __future__ import annotations

from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.options import UNKNOWN


def layer_output(config: ConfigValues) -> str:
    """The hook point of the `layer` whose output was read; unknown where the configuration does not name it.

    Raises:
        CheckpointError: The layer is no number.
    """
    return f"blocks.{config.integer('layer', least=0)}.hook_resid_post" if "layer" in config else UNKNOWN
