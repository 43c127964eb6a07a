"""What sae-dashboard's runner reads of a crosscoder, against a search over all tokens and the weights themselves."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from dashboard_subjects import (
    CONSTANT,
    D_SAE,
    DEAD,
    SECOND_ONLY,
    TINY,
    aligned_subject,
    latent_activations,
    needs_sae_dashboard,
    subject,
)
from torch import Tensor

from sae_lens_crosscoder.dashboards import DashboardConfig, DashboardSubject
from sae_lens_crosscoder.dashboards.lenses import source_lenses

pytestmark = needs_sae_dashboard


def read(made: DashboardSubject, latents: Any = range(D_SAE), cache: Any = None, **fields: Any) -> Any:
    from sae_lens_crosscoder.dashboards.reading import read_latents

    return read_latents(made, source_lenses(made), list(latents), DashboardConfig(**fields), cache)


def expected_logits(made: DashboardSubject, position: int) -> Tensor:
    sources = made.joint.sources
    weights = made.joint.source_models[position].W_U
    return (made.sae.W_dec[:, sources.columns(sources.labels[position])] @ weights).detach()


@pytest.mark.parametrize("widths", [(16, 16), (16, 24), (16, 24, 16)])
def test_logits_tables_are_the_decoder_slices_through_the_unembeddings(widths: tuple[int, ...]) -> None:
    made = subject(widths=widths)
    found = read(made)
    for position, features in enumerate(found.by_source):
        logits = expected_logits(made, position)
        for latent, feature in features.items():
            if latent == SECOND_ONLY and position == 0:
                continue
            table = feature.logits_table_data
            top, bottom = logits[latent].topk(10), logits[latent].topk(10, largest=False)
            assert table.top_token_ids == top.indices.tolist()
            assert table.bottom_token_ids == bottom.indices.tolist()
            torch.testing.assert_close(torch.tensor(table.top_logits), top.values, rtol=0, atol=1e-5)
            torch.testing.assert_close(torch.tensor(table.bottom_logits), bottom.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
@pytest.mark.parametrize("combine", ["concat", "difference"])
def test_top_contexts_are_those_of_a_search_over_all_tokens(architecture: str, combine: str) -> None:
    made = subject(architecture, combine=combine)
    check_contexts(made, read(made))


def test_with_tokenizers_of_their_own_contexts_are_the_first_models() -> None:
    made = aligned_subject()
    found = read(made, n_sequences_at_once=4)
    own = made.joint.own_tokens(0, made.tokens)
    assert own is not None
    with torch.no_grad():
        joined = made.joint(made.tokens)
        codes = torch.zeros(*own.ids.shape, D_SAE)
        codes[own.is_aligned] = made.sae.encode(joined)
    codes[:, 0] = 0
    assert 0 < own.is_aligned.sum() < own.is_text.sum()
    assert found.frequency[0] == pytest.approx(float((codes[..., 0] > 0).sum() / made.is_counted.sum()))
    for latent in (0, 7, CONSTANT):
        groups = found.by_source[1][latent].sequence_data.seq_group_data
        strongest = codes[..., latent].flatten().topk(len(groups[0].seq_data)).values
        at = [s.feat_acts[s.qualifying_token_index - 1] for s in groups[0].seq_data]
        torch.testing.assert_close(torch.tensor(at), strongest, rtol=0, atol=1e-4)
        for context in groups[0].seq_data:
            row = own.ids[context.original_index][~own.is_padding[context.original_index]]
            assert context.token_ids == row[1:].tolist()
        check_intervals(found.by_source[0][latent], codes[..., latent], made.is_counted)


def check_contexts(made: DashboardSubject, found: Any) -> None:
    codes = latent_activations(made)
    for latent in range(D_SAE):
        own = codes[..., latent]
        feature = found.by_source[1][latent]
        first = feature.sequence_data.seq_group_data[0]
        n_active = int((own > 0).sum())
        assert found.frequency[latent] == pytest.approx(n_active / int(made.is_counted.sum()))
        assert len(first.seq_data) == min(20, n_active)
        strongest = own.flatten().topk(len(first.seq_data)).values
        at = [s.feat_acts[s.qualifying_token_index - 1] for s in first.seq_data]
        torch.testing.assert_close(torch.tensor(at), strongest, rtol=0, atol=1e-4)
        for group in feature.sequence_data.seq_group_data:
            for context in group.seq_data:
                row = context.original_index
                assert context.token_ids == made.tokens[row, 1:].tolist()
                torch.testing.assert_close(torch.tensor(context.feat_acts), own[row, 1:], rtol=0, atol=1e-4)
        check_intervals(feature, own, made.is_counted)


def check_intervals(feature: Any, own: Tensor, is_counted: Tensor) -> None:
    for group in feature.sequence_data.seq_group_data[1:]:
        interval, share = group.title.split("<br>")
        low, high = (float(interval.split(" ")[i]) for i in (1, -1))
        # Ends are rounded in the title, so tokens at them may or may not be inside.
        at_least, at_most = (
            float(((own >= low + slack) & (own <= high - slack))[is_counted].float().mean()) for slack in (1e-3, -1e-3)
        )
        assert at_least - 2e-5 <= float(share.split(" ")[1].rstrip("%")) / 100 <= at_most + 2e-5
        for context in group.seq_data:
            value = own[context.original_index, context.qualifying_token_index]
            assert low - 1e-3 <= value <= high + 1e-3


def test_random_numbers_go_on_as_if_nothing_had_been_read() -> None:
    from sae_lens_crosscoder.dashboards.random_state import kept_random_state

    def draw() -> tuple[float, ...]:
        return (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002

    torch.manual_seed(3)
    with kept_random_state():
        first = draw()
    assert draw() == first
    # The type checker of the tests draws from Python's generator, so only the others can be told after a call.
    made = subject()
    with kept_random_state():
        first = draw()
    read(made, [1, 2])
    assert draw()[::2] == first[::2]


def test_the_crosscoder_stays_as_it_is_and_can_be_trained_on() -> None:
    made = subject()
    before = {name: value.clone() for name, value in made.sae.state_dict().items()}
    read(made, [1, 2, 3])
    for name, value in made.sae.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert not value.is_inference()
    made.sae(torch.randn(3, 32)).sum().backward()
    assert made.sae.W_enc.grad is not None


def test_tiny_logits_have_few_ticks_and_bins_of_their_own() -> None:
    made = subject()
    histogram = read(made).by_source[0][TINY].logits_histogram_data
    logits = expected_logits(made, 0)[TINY]
    assert logits.abs().max() < 1e-4
    assert len(histogram.tick_vals) < 10
    assert sum(histogram.bar_heights) == 300
    assert histogram.bar_values[0] == pytest.approx(float(logits.min()), rel=0.1)
    assert histogram.bar_values[-1] == pytest.approx(float(logits.max()), rel=0.1)


def test_odd_latents_give_numbers() -> None:
    found = read(subject())
    for features in found.by_source:
        for latent in (DEAD, SECOND_ONLY, CONSTANT, TINY):
            tables = features[latent].feature_tables_data
            values = [v for name in vars(tables) for v in getattr(tables, name)]
            assert all(math.isfinite(v) for v in values)
            assert all(abs(v) <= 1.001 for v in tables.correlated_features_pearson + tables.correlated_neurons_pearson)
    assert found.frequency[DEAD] == 0
    assert found.frequency[CONSTANT] == 1
    assert found.by_source[0][DEAD].acts_histogram_data.title == "ACTIVATIONS<br>DENSITY = 0.00000%"
    assert found.by_source[0][SECOND_ONLY].logits_table_data.top_logits == [0] * 10


def test_correlated_neurons_stand_with_the_source_that_has_them() -> None:
    made = subject(widths=(16, 24))
    found = read(made, [0, 1, 2])
    joined = made.joint(made.tokens)
    codes = made.sae.encode(joined).detach()[..., 1].flatten()
    pearson = torch.corrcoef(torch.cat([codes[None], joined.flatten(0, 1).T]))[0, 1:]
    expected = pearson.topk(3)
    both = [
        (column + shift, value)
        for features, shift in zip(found.by_source, (0, 16), strict=True)
        for column, value in zip(
            features[1].feature_tables_data.correlated_neurons_indices,
            features[1].feature_tables_data.correlated_neurons_pearson,
            strict=True,
        )
    ]
    for (index, value), wanted, at in zip(
        sorted(both, key=lambda pair: -pair[1]), expected.values.tolist(), expected.indices.tolist(), strict=True
    ):
        assert index == at
        assert value == pytest.approx(wanted, abs=1e-3)


def test_correlated_latents_are_named_by_their_own_indices() -> None:
    made = subject()
    found = read(made, [9, 15, 20, 2])
    for features in found.by_source:
        assert set(features[9].feature_tables_data.correlated_features_indices) <= {15, 20, 2}


def test_less_text_than_top_contexts_is_enough() -> None:
    found = read(subject(n_sequences=2, context=5), [0, 1, 2])
    assert all(len(f.sequence_data.seq_group_data[0].seq_data) <= 8 for f in found.by_source[0].values())


def test_cached_activations_give_the_same(tmp_path: Any) -> None:
    made = subject()
    plain = read(made, [0, 1], cache=None)
    first, second = read(made, [0, 1], cache=tmp_path), read(made, [0, 1], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    for found in (first, second):
        assert found.frequency == plain.frequency
        for one, other in zip(found.by_source, plain.by_source, strict=True):
            assert one[1].feature_tables_data == other[1].feature_tables_data
            assert one[1].sequence_data.seq_group_data[0] == other[1].sequence_data.seq_group_data[0]


def test_more_text_than_sae_dashboard_can_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens_crosscoder.dashboards import reading
    from sae_lens_crosscoder.errors import ConfigError

    monkeypatch.setattr(reading, "_LARGEST_QUANTILE_INPUT", 100)
    with pytest.raises(ConfigError, match="more than sae-dashboard reads at once"):
        read(subject(), [0])
