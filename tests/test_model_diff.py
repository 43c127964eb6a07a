"""A model diff from start to end on two tiny models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CONTEXT, text_dataset, tiny_pair, tiny_tokenizer
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_crosscoder.activations import DatasetConfig, LabelledSequences, SequenceFormat, TokenRole
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.model_diff import DiffConfig, DiffSubject, diff_models, run
from sae_lens_crosscoder.model_diff.experiments import spearman
from sae_lens_crosscoder.model_diff.kept import kept
from sae_lens_crosscoder.model_diff.setup import predicts

SMALL = DiffConfig(
    budget_tokens=CONTEXT * 40,
    kl_budget_tokens=CONTEXT * 12,
    causal_budget_tokens=CONTEXT * 10,
    n_sequences_at_once=4,
    n_contexts=3,
    n_kl_documents=4,
    n_exact=4,
    n_equivalence=3,
)


def subject(combine: str = "concat") -> DiffSubject:
    tokenizer = tiny_tokenizer()
    joint = tiny_pair(torch.float32, tokenizer, combine=combine)
    d_in = joint.sources.d_in
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=48, apply_b_dec_to_input=False))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        sae.W_enc.normal_(generator=generator)
        sae.W_dec.normal_(std=0.1, generator=generator)
        sae.b_enc.fill_(-1.0)
        sae.W_dec[:4, : d_in // 2] = 0  # only in the second model
        sae.b_enc[7] = -1e6  # never fires
    for name, value in joint.sources.to_metadata().items():
        sae.cfg.metadata[name] = value
    data = {"web": text_dataset(), "more": Dataset.from_dict({"text": ["the fox </script> reads"] * 200})}
    configs = [DatasetConfig(label="web", weight=0.75), DatasetConfig(label="more", weight=0.25)]
    form = SequenceFormat(CONTEXT)
    sequences = LabelledSequences.collect(data, configs, tokenizer, form, SMALL.budget_tokens)
    return DiffSubject(joint, sae, sequences, excluded_tokens=(0,))


@pytest.mark.parametrize("combine", ["concat", "difference"])
def test_a_diff_writes_one_row_a_latent_and_one_page(combine: str, tmp_path: Path) -> None:
    found = diff_models(subject(combine), tmp_path, SMALL)
    table = LatentTable.load(tmp_path)
    assert table.d_sae == 48
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents.csv", "latents.parquet", "report.html"]
    frequency = table.column("frequency").values
    assert isinstance(frequency, torch.Tensor)
    assert frequency[7] == 0
    if combine == "concat":
        assert found.geometry is not None
        assert list(table.column("class").values[:4]) == ["chat-only"] * 4
        assert "all 4 chat-only" in found.experiments.sets
    page = (tmp_path / "report.html").read_text()
    assert "https://" not in page.replace("https://www.w3.org", "")


def test_a_report_names_the_random_latents_by_their_number_and_no_correlation_that_there_is_not(tmp_path: Path) -> None:
    pair = subject()
    with torch.no_grad():
        pair.sae.b_enc[2:] = -1e6
    found = diff_models(pair, tmp_path, SMALL)
    assert math.isnan(found.experiments.attribution.rank_correlation)
    assert not any("nan" in paragraph.split() or "nan." in paragraph for paragraph in found.report.overview.paragraphs)
    sets = found.experiments.sets
    assert all(name.split()[0] == str(len(latents)) for name, latents in sets.items() if "random" in name)


def test_the_pass_counts_every_token_but_the_first_and_the_excluded(tmp_path: Path) -> None:
    pair = subject()
    found = diff_models(pair, tmp_path, SMALL)
    counted = (pair.sequences.tokens != 0).sum() - (pair.sequences.tokens[:, 0] != 0).sum()
    assert found.readings.statistics.n_tokens == counted
    joined = pair.joint(pair.sequences.tokens)
    codes = pair.sae.encode(joined)
    codes = codes[:, 1:][pair.sequences.tokens[:, 1:] != 0]
    torch.testing.assert_close(found.readings.statistics.frequency, (codes > 0).double().mean(dim=0))
    torch.testing.assert_close(found.readings.statistics.max.float(), codes.amax(dim=0))


def test_chats_are_told_by_token_role_in_the_table_and_in_the_causal_tests(tmp_path: Path) -> None:
    pair = subject()
    roles = torch.randint(1, len(TokenRole), pair.sequences.roles.shape, generator=torch.Generator().manual_seed(3))
    roles = roles.to(pair.sequences.roles)
    pair = replace(pair, sequences=replace(pair.sequences, roles=roles))
    found = diff_models(pair, tmp_path, SMALL)
    counted = pair.counted(slice(0, len(roles)))
    codes = pair.sae.encode(pair.joint(pair.sequences.tokens))
    for role in (TokenRole.USER, TokenRole.ASSISTANT_START):
        here = codes[counted & (roles == role)].double()
        for name, expected in (("mean", here.mean(dim=0)), ("share", here.sum(dim=0) / codes[counted].sum(dim=0))):
            column = found.report.table.column(f"{name}_{role.name.lower()}").values
            assert isinstance(column, torch.Tensor)
            torch.testing.assert_close(column, expected, equal_nan=True, check_dtype=False, rtol=1e-4, atol=1e-6)
    (table,) = found.report.overview.tables
    groups = ("all", "first ten of an answer", "rest of an answer")
    assert list(table.columns[1:]) == [f"{group}: {way}" for group in groups for way in ("put in", "taken out")]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["full difference"] == ["100.0 %"] * 6
    first = found.experiments.sets["first 3 by KL attribution"]
    assert len(first) == 3
    effects = (found.experiments.forward, found.experiments.reverse)
    closed = [part["first 3 by KL attribution"][group].gap_closed for group in groups for part in effects]
    shown = [float(str(cell).rstrip("%")) for cell in rows["first 3 by KL attribution"]]
    assert shown == pytest.approx([100 * value for value in closed], abs=0.051)


def test_contexts_hold_the_tokens_and_activations_around_the_strongest_places(tmp_path: Path) -> None:
    pair = subject()
    found = diff_models(pair, tmp_path, SMALL)
    contexts = found.report.evidence.contexts
    assert contexts is not None
    codes = pair.sae.encode(pair.joint(pair.sequences.tokens))
    codes[pair.sequences.tokens == 0] = 0
    codes[:, 0] = 0
    for latent in contexts.latents.unique().tolist():
        strongest = contexts.activations[contexts.latents == latent].amax(dim=1)
        expected = codes[..., latent].amax(dim=1).sort(descending=True).values[: len(strongest)]
        torch.testing.assert_close(strongest, expected, msg=str(latent))
    assert 7 not in contexts.latents


def test_a_diff_that_was_stopped_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = diff_models(subject(), tmp_path / "whole", SMALL)
    from sae_lens_crosscoder.model_diff import reading

    calls: list[int] = []
    batches = reading.token_batches

    def stopping(*arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 12:
            raise KeyboardInterrupt
        return batches(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "token_batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            diff_models(subject(), tmp_path / "stopped", SMALL)
    assert calls[0] == 0
    first = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "token_batches", lambda *a: (calls.append(a[1]), batches(*a))[1])
        again = diff_models(subject(), tmp_path / "stopped", SMALL)
    assert calls[first] == calls[first - 1]  # the part that was stopped
    assert calls[first] > 0
    for name in whole.report.table.names:
        one, other = whole.report.table.column(name).values, again.report.table.column(name).values
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-9, atol=1e-12, msg=name)
        else:
            assert one == other
    assert not list((tmp_path / "stopped").glob(".diff-*"))


def test_phases_that_ended_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = diff_models(subject(), tmp_path / "whole", SMALL)

    def stopping(*_: Any) -> Any:
        raise KeyboardInterrupt

    def never(*_: Any) -> Any:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(run, "evidence", stopping)
        with pytest.raises(KeyboardInterrupt):
            diff_models(subject(), tmp_path / "stopped", SMALL)
    with monkeypatch.context() as patch:
        for phase in ("measure_divergence", "experiment"):
            patch.setattr(run, phase, never)
        again = diff_models(subject(), tmp_path / "stopped", SMALL)
    pages = [(tmp_path / name / "report.html").read_bytes() for name in ("whole", "stopped")]
    assert pages[0] == pages[1]
    assert again.experiments.forward == whole.experiments.forward


def test_a_kept_result_that_is_damaged_or_hostile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "divergence.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):
        kept(path, lambda: None)
    torch.save(Path("anything that is no result"), path)
    with pytest.raises(DataError, match="is damaged"):
        kept(path, lambda: None)


def test_another_text_or_effort_does_not_take_up_the_work_of_this_one() -> None:
    pair = subject()
    fingerprint = pair.fingerprint(SMALL)
    assert subject().fingerprint(SMALL) == fingerprint
    assert pair.fingerprint(DiffConfig()) != fingerprint
    assert replace(pair, excluded_tokens=(0, 5)).fingerprint(SMALL) != fingerprint
    other_text = replace(pair.sequences, tokens=pair.sequences.tokens.flip(1))
    assert replace(pair, sequences=other_text).fingerprint(SMALL) != fingerprint
    dead = torch.zeros(48, dtype=torch.bool)
    assert replace(pair, dead=dead).fingerprint(SMALL) != fingerprint
    assert replace(pair, dead=~dead).fingerprint(SMALL) != replace(pair, dead=dead).fingerprint(SMALL)
    with torch.no_grad():
        pair.sae.b_enc[3] += 1e-3
    assert pair.fingerprint(SMALL) != fingerprint
    pair = subject()
    with torch.no_grad():
        pair.joint.source_models[1].blocks[0].mlp.W_in[0, 0] += 0.5
    assert pair.fingerprint(SMALL) != fingerprint


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    pair = subject()
    state = tmp_path / f".diff-{pair.fingerprint(SMALL)}" / "readings.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"is damaged .* Delete it"):
        diff_models(pair, tmp_path, SMALL)


@pytest.mark.parametrize(
    "fields", [{"budget_tokens": 0}, {"n_exact": 0}, {"n_exact": -1}, {"n_path_points": -1}, {"n_kl_documents": -1}]
)
def test_an_effort_that_cannot_be_is_refused_before_anything_is_read(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        DiffConfig(**fields)


def test_rank_correlations_share_ranks_between_equal_values_and_need_some_that_differ() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    assert spearman(x, x**3) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
    assert spearman(x, torch.tensor([1.0, 3.0, 2.0, 4.0]).double()) == pytest.approx(0.9486832980505138)
    assert math.isnan(spearman(torch.zeros(5), torch.arange(5.0)))
    assert math.isnan(spearman(x[:2], x[:2]))


def test_a_token_is_predicted_one_position_before_it_stands() -> None:
    is_group = torch.tensor([[True, False, True, True, False]])
    assert predicts(is_group).tolist() == [[False, True, True, False, False]]


def test_odd_names_of_data_sets_give_columns(tmp_path: Path) -> None:
    pair = subject()
    sequences = replace(pair.sequences, dataset_names=["active", "données / b"])
    diff_models(replace(pair, sequences=sequences), tmp_path, SMALL)
    names = LatentTable.load(tmp_path).names
    assert {"dataset_0_mean_active", "dataset_1_mean_donn_es___b", "mean_active"} <= set(names)
