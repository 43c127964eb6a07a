from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.dashboards.neuronpedia import SourceName
from sae_lens_crosscoder.dashboards.neuronpedia.names import (
    model_id_fault,
    set_name_fault,
    source_id_fault,
    upload_id_fault,
)
from sae_lens_crosscoder.errors import ConfigError


@pytest.mark.parametrize("name", ["gpt2-small", "gemma-2-2b-it", "llama3.1-8b", "qwen3-1.7b", "gpt_neo", "x"])
def test_ids_of_models_that_neuronpedia_has_are_taken(name: str) -> None:
    assert model_id_fault(name) is None


@pytest.mark.parametrize(
    "name", ["", "Gemma", "google/gemma", "2b", "gemma-", "a--b", "a..b", "a b", "\u00e9", "a" * 129]
)
def test_other_ids_of_models_are_refused(name: str) -> None:
    fault = model_id_fault(name)
    assert fault is not None
    assert repr(name) in fault


@pytest.mark.parametrize("name", ["crosscoder", "res-16k", "a", "7", "a1"])
def test_names_of_source_sets_follow_the_rule_of_the_api(name: str) -> None:
    assert set_name_fault(name) is None


@pytest.mark.parametrize(
    "name", ["", "Res", "res_16k", "res--16k", "-res", "res-", "7res", "res.16k", "neurons", "a\n"]
)
def test_other_names_of_source_sets_are_refused(name: str) -> None:
    assert set_name_fault(name) is not None


@pytest.mark.parametrize("name", ["0-res", "13-crosscoder-16k", "13-crosscoder-16k__chat", "1-a__l0-12.5"])
def test_ids_of_sources_are_layer_set_and_suffix(name: str) -> None:
    assert source_id_fault(name) is None


@pytest.mark.parametrize(
    "name", ["", "res", "-res", "01-res", "1_res", "1-Res", "1-res__", "1-res__Chat", "1-res__a b", "1-"]
)
def test_other_ids_of_sources_are_refused(name: str) -> None:
    assert source_id_fault(name) is not None


def test_the_api_has_no_sources_with_suffixes() -> None:
    assert upload_id_fault("1-res") is None
    assert upload_id_fault("1-res__chat") is not None
    assert upload_id_fault("res") is not None


@given(st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4}){0,3}", fullmatch=True), st.integers(0, 200))
def test_a_source_with_good_parts_has_a_good_id(source_set: str, layer: int) -> None:
    if source_set == "neurons":
        return
    assert SourceName("gpt2-small", source_set, layer).source_id == f"{layer}-{source_set}"
    assert SourceName("gpt2-small", source_set, layer, "chat").source_id == f"{layer}-{source_set}__chat"


@pytest.mark.parametrize(
    "parts", [("GPT2", "res", 1, None), ("gpt2", "Res", 1, None), ("gpt2", "res", -1, None), ("gpt2", "res", 1, "A")]
)
def test_a_source_with_a_bad_part_is_refused(parts: tuple[str, str, int, str | None]) -> None:
    with pytest.raises(ConfigError, match="Neuronpedia would refuse this source"):
        SourceName(*parts)
