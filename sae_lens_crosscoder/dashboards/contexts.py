"""Contexts cut around the token that they are about, for a page."""

from __future__ import annotations

from typing import Any

from sae_lens_crosscoder.dashboards._sae_dashboard import SequenceData, SequenceGroupData, SequenceMultiGroupData
from sae_lens_crosscoder.dashboards.subject import DashboardConfig
from sae_lens_crosscoder.dashboards.token_strings import PADDING


def cut_contexts(sequences: Any, config: DashboardConfig) -> Any:
    """sae-dashboard's `SequenceMultiGroupData` with windows of equal length in place of whole sequences.

    Where a window reaches beyond its sequence there is padding. Every latent has equally many groups and every group a
    context, empty if need be: sae-dashboard makes its page's places from the first latent, and what another has more
    of would not be shown.
    """
    groups = [
        SequenceGroupData(group.title, [_window(sequence, config) for sequence in group.seq_data] or [_empty(config)])
        for group in sequences.seq_group_data
    ]
    # A silent latent has one interval only.
    missing = 1 + config.n_intervals - len(groups)
    return SequenceMultiGroupData([*groups, *(SequenceGroupData("", [_empty(config)]) for _ in range(missing))])


def _window(sequence: Any, config: DashboardConfig) -> Any:
    # Sequences begin with their second token.
    middle = sequence.qualifying_token_index - 1
    places = range(middle - config.tokens_before, middle + config.tokens_after + 1)
    inside = [0 <= place < len(sequence.token_ids) for place in places]
    return SequenceData(
        original_index=sequence.original_index,
        qualifying_token_index=sequence.qualifying_token_index,
        token_ids=[sequence.token_ids[p] if known else PADDING for p, known in zip(places, inside, strict=True)],
        feat_acts=[sequence.feat_acts[p] if known else 0.0 for p, known in zip(places, inside, strict=True)],
        token_logits=[sequence.token_logits[p] if known else 0.0 for p, known in zip(places, inside, strict=True)],
    )


def _empty(config: DashboardConfig) -> Any:
    length = config.tokens_before + 1 + config.tokens_after
    return SequenceData(token_ids=[PADDING] * length, feat_acts=[0.0] * length, token_logits=[0.0] * length)
