"""Which latents are chosen, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dashboard_subjects import SECOND_ONLY, subject

from sae_lens_crosscoder.dashboards import DashboardSubject
from sae_lens_crosscoder.dashboards.facts import (
    dead_latents,
    described,
    first_latents,
    headline_columns,
    latent_facts,
    parse_latents,
)
from sae_lens_crosscoder.diffing.diff_report import Column, DiffReport, LatentTable
from sae_lens_crosscoder.errors import ConfigError, DataError


def column(name: str, values: torch.Tensor | list[str]) -> Column:
    return Column(name, values, name, "", "")


def test_latents_are_numbers_and_ranges() -> None:
    assert parse_latents("1,2, 5-9,7", 10) == [1, 2, 5, 6, 7, 8, 9, 7]
    assert parse_latents("all", 3) == [0, 1, 2]
    for text in ("", "a", "3-", "-3", "9-5", "1,,2"):
        with pytest.raises(ConfigError, match="is no latent"):
            parse_latents(text, 10)
    # A range is not written out before it is known to be one.
    for text in ("10", "1,3-10", "0-99999999999999"):
        with pytest.raises(ConfigError, match="beyond the last latent: name some from 0 to 9"):
            parse_latents(text, 10)


def test_the_first_latents_are_those_with_the_largest_values_that_are_some() -> None:
    facts = [column("class", ["a"] * 5), column("nu", torch.tensor([0.1, torch.nan, 3.0, 2.0, torch.inf]))]
    assert first_latents(facts, 2, "nu") == [2, 3]
    assert first_latents(facts, 9, "nu", ascending=True) == [0, 3, 2]
    assert first_latents(facts, 1) == [2]
    with pytest.raises(ConfigError, match="no column of numbers 'class'"):
        first_latents(facts, 2, "class")
    with pytest.raises(ConfigError, match="at least one"):
        first_latents(facts, 0, "nu")


def test_dead_latents_are_not_among_the_first_and_can_be_all_there_are() -> None:
    facts = [column("nu", torch.arange(5.0))]
    dead = torch.tensor([False, True, False, True, True])
    assert first_latents(facts, 2, dead=dead) == [2, 0]
    assert first_latents(facts, 9, ascending=True, dead=dead) == [0, 2]
    with pytest.raises(ConfigError, match="Of 5 latents none is alive"):
        first_latents(facts, 2, dead=torch.ones(5, dtype=torch.bool))


def test_latents_are_dead_that_were_silent_in_training_or_in_the_diff_or_write_nothing() -> None:
    made = subject()
    with torch.no_grad():
        made.sae.W_dec[7] = 0

    def found(made: DashboardSubject, *facts: Column) -> list[int]:
        return dead_latents(made, facts).nonzero()[:, 0].tolist()

    assert found(made) == [7]
    silent = torch.zeros(24, dtype=torch.bool)
    silent[2] = True
    assert found(replace(made, dead=silent)) == [2, 7]
    frequency = torch.ones(24)
    frequency[3] = 0
    classes = ["shared"] * 24
    classes[5] = "dead"
    assert found(made, column("frequency", frequency), column("class", classes)) == [3, 5, 7]


def test_without_a_diff_the_decoder_says_class_norm_and_cosine() -> None:
    facts = latent_facts(subject())
    said = described(headline_columns(facts), SECOND_ONLY)
    assert said == {"class": "chat-only", "relative norm": "1"}
    assert first_latents(facts, 1) == [SECOND_ONLY]


@pytest.mark.parametrize(
    ("widths", "names"), [((16,), []), ((16, 24), ["class", "relative_norm"]), ((16,) * 3, ["class"])]
)
def test_any_number_of_sources_has_facts(widths: tuple[int, ...], names: list[str]) -> None:
    facts = latent_facts(subject(widths=widths))
    assert [c.name for c in facts][: len(names)] == names
    assert len([c for c in facts if c.name.startswith("source_")]) == len(widths)


def test_a_difference_has_one_norm() -> None:
    made = subject(combine="difference")
    (norm,) = latent_facts(made)
    torch.testing.assert_close(norm.values, made.sae.W_dec.detach().norm(dim=1))


def test_a_diff_beside_the_crosscoder_is_read_and_one_of_another_is_refused(tmp_path: Path) -> None:
    made = subject()
    nu = torch.arange(24.0)
    DiffReport(LatentTable([column("class", ["x"] * 24), column("nu_error", nu)], ["base", "chat"])).save(tmp_path)
    facts = latent_facts(made, tmp_path)
    assert first_latents(facts, 2, "nu_error") == [23, 22]
    assert described(headline_columns(facts), 7) == {"class": "x", "nu_error": "7"}
    DiffReport(LatentTable([column("nu_error", nu[:5])], ["base", "chat"])).save(tmp_path)
    with pytest.raises(DataError, match="diff of another crosscoder"):
        latent_facts(made, tmp_path)


def test_a_diff_of_another_crosscoder_of_the_same_size_is_refused(tmp_path: Path) -> None:
    made = subject()
    facts = latent_facts(made)
    (relative,) = (c.values for c in facts if c.name == "relative_norm")
    assert isinstance(relative, torch.Tensor)
    for norms in (relative, 1 - relative, relative.half()):
        DiffReport(LatentTable([column("relative_norm", norms)], ["base", "chat"])).save(tmp_path)
        assert [c.name for c in latent_facts(made, tmp_path)] == ["relative_norm"]
    DiffReport(LatentTable([column("relative_norm", relative.roll(1))], ["base", "chat"])).save(tmp_path)
    with pytest.raises(DataError, match="diff of another crosscoder"):
        latent_facts(made, tmp_path)
