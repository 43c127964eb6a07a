"""Whatever comes in, nothing comes out but a result or an error of this package.

`pytest tests/fuzz --hypothesis-profile=thorough` runs each test on 10,000 cases; `tests/fuzz/with_atheris.py` has a
fuzzer that watches which lines are reached look for more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from fuzz.cases import GOOD_RUN, GOOD_SOURCES, VALUES, changed, only_our_errors, scratch
from helpers import fresh_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from sae_lens_crosscoder import CrosscoderRunnerConfig, DatasetConfig, Sources
from sae_lens_crosscoder.activations.token_roles import chat_token_roles
from sae_lens_crosscoder.cli.parser import parse_fields, parse_pairs
from sae_lens_crosscoder.fields import read_config_file


@given(changed(GOOD_RUN))
def test_run_configurations(values: dict[str, Any]) -> None:
    only_our_errors(CrosscoderRunnerConfig.from_dict, values)


@given(st.binary(max_size=200) | VALUES.map(lambda value: yaml.safe_dump(value).encode()))
def test_configuration_files(content: bytes) -> None:
    for suffix in ("json", "yaml"):
        path = scratch() / f"run.{suffix}"
        path.write_bytes(content)
        only_our_errors(read_config_file, path)


@given(VALUES | st.fixed_dictionaries({"sources": VALUES, "combine": VALUES, "token_alignment": VALUES}))
def test_metadata(values: Any) -> None:
    only_our_errors(Sources.from_metadata, values if isinstance(values, dict) else {"sources": values, "combine": "x"})


@given(changed(GOOD_SOURCES[0]), VALUES)
def test_sources(first: dict[str, Any], combine: Any) -> None:
    only_our_errors(Sources.from_metadata, {"sources": [first, GOOD_SOURCES[1]], "combine": combine})
    only_our_errors(Sources.from_metadata, {"sources": [first, GOOD_SOURCES[1]], "combine": "concat"})


@given(changed(dataclasses.asdict(DatasetConfig(path="x", label="y"))))
def test_data_sets(values: dict[str, Any]) -> None:
    only_our_errors(DatasetConfig.from_dict, values)


@given(st.lists(st.text(max_size=12) | st.sampled_from(["--lr", "1e-4", "--sae.k", "--sae", "--a.b.c=1"]), max_size=6))
@example(["--sae", "1e-4", "--sae.k", "1"])
@example(["--sae.k", "1", "--sae.k.b=1"])
@example(["--lr", "[" * 100_000])
@example(["{" + '"a":{' * 100_000])
def test_flags(arguments: list[str]) -> None:
    only_our_errors(parse_fields, arguments)
    for argument in arguments:
        only_our_errors(parse_pairs, argument)


TEMPLATES = st.text(max_size=40) | st.lists(
    st.sampled_from(
        [
            *(
                "{% for m in messages %}",
                "{% endfor %}",
                "{{ m['content'] }}",
                "{{ m.role }}",
                "{{ m['content'] | upper }}",
            ),
            *("{{ messages[9].content }}", "{{ 1/0 }}", "{% if", "{{ raise_exception('no') }}", "<|im_start|>", "\n"),
            *("{{ cycler.__init__.__globals__ }}", "{{ messages|length }}", "{{ bos_token }}", "\x00", "\u202e"),
        ]
    ),
    max_size=8,
).map("".join)


@given(TEMPLATES, st.lists(st.text(max_size=10), min_size=1, max_size=3))
def test_chat_templates(template: str, messages: list[str]) -> None:
    roles = ("user", "assistant")
    chat = [{"role": roles[n % 2], "content": message} for n, message in enumerate(messages)]
    only_our_errors(chat_token_roles, chat, fresh_tokenizer(), template)
