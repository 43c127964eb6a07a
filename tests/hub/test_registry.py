from __future__ import annotations

import re

import pytest

from sae_lens_crosscoder import Source
from sae_lens_crosscoder.errors import NotFoundError
from sae_lens_crosscoder.hub.formats import FORMATS
from sae_lens_crosscoder.hub.names import checked_id, is_hub_id
from sae_lens_crosscoder.hub.registry import KnownCrosscoder, known_at, known_crosscoder, known_crosscoders

EVERY = pytest.mark.parametrize("known", known_crosscoders(), ids=lambda known: known.name)


@EVERY
def test_an_entry_names_a_repository_a_folder_and_sources_that_could_be(known: KnownCrosscoder) -> None:
    assert re.fullmatch(r"[a-z0-9.\-]+", known.name)
    assert is_hub_id(known.repo_id)
    assert known.format in FORMATS
    if known.id is not None:
        assert checked_id(known.id) == known.id
    for fields in known.sources or ():
        source = Source(**{"model_name": "left to the files", **fields})
        assert source.d_in > 0
        assert source.activation_scale == 1.0
    if known.scales is not None:
        assert known.sources is not None
        assert len(known.scales) == len(known.sources)
        assert all(0 < scale < 10 for scale in known.scales)


def test_names_and_places_are_each_there_once() -> None:
    entries = known_crosscoders()
    assert len({known.name for known in entries}) == len(entries)
    assert len({(known.repo_id, known.id) for known in entries}) == len(entries)


def test_kissanes_crosscoder_has_the_two_published_scale_factors_base_first() -> None:
    known = known_crosscoder("kissane-gemma-2-2b-l14")
    assert known.scales == (0.2758961493232058, 0.24422852496546169)
    assert [source["label"] for source in known.sources or ()] == ["base", "chat"]
    assert {source["hook_name"] for source in known.sources or ()} == {"blocks.14.hook_resid_pre"}


def test_antebes_first_source_is_the_fine_tuned_one() -> None:
    assert [source["label"] for source in known_crosscoder("antebe-qwen-2.5-3b-toolrl").sources or ()] == [
        "finetuned",
        "base",
    ]


def test_the_facts_of_a_repository_are_found_by_its_address() -> None:
    kissane = "ckkissane/crosscoder-gemma-2-2b-model-diff"
    for id in (None, "blocks.14.hook_resid_pre"):
        found = known_at(kissane, id)
        assert found is not None
        assert found.name == "kissane-gemma-2-2b-l14"
    assert known_at(kissane, "blocks.20.hook_resid_pre") is None
    assert known_at("mitroitskii/Crosscoder-Llama-3.1-8B-vs-Llama-R1-Distill-8B", None) is None
    assert known_at("alice/diff", None) is None


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'kissane-gemma-2-2b-l14'"):
        known_crosscoder("kissane-gemma-2-2b-l13")
