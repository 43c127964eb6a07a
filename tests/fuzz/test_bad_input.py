"""Whatever comes in, nothing comes out but a result or an error of this package.

`pytest tests/fuzz --hypothesis-profile=thorough` runs each test on 10,000 cases.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import yaml
from helpers import batchtopk_config, fresh_tokenizer, run_config, tiny_pair, token_dataset
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder import CrosscoderRunnerConfig, CrosscoderTrainingRunner, DatasetConfig, Sources
from sae_lens_crosscoder.activations.token_roles import chat_token_roles
from sae_lens_crosscoder.cli.parser import parse_fields, parse_pairs
from sae_lens_crosscoder.errors import CrosscoderError
from sae_lens_crosscoder.fields import read_config_file
from sae_lens_crosscoder.training.checkpoints import check_checkpoint
from sae_lens_crosscoder.training.saved_run import SavedRun


@pytest.fixture(scope="module", autouse=True)
def unchecked_annotations() -> Any:
    """The package's own checks must do, as they do outside the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def only_our_errors(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    message = "nothing was wrong"
    try:
        function(*arguments, **named)
    except CrosscoderError as error:
        message = str(error)
    assert message
    assert len(message.splitlines()) == 1


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
GOOD_RUN = json.loads(json.dumps(run_config(batchtopk_config()).to_dict()))
GOOD_SOURCES = GOOD_RUN["sources"]


def changed(values: Any) -> st.SearchStrategy[Any]:
    """The mapping with one entry, at any depth, that is another value, is gone or is new."""

    def change(path: list[str], how: str, value: Any) -> Any:
        copy = json.loads(json.dumps(values))
        place = copy
        for name in path[:-1]:
            place = place[name]
        if how == "removed":
            place.pop(path[-1])
        else:
            place[path[-1] + ("_" if how == "added" else "")] = value
        return copy

    paths = [[name] for name in values]
    paths += [[name, inner] for name, value in values.items() if isinstance(value, dict) for inner in value]
    return st.builds(change, st.sampled_from(paths), st.sampled_from(["replaced", "removed", "added"]), VALUES)


@given(changed(GOOD_RUN))
def test_run_configurations(values: dict[str, Any]) -> None:
    only_our_errors(CrosscoderRunnerConfig.from_dict, values)


@given(st.binary(max_size=200) | VALUES.map(lambda value: yaml.safe_dump(value).encode()))
def test_configuration_files(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for suffix in ("json", "yaml"):
        path = tmp_path_factory.getbasetemp() / f"run.{suffix}"
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished crosscoder and a checkpoint of its run."""
    folder = tmp_path_factory.mktemp("saved")
    cfg = run_config(batchtopk_config(), folder, n_checkpoints=1)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    next(folder.glob("checkpoints/*/*")).rename(folder / "checkpoint")
    return folder


DAMAGE = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "replace"]), st.floats(0, 1, exclude_max=True), st.binary(max_size=16)
)


def damaged(content: bytes, how: str, where: float, extra: bytes) -> bytes:
    at = int(where * len(content))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + extra + content[at:]
    if how == "replace":
        return extra
    return content[:at] + bytes([content[at] ^ (1 << (at % 8))]) + content[at + 1 :]


def copy_of(folder: Path) -> Path:
    copy = folder.with_name(f"{folder.name}_copy")
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(folder, copy)


def read_all(folder: Path) -> None:
    run = SavedRun(folder)
    for read in (lambda: run.sae, lambda: run.sources, lambda: run.dead, run.metrics, run.config):
        only_our_errors(read)


@given(st.data())
def test_damaged_crosscoders(saved: Path, data: st.DataObject) -> None:
    copy = copy_of(saved / "output")
    name = data.draw(
        st.sampled_from(
            ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json", "metrics.json"]
        )
    )
    (copy / name).write_bytes(damaged((copy / name).read_bytes(), *data.draw(DAMAGE)))
    read_all(copy)


@given(st.data())
def test_damaged_configurations_of_crosscoders(saved: Path, data: st.DataObject) -> None:
    copy = copy_of(saved / "output")
    name = data.draw(st.sampled_from(["cfg.json", "runner_cfg.json"]))
    values = data.draw(changed(json.loads((copy / name).read_text())))
    (copy / name).write_text(json.dumps(values))
    read_all(copy)


@given(st.data())
def test_damaged_checkpoints(saved: Path, data: st.DataObject) -> None:
    copy = copy_of(saved / "checkpoint")
    name = data.draw(st.sampled_from(sorted(path.name for path in copy.iterdir())))
    before = (copy / name).read_bytes()
    after = damaged(before, *data.draw(DAMAGE))
    (copy / name).write_bytes(after)
    if before != after and name != "manifest.json":
        with pytest.raises(CrosscoderError):
            check_checkpoint(copy)
    else:
        only_our_errors(check_checkpoint, copy)
