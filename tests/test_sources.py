from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import StandardSAEConfig

from sae_lens_crosscoder import Source, Sources
from sae_lens_crosscoder.errors import SourceError


def source(label: str = "base", d_in: int = 3, **fields: Any) -> Source:
    return Source(
        **{"label": label, "model_name": f"m-{label}", "hook_name": "blocks.1.hook_z", "d_in": d_in, **fields}
    )


def three() -> Sources:
    return Sources((source("a", 3), source("b", 5), source("c", 2)))


def test_columns_are_cut_where_the_widths_before_them_end():
    sources = three()
    assert sources.d_in == 10
    assert [sources.columns(label) for label in "abc"] == [slice(0, 3), slice(3, 8), slice(8, 10)]


@given(widths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_columns_of_all_sources_cover_the_joint_activation_once(widths: list[int]):
    sources = Sources(tuple(source(f"s{i}", width) for i, width in enumerate(widths)))
    covered = [i for label in sources.labels for i in range(sources.d_in)[sources.columns(label)]]
    assert covered == list(range(sum(widths)))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, ("base", "chat")),
        ({"base": "base"}, ("base", "chat")),
        ({"base": "chat"}, ("chat", "base")),
        ({"finetuned": "base"}, ("chat", "base")),
        ({"finetuned": "chat"}, ("base", "chat")),
        ({"base": "chat", "finetuned": "base"}, ("chat", "base")),
    ],
)
def test_of_two_sources_naming_one_says_which_the_other_is(named: dict[str, str], expected: tuple[str, str]):
    assert Sources((source("base"), source("chat"))).pair(**named) == expected


def test_of_three_sources_both_have_to_be_named():
    assert three().pair("c", "a") == ("c", "a")
    for named in ({}, {"base": "a"}, {"base": "a", "finetuned": "a"}):
        with pytest.raises(SourceError, match="between two of the sources a, b, c"):
            three().pair(**named)
    with pytest.raises(SourceError, match="no source 'd'"):
        three().pair("a", "d")


def test_both_sources_of_a_difference_share_all_columns():
    sources = Sources((source("base"), source("chat")), "difference")
    assert (sources.d_in, sources.widths) == (3, [3])
    assert sources.columns("base") == sources.columns("chat") == slice(0, 3)


@pytest.mark.parametrize("combine", ["concat", "difference"])
def test_sources_come_back_unchanged_from_the_cfg_json_of_an_sae(combine: Any):
    first = source("base", model_from_pretrained_kwargs={"dtype": "bfloat16"}, device="cpu", activation_scale=0.27)
    sources = Sources((first, source("chat", model_class_name="TransformerBridge")), combine)
    cfg = StandardSAEConfig(d_in=sources.d_in, d_sae=4)
    for name, value in sources.to_metadata().items():
        cfg.metadata[name] = value
    assert Sources.from_metadata(cfg.metadata) == sources
    written = json.loads(json.dumps(cfg.to_dict()))["metadata"]
    assert Sources.from_metadata(written) == sources


@pytest.mark.parametrize("key", ["sources", "combine"])
def test_metadata_without_sources_are_refused_although_saelens_gives_none(key: str):
    cfg = StandardSAEConfig(d_in=3, d_sae=4)
    assert getattr(cfg.metadata, key) is None
    for name, value in three().to_metadata().items():
        if name != key:
            cfg.metadata[name] = value
    with pytest.raises(SourceError, match=f"no '{key}', so it is unknown which columns"):
        Sources.from_metadata(cfg.metadata)


def test_metadata_of_before_there_was_alignment_are_those_of_models_that_read_the_same_ids():
    metadata = three().to_metadata()
    assert metadata.pop("token_alignment") == "same_ids"
    assert Sources.from_metadata(metadata) == three()


def test_the_alignment_is_kept_in_metadata_and_by_new_scales():
    sources = Sources((source("base"), source("chat")), token_alignment="character_offsets")
    assert Sources.from_metadata(sources.to_metadata()) == sources
    assert sources.with_activation_scales([2.0, 3.0]).token_alignment == "character_offsets"


def test_an_unknown_alignment_is_refused(unchecked_types: None):
    metadata = {**three().to_metadata(), "token_alignment": "words"}
    with pytest.raises(SourceError, match=r"token_alignment='words' is unknown. Use one of same_ids, char"):
        Sources.from_metadata(metadata)


def test_a_misspelt_metadata_key_is_refused():
    metadata = three().to_metadata()
    metadata["source"] = metadata.pop("sources")
    with pytest.raises(SourceError, match="have no 'sources'"):
        Sources.from_metadata(metadata)


def test_a_misspelt_field_of_a_source_is_named_with_the_one_that_was_meant():
    values = source().to_dict()
    values["hook_nam"] = values.pop("hook_name")
    with pytest.raises(SourceError, match=r"no field 'hook_nam'. Did you mean 'hook_name'\?"):
        Source.from_dict(values)


def test_a_field_like_no_other_is_named_with_the_known_ones():
    with pytest.raises(SourceError, match=r"no field 'zzz'. It has label, model_name, hook_name, d_in"):
        Source.from_dict({**source().to_dict(), "zzz": 1})


@pytest.mark.parametrize("field", ["label", "model_name", "hook_name", "d_in"])
def test_a_missing_field_of_a_source_is_named(field: str):
    values = source().to_dict()
    del values[field]
    with pytest.raises(SourceError, match=f"lacks {field}"):
        Source.from_dict(values)


@pytest.mark.parametrize("values", ["base", 7, [source()]])
def test_a_source_that_is_no_mapping_is_refused(unchecked_types: None, values: Any):
    with pytest.raises(SourceError, match="must be a mapping of its fields, not"):
        Source.from_dict(values)


@pytest.mark.parametrize("values", ["base", {"label": "base"}, 3])
def test_sources_that_are_no_list_are_refused(unchecked_types: None, values: Any):
    with pytest.raises(SourceError, match="sources must be a list"):
        Sources.from_dicts(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "a/b"}, "cannot name files and metrics"),
        ({"label": ""}, "cannot name files and metrics"),
        ({"label": ".hidden"}, "cannot name files and metrics"),
        ({"label": 3}, "cannot name files and metrics"),
        ({"model_name": ""}, "empty model_name"),
        ({"hook_name": ""}, "empty hook_name"),
        ({"model_class_name": ""}, "empty model_class_name"),
        ({"d_in": 0}, "d_in=0: it must be a positive integer"),
        ({"d_in": 2.0}, "must be a positive integer"),
        ({"d_in": "16"}, "must be a positive integer"),
        ({"d_in": True}, "must be a positive integer"),
        ({"activation_scale": 0.0}, "activation_scale=0.0: it must be positive"),
        ({"activation_scale": float("nan")}, "must be positive"),
    ],
)
def test_a_source_with_an_impossible_value_is_refused(unchecked_types: None, fields: dict[str, Any], message: str):
    with pytest.raises(SourceError, match=message):
        source(**fields)


@pytest.mark.parametrize(
    "fields", [{"d_in": "wide"}, {"activation_scale": "big"}, {"model_from_pretrained_kwargs": None}]
)
def test_a_mapping_with_a_value_of_the_wrong_type_is_refused_by_its_field(fields: dict[str, Any]):
    (name,) = fields
    with pytest.raises(SourceError, match=f"Source 'base': {name} = .* is not valid"):
        Source.from_dict({**source().to_dict(), **fields})


def test_there_must_be_a_source():
    with pytest.raises(SourceError, match="There are no sources"):
        Sources(())


def test_two_sources_of_one_label_are_refused():
    with pytest.raises(SourceError, match="'base' stands more than once"):
        Sources((source("base"), source("chat"), source("base")))


def test_an_unknown_combination_is_refused(unchecked_types: None):
    with pytest.raises(SourceError, match=r"combine='sum' is unknown. Use one of concat, difference"):
        Sources.from_dicts([source().to_dict()], "sum")


def test_a_difference_of_three_sources_is_refused():
    with pytest.raises(SourceError, match=r"needs exactly two sources, not 3 \(a, b, c\)"):
        Sources(tuple(three()), "difference")


def test_a_difference_of_unequal_widths_is_refused_with_both_widths():
    with pytest.raises(SourceError, match=r"'a' has 3 and 'b' has 5. Use combine='concat'"):
        Sources((source("a", 3), source("b", 5)), "difference")


def test_an_unknown_label_is_answered_with_the_known_ones():
    with pytest.raises(SourceError, match=r"no source 'd'. The sources are 'a', 'b', 'c'"):
        three().columns("d")


def test_activation_scales_are_set_in_order_and_leave_the_rest():
    sources = three().with_activation_scales([0.5, 2.0, 4.0])
    assert sources.activation_scales == [0.5, 2.0, 4.0]
    assert sources.with_activation_scales([1.0, 1.0, 1.0]) == three()


def test_another_number_of_activation_scales_than_sources_is_refused():
    with pytest.raises(SourceError, match="2 activation scales were given for 3 sources"):
        three().with_activation_scales([1.0, 2.0])


def test_sources_share_a_model_only_if_all_that_loads_it_agrees():
    first = source(model_from_pretrained_kwargs={"dtype": "bfloat16", "n_ctx": 4})
    same = source(
        "other", model_name="m-base", hook_name="x", model_from_pretrained_kwargs={"n_ctx": 4, "dtype": "bfloat16"}
    )
    assert first.model_key == same.model_key
    for fields in ({"device": "cpu"}, {"model_name": "n"}, {"model_class_name": "HookedMamba"}):
        assert (
            source(**{"model_from_pretrained_kwargs": {"dtype": "bfloat16", "n_ctx": 4}, **fields}).model_key
            != first.model_key
        )
