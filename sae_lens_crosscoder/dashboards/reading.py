"""Some latents read on the text by sae-dashboard's runner, once, and what each source's model makes of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.dashboards._sae_dashboard import (
    ActsHistogramConfig,
    Column,
    FeatureData,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SaeVisConfig,
    SaeVisLayoutConfig,
    SaeVisRunner,
    SequencesConfig,
    get_features_table_data,
    get_logits_table_data,
)
from sae_lens_crosscoder.dashboards.histograms import logits_histogram, ticks
from sae_lens_crosscoder.dashboards.joint_adapter import JointAdapter
from sae_lens_crosscoder.dashboards.lenses import Lens
from sae_lens_crosscoder.dashboards.random_state import kept_random_state
from sae_lens_crosscoder.dashboards.source_view import SourceView
from sae_lens_crosscoder.dashboards.subject import DashboardConfig, DashboardSubject
from sae_lens_crosscoder.dashboards.token_strings import PADDING
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME

_N_BINS = 50
_N_TABLE_ROWS = 3
_LARGEST_CORRELATION = 1.001
_SHARE = "<br>CONTAINS "
_TABLE_PARTS = ("indices", "pearson", "cossim")
_LARGEST_QUANTILE_INPUT = 16_000_000
"""Numbers that torch.quantile takes at once."""


@dataclass(frozen=True)
class LatentReadings:
    """What sae-dashboard shows of some latents."""

    latents: list[int]
    by_source: list[dict[int, Any]]
    """For each source, in their order, sae-dashboard's `FeatureData` of every latent: activations and contexts are the
    same for all, logits and tables those of the source's model."""

    frequency: dict[int, float]
    """Share of the counted tokens on which each latent fires."""


@torch.no_grad()
def read_latents(
    subject: DashboardSubject,
    lenses: Sequence[Lens],
    latents: Sequence[int],
    config: DashboardConfig,
    cache: Path | None = None,
) -> LatentReadings:
    """Run the models over the text once and gather what a dashboard of these latents shows.

    Args:
        subject: The models, the crosscoder and the text.
        lenses: What `source_lenses` gives.
        latents: Indices of the latents.
        config: How much is shown.
        cache: Folder for the activations, which further calls read instead of running the models. It must be of this
            subject and `n_sequences_at_once`: sae-dashboard tells its files by number alone.

    Raises:
        ConfigError: More text than sae-dashboard can read at once.
    """
    latents = list(latents)
    # Rows in units of their largest logit: sae-dashboard's own histogram of tiny logits has 300,000 ticks.
    largest = torch.stack([logits.abs().max() for logits in lenses[0].each_logits(latents)])[:, None]
    directions = lenses[0].directions[latents].to(lenses[0].W_U) / largest.where(largest > 0, 1)
    view = SourceView(subject.sae, latents, directions, skips_zeros=subject.joint.aligner is not None)
    adapter = JointAdapter(subject, lenses[0].W_U)
    with kept_random_state(), warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # eindex indexes in a way that a future Torch reads otherwise; sae-dashboard 0.8 needs a Torch that does not.
        warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing")
        data: Any = SaeVisRunner(_vis_config(subject, len(latents), config, cache)).run(
            encoder=view, model=adapter, tokens=subject.shown_tokens
        )
    found: dict[int, Any] = {latent: data.feature_data_dict[i] for i, latent in enumerate(latents)}
    n_counted = int(subject.is_counted.sum())
    frequency: dict[int, float] = {}
    for (latent, feature), logits in zip(found.items(), lenses[0].each_logits(latents), strict=True):
        frequency[latent] = sum(feature.acts_histogram_data.bar_heights) / max(1, n_counted)
        _mend_contexts(feature, logits.cpu())
        _mend_shares(feature.sequence_data.seq_group_data[1:], subject.is_counted)
        _mend_activations(feature, frequency[latent])
        _mend_tables(feature, latents)
    return LatentReadings(latents, [_of_source(found, lens, config) for lens in lenses], frequency)


def _vis_config(subject: DashboardSubject, n_latents: int, config: DashboardConfig, cache: Path | None) -> Any:
    n_tokens = subject.shown_tokens.numel()
    if n_tokens > _LARGEST_QUANTILE_INPUT:
        raise ConfigError(
            f"{n_tokens:,} tokens are more than sae-dashboard reads at once ({_LARGEST_QUANTILE_INPUT:,}). Lower "
            "budget_tokens."
        )
    sequences = SequencesConfig(
        # Whole sequences, so that a latent can be shown wherever it fires; pages cut them.
        buffer=None,
        n_quantiles=config.n_intervals,
        top_acts_group_size=min(config.n_top_contexts, n_tokens),
        quantile_group_size=config.n_contexts_per_interval,
    )
    components = (ActsHistogramConfig(_N_BINS), LogitsTableConfig(config.n_logits), LogitsHistogramConfig(_N_BINS))
    layout = SaeVisLayoutConfig([Column(FeatureTablesConfig(n_rows=_N_TABLE_ROWS), *components, sequences)])
    return SaeVisConfig(
        hook_point=JOINT_HOOK_NAME,
        features=list(range(n_latents)),
        minibatch_size_features=n_latents,
        minibatch_size_tokens=config.n_sequences_at_once,
        quantile_feature_batch_size=max(1, min(64, _LARGEST_QUANTILE_INPUT // n_tokens)),
        device=str(subject.sae.W_enc.device),
        ignore_tokens=set(subject.excluded_tokens),
        ignore_positions=[0],
        feature_centric_layout=layout,
        seed=config.seed,
        cache_dir=cache,
    )


def _mend_contexts(feature: Any, logits: Float[Tensor, " d_vocab"]) -> None:
    """No top contexts at which the latent is silent, none about a token that is not shown (a first one), its logits."""
    groups = feature.sequence_data.seq_group_data
    # The contexts of the first group stand in the order of their activations.
    groups[0].seq_data = groups[0].seq_data[: sum(feature.acts_histogram_data.bar_heights)]
    for group in groups:
        group.seq_data = [sequence for sequence in group.seq_data if _is_shown(sequence)]
        for sequence in group.seq_data:
            n_tokens = len(sequence.token_ids) - sequence.token_ids.count(PADDING)
            sequence.token_ids = sequence.token_ids[:n_tokens]
            sequence.feat_acts = sequence.feat_acts[:n_tokens]
            sequence.token_logits = logits[sequence.token_ids].tolist()


def _is_shown(sequence: Any) -> bool:
    # Sequences begin with their second token.
    middle = sequence.qualifying_token_index - 1
    return middle >= 0 and sequence.token_ids[middle] != PADDING


def _mend_shares(intervals: Sequence[Any], is_counted: Bool[Tensor, "n_sequences context"]) -> None:
    """Shares of the counted tokens, as the density is one; sae-dashboard takes all for silent that do not count."""
    n_all, n_counted = is_counted.numel(), int(is_counted.sum())
    for group in intervals:
        interval, share = group.title.split(_SHARE)
        n_inside = float(share.rstrip("%")) / 100 * n_all
        if group is intervals[-1]:
            # The lowest begins at 0.
            n_inside -= n_all - n_counted
        group.title = f"{interval}{_SHARE}{max(0.0, n_inside / max(1, n_counted)):.3%}"


def _mend_activations(feature: Any, frequency: float) -> None:
    """The density over the counted tokens, and ticks that fit."""
    histogram = feature.acts_histogram_data
    histogram.title = f"ACTIVATIONS<br>DENSITY = {frequency:.5%}"
    histogram.tick_vals = ticks(histogram.bar_values)


def _mend_tables(feature: Any, latents: Sequence[int]) -> None:
    """Indices of latents in place of positions in the view, and only correlations that are some.

    What never changes correlates with nothing: sae-dashboard gives it 0, or by rounding errors NaN or numbers far above
    1. A latent's own row is 0 too.
    """
    tables = feature.feature_tables_data
    for name in ("correlated_neurons", "correlated_features"):
        values = _rows(tables, name)
        _set_rows(tables, name, [row for row in values if 0 < abs(row[1]) < _LARGEST_CORRELATION])
    tables.correlated_features_indices = [latents[i] for i in tables.correlated_features_indices]


def _rows(tables: Any, name: str) -> list[tuple[int, float, float]]:
    """The rows of one table: index, Pearson correlation and cosine."""
    return list(zip(*(getattr(tables, f"{name}_{kind}") for kind in _TABLE_PARTS), strict=True))


def _set_rows(tables: Any, name: str, rows: Sequence[tuple[int, float, float]]) -> None:
    for kind, values in zip(_TABLE_PARTS, zip(*rows, strict=True) if rows else ([], [], []), strict=True):
        setattr(tables, f"{name}_{kind}", list(values))


def _of_source(found: dict[int, Any], lens: Lens, config: DashboardConfig) -> dict[int, Any]:
    """The latents as one source's model has them."""
    directions = lens.directions[list(found)].float().cpu()
    with np.errstate(invalid="ignore"):
        aligned = get_features_table_data(feature_out_dir=directions, n_rows=_N_TABLE_ROWS)
    features: dict[int, Any] = {}
    for i, ((latent, feature), logits) in enumerate(zip(found.items(), lens.each_logits(list(found)), strict=True)):
        own: Any = FeatureData(
            feature_tables_data=_own_tables(feature.feature_tables_data, lens.columns),
            acts_histogram_data=feature.acts_histogram_data,
            logits_table_data=get_logits_table_data(logit_vector=logits, n_rows=config.n_logits),
            logits_histogram_data=logits_histogram(logits, _N_BINS),
            sequence_data=feature.sequence_data,
        )
        tables = own.feature_tables_data
        tables.neuron_alignment_indices = aligned["neuron_alignment_indices"][i]
        tables.neuron_alignment_values = aligned["neuron_alignment_values"][i]
        # A zero row has no share of anything.
        tables.neuron_alignment_l1 = [v if v == v else 0.0 for v in aligned["neuron_alignment_l1"][i]]
        features[latent] = own
    return features


def _own_tables(tables: Any, columns: slice) -> Any:
    """The correlated neurons that are this source's, counted from its first.

    The most correlated neurons are found over all sources together, so that a source may have fewer of them, or none.
    """
    own = copy.copy(tables)
    rows = _rows(tables, "correlated_neurons")
    inside = [(i - columns.start, r, c) for i, r, c in rows if columns.start <= i < columns.stop]
    _set_rows(own, "correlated_neurons", inside)
    return own
