from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from neuronpedia_corruptions import EXPORT, PAYLOADS, lines_of, put
from neuronpedia_exports import BATCHES, HOOK, MODELS, RELEASE, batch_features, export, written_batches

from sae_lens_crosscoder.dashboards.neuronpedia import ExportSource, export_neuronpedia, validate_export
from sae_lens_crosscoder.dashboards.neuronpedia.validator import validate_payloads
from sae_lens_crosscoder.errors import NotFoundError

CORRUPTIONS = {**EXPORT, **PAYLOADS}
N_CORRUPTIONS = 208


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of both models that nothing is wrong with."""
    out = tmp_path_factory.mktemp("good") / "out"
    export(out)
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good export of four latents on both models."""
    folder = tmp_path_factory.mktemp("small")
    sources = []
    for model in MODELS:
        batches = written_batches(folder / model, batch_features(model)[6:], model)
        sources.append(ExportSource(batches, HOOK))
    export_neuronpedia(sources, folder / "out", RELEASE)
    return folder / "out"


@pytest.fixture
def small_copy(small: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_a_good_export_has_no_problems(good: Path) -> None:
    assert validate_export(good) == []
    assert validate_export(good / "exports" / "tiny-base" / "1-crosscoder-res") == []
    assert validate_payloads(good) == []


@pytest.mark.usefixtures("unchecked_types")  # which make each of them take a second
@pytest.mark.parametrize("seed", range(N_CORRUPTIONS))
def test_every_corruption_is_reported_at_its_file_and_line(small_copy: Path, seed: int) -> None:
    name = list(CORRUPTIONS)[seed % len(CORRUPTIONS)]
    file, line = CORRUPTIONS[name](small_copy, random.Random(seed))
    places = [(problem.file, problem.line) for problem in validate_export(small_copy)]
    assert (file.relative_to(small_copy), line) in places, f"{name}: {file}:{line} is not in {places}"


@pytest.mark.parametrize("name", ["NaN in an array", "null in an array", "a fraction among integers", "an empty token"])
def test_a_corruption_that_touches_nothing_else_is_the_only_problem(small_copy: Path, name: str) -> None:
    file, line = EXPORT[name](small_copy, random.Random(0))
    (problem,) = validate_export(small_copy)
    assert (problem.file, problem.line) == (file.relative_to(small_copy), line)


def test_a_problem_says_where_it_is_and_what_it_causes(copy: Path) -> None:
    file = copy / "exports" / "tiny-base" / "1-crosscoder-res" / "activations" / "batch-0.jsonl.gz"
    lines = lines_of(file)
    row = json.loads(lines[4])
    row["values"][3] = None
    lines[4] = json.dumps(row).encode()
    put(file, lines)
    (problem,) = validate_export(copy)
    assert str(problem) == (
        "exports/tiny-base/1-crosscoder-res/activations/batch-0.jsonl.gz:5: values[3]: null in an array is taken and "
        "breaks the page"
    )


def test_a_key_that_only_line_1_lacks_is_reported_there(copy: Path) -> None:
    file = copy / "exports" / "tiny-base" / "1-crosscoder-res" / "features" / "batch-0.jsonl.gz"
    lines = lines_of(file)
    row = json.loads(lines[0])
    del row["maxActApprox"]
    put(file, [json.dumps(row).encode(), *lines[1:]])
    (problem,) = validate_export(copy)
    assert (problem.line, problem.path) == (1, "maxActApprox")
    assert "columns of line 1" in problem.message


def test_a_payload_that_is_laid_out_otherwise_has_its_lines_too(copy: Path) -> None:
    file = copy / "payloads" / "tiny-chat" / "1-crosscoder-res" / "payload-0.json"
    payload = json.loads(file.read_text())
    payload["features"][2]["activations"][0]["values"][0] = float("nan")
    file.write_text(json.dumps(payload, indent=2))
    (problem,) = validate_export(copy)
    line = file.read_text().splitlines()[problem.line - 1 : problem.line + 1]
    assert [text.strip() for text in line] == ["{", f'"index": {payload["features"][2]["index"]},']
    assert problem.path == "features[2].activations[0].values[0]"


def test_two_payloads_with_the_same_latent_are_reported(copy: Path) -> None:
    file = copy / "payloads" / "tiny-chat" / "1-crosscoder-res" / "payload-0.json"
    shutil.copy(file, file.with_name("payload-1.json"))
    problems = validate_export(copy)
    assert {(problem.file.name, problem.line) for problem in problems} == {("payload-1.json", n) for n in range(2, 11)}


def test_a_folder_in_the_wrong_place_is_reported(copy: Path) -> None:
    folder = copy / "exports" / "tiny-base" / "1-crosscoder-res"
    folder.rename(folder.with_name("2-crosscoder-res"))
    (problem,) = validate_export(copy)
    assert "looks for this source in a folder tiny-base/1-crosscoder-res" in problem.message


def test_an_export_by_neuronpedias_own_converter_is_told_what_it_loses(copy: Path) -> None:
    file = copy / "exports" / "tiny-base" / "1-crosscoder-res" / "features" / "batch-0.jsonl.gz"
    rows = [{**json.loads(line), "sourceSetName": None} for line in lines_of(file)]
    put(file, [json.dumps({**row, "index": int(row["index"])}).encode() for row in rows])
    problems = validate_export(copy)
    assert {(problem.path, problem.line) for problem in problems} == {("sourceSetName", n) for n in range(1, 11)}


def test_of_a_file_100_problems_are_listed_and_the_others_counted(copy: Path) -> None:
    file = copy / "exports" / "tiny-base" / "1-crosscoder-res" / "activations" / "batch-0.jsonl.gz"
    put(file, [b"x"] * 1_000)
    problems = validate_export(copy)
    assert len(problems) == 101
    assert problems[-1].message == "900 more problems in this file"


def test_a_folder_without_anything_for_neuronpedia_is_no_good_export(tmp_path: Path) -> None:
    (problem,) = validate_export(tmp_path)
    assert "no export here" in problem.message
    (problem,) = validate_payloads(tmp_path)
    assert "no payload-*.json" in problem.message
    with pytest.raises(NotFoundError):
        validate_export(tmp_path / "none")


def test_a_payload_that_is_no_object_is_reported(copy: Path) -> None:
    file = copy / "payloads" / "tiny-chat" / "1-crosscoder-res" / "payload-0.json"
    for text, line in (("[]", 1), ("", 1), ('{\n"modelId": "a",\n}', 3), ("1" * 5_000, 1), ("[" * 100_000, 1)):
        file.write_text(text)
        assert [problem.line for problem in validate_export(copy)] == [line]


def test_tokens_of_every_kind_survive(tmp_path: Path) -> None:
    batches = tmp_path / "batches"
    shutil.copytree(BATCHES / "tiny-base", batches)
    batch = json.loads((batches / "batch-0.json").read_text())
    window = batch["features"][0]["activations"][0]
    window["tokens"][:7] = ["\ud800", "\0", "", "\\u0000", "\u2028", "</script>", "\U0001f600"]
    (batches / "batch-0.json").write_text(json.dumps(batch))
    (source,) = export_neuronpedia([ExportSource(batches, HOOK)], tmp_path / "out", RELEASE)
    row = json.loads(lines_of(source.folder / "activations" / "batch-0.jsonl.gz")[0])
    assert row["tokens"][:7] == ["\ufffd", "\u2400", "\ufffd", "\\u0000", "\u2028", "</script>", "\U0001f600"]
