"""The ReLU crosscoder of Kissane et al. and its descendants: W_enc, W_dec, b_enc, b_dec and a configuration.

f = ReLU(sum_m x~^m W_enc^m + b_enc), x~^^m = f W_dec^m + b_dec^m. The decoder bias is not subtracted before encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, InputNormaliser, ReLU


def numbered_pairs(folder: CheckpointFolder) -> list[str]:
    """Stems of the pairs `<stem>.pt`, `<stem>_cfg.json` in the folder, or the one of them that was asked for."""
    stems = [name.removesuffix(".pt") for name in folder.names if name.endswith(".pt")]
    pairs = [stem for stem in stems if f"{stem}_cfg.json" in folder.names]
    return [stem for stem in pairs if folder.chosen in (None, stem)]


def only_pair(folder: CheckpointFolder) -> tuple[str, str]:
    """The weights file and the configuration of the one pair in the folder.

    Raises:
        CheckpointError: There are several, or none.
    """
    pairs = numbered_pairs(folder)
    if len(pairs) != 1:
        raise CheckpointError(
            f"{folder.path} holds {len(pairs)} pairs of weights and configuration"
            f"{': give one of ' + ', '.join(pairs) + ' as the id' if pairs else ' (<name>.pt, <name>_cfg.json)'}."
        )
    return f"{pairs[0]}.pt", f"{pairs[0]}_cfg.json"


def pair_config(folder: CheckpointFolder) -> ConfigValues | None:
    """The configuration of the first pair in the folder; None without one, or if it is damaged."""
    pairs = numbered_pairs(folder)
    return readable_config(folder, f"{pairs[0]}_cfg.json") if pairs else None


@dataclass(frozen=True)
class NamedFiles:
    """The weights and the configuration of a system by their names; numbered pairs are told by a configuration key."""

    weights: str
    config: str
    key: str

    def are_in(self, folder: CheckpointFolder) -> bool:
        """Whether the folder holds both files, or a pair whose configuration has the key."""
        if folder.has(self.weights, self.config):
            return True
        config = pair_config(folder)
        return config is not None and self.key in config

    def in_folder(self, folder: CheckpointFolder) -> tuple[str, str]:
        """The names of weights and configuration in the folder; CheckpointError as for `only_pair`."""
        return (self.weights, self.config) if folder.has(self.weights, self.config) else only_pair(folder)


def readable_config(folder: CheckpointFolder, name: str) -> ConfigValues | None:
    """The mapping in a configuration file; None if it is not there or damaged."""
    try:
        return folder.config(name)
    except CheckpointError:
        return None


def read_four(folder: CheckpointFolder, weights: str, config: ConfigValues) -> tuple[TensorTable, dict[str, Any]]:
    """The table of a weights file that holds the four tensors and nothing else, and what `take_four` took of it."""
    table = TensorTable(str(folder.path / weights), folder.tensors(weights), "W_enc")
    taken = take_four(table, config)
    table.check_all_taken()
    return table, taken


def take_four(table: TensorTable, config: ConfigValues) -> dict[str, Any]:
    """The weights flattened over sources, as arguments of `CrosscoderWeights`; the configuration's sizes must agree."""
    W_enc = table.take("W_enc", "sources", "d", "latents")
    W_dec = table.take("W_dec", "latents", "sources", "d")
    taken = {
        "W_enc": W_enc.flatten(0, 1),
        "W_dec": W_dec.flatten(1),
        "b_enc": table.take("b_enc", "latents"),
        "b_dec": table.take("b_dec", "sources", "d").flatten(),
    }
    for key, dimension in {"d_in": "d", "dict_size": "latents", "n_models": "sources"}.items():
        config.check_size(key, table.size(dimension))
    return taken


def relu_crosscoder(
    taken: Mapping[str, Any], known: list[dict[str, Any]], options: ReadOptions, scales: list[float] | None
) -> CrosscoderWeights:
    """The crosscoder of four tensors, whose inputs were multiplied by `scales`."""
    normaliser = None if scales is None else InputNormaliser(scales)
    return CrosscoderWeights(**taken, activation=ReLU(), sources=options.joined_sources(known), normaliser=normaliser)
