"""The table of a diffing run and its files: what is written is what is read, and nothing that is not defined is 0."""

import csv
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from synthetic_report import HOSTILE, LABELS, make_report, make_table
from torch import Tensor

from sae_lens_crosscoder.diffing import diff_report
from sae_lens_crosscoder.diffing.diff_report import (
    Column,
    Contexts,
    DiffReport,
    Evidence,
    KLDocument,
    LatentTable,
    LogitLens,
    Overview,
)
from sae_lens_crosscoder.diffing.diff_report.blocks import in_steps
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError, ShapeError


def make_column(name: str, values: object) -> Column:
    return Column(name, values, name, "What it is.", "Group")  # type: ignore[arg-type]


def make_small_table() -> LatentTable:
    return LatentTable(
        [
            make_column("class", ["shared", "chat-only", "dead"]),
            make_column("nu_error", torch.tensor([0.1, float("nan"), -2.5])),
            make_column("n_firings", torch.tensor([2**40, 7, 0])),
            make_column("flag", torch.tensor([True, False, False])),
            make_column("half", torch.tensor([0.5, float("inf"), 1.0], dtype=torch.bfloat16)),
        ],
        LABELS,
        {"classes": "shared: 0.3 to 0.7", "nu below": 0.3},
    )


def assert_same(one: LatentTable, other: LatentTable) -> None:
    assert one.names == other.names
    for left, right in zip(one.columns, other.columns, strict=True):
        if isinstance(left.values, Tensor):
            assert isinstance(right.values, Tensor)
            torch.testing.assert_close(right.values, left.values, rtol=0, atol=0, equal_nan=True)
        else:
            assert list(left.values) == list(right.values)
        assert replace(left, values=[]).__dict__ == replace(right, values=[]).__dict__


def test_a_saved_table_is_read_back_to_the_last_bit(tmp_path: Path):
    report = make_report()
    paths = report.save(tmp_path / "out")
    for path in (tmp_path / "out", paths["table"]):
        table = LatentTable.load(path)
        assert_same(report.table, table)
        assert table.labels == list(LABELS)
        assert table.thresholds == report.table.thresholds
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "latents.parquet", "latents.csv"}


def test_other_readers_find_plain_columns_in_the_parquet_file(tmp_path: Path):
    path = DiffReport(make_small_table()).save(tmp_path)["table"]
    data = pq.read_table(path)
    assert data.column_names == ["latent", "class", "nu_error", "n_firings", "flag", "half"]
    assert [str(field.type) for field in data.schema] == ["int64", "string", "float", "int64", "bool", "float"]
    assert data.column("latent").to_pylist() == [0, 1, 2]
    assert data.column("n_firings").to_pylist() == [2**40, 7, 0]
    assert json.loads(data.schema.metadata[b"sae_lens_crosscoder"])["thresholds"] == {
        "classes": "shared: 0.3 to 0.7",
        "nu below": 0.3,
    }


def test_the_csv_file_leaves_undefined_cells_empty(tmp_path: Path):
    path = DiffReport(make_small_table()).save(tmp_path)["csv"]
    assert path.read_text() == (
        '"latent","class","nu_error","n_firings","flag","half"\n'
        '0,"shared",0.1,1099511627776,true,0.5\n'
        '1,"chat-only",,7,false,inf\n'
        '2,"dead",-2.5,0,false,1\n'
    )


def test_the_csv_file_has_every_digit(tmp_path: Path):
    table = make_table(300)
    path = DiffReport(table).save(tmp_path)["csv"]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in ("nu_error", "frequency_chat", "kl_attribution"):
        values = table.column(name).values
        assert isinstance(values, Tensor)
        read = torch.tensor([float(row[name] or "nan") for row in rows], dtype=torch.float64).to(values.dtype)
        torch.testing.assert_close(read, values, rtol=0, atol=0, equal_nan=True)


def test_the_data_frame_has_the_labels_and_thresholds():
    frame = DiffReport(make_small_table()).to_pandas()
    assert list(frame.columns) == ["latent", "class", "nu_error", "n_firings", "flag", "half"]
    assert frame["class"].tolist() == ["shared", "chat-only", "dead"]
    assert pd.isna(frame["nu_error"]).tolist() == [False, True, False]
    assert frame["n_firings"].dtype == "int64"
    assert frame["flag"].dtype == "bool"
    assert frame.attrs == {"labels": ["base", "chat"], "thresholds": {"classes": "shared: 0.3 to 0.7", "nu below": 0.3}}


def test_hostile_text_survives_in_the_files_as_far_as_utf8_allows(tmp_path: Path):
    paths = DiffReport(LatentTable([make_column("explanation", HOSTILE)], LABELS)).save(tmp_path)
    expected = [text.replace("\ud800", "\\ud800") for text in HOSTILE]
    assert LatentTable.load(paths["table"]).column("explanation").values == expected
    with paths["csv"].open(newline="", encoding="utf-8") as file:
        assert [row["explanation"] for row in csv.DictReader(file)] == expected


def test_saving_keeps_other_files_and_replaces_its_own(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    DiffReport(make_small_table()).save(tmp_path)
    DiffReport(make_table(5)).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert LatentTable.load(tmp_path).d_sae == 5


def test_a_parquet_file_of_somebody_else_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"latent": [0]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="without this package's labels, thresholds"):
        LatentTable.load(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no parquet at all")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        LatentTable.load(tmp_path / "text.parquet")
    with pytest.raises(NotFoundError, match="no table of latents"):
        LatentTable.load(tmp_path)


@pytest.mark.parametrize("name", ["", "latent", "nu error", "1st", "ν", "a<b"])
def test_a_name_that_a_filter_could_not_read_is_refused(name: str):
    with pytest.raises(ConfigError, match="cannot name a column"):
        make_column(name, torch.zeros(2))


@pytest.mark.usefixtures("unchecked_types")
def test_a_column_of_matrices_is_refused():
    with pytest.raises(ShapeError, match=r"'nu' has shape \(2, 2\): pass one value a latent"):
        make_column("nu", torch.zeros(2, 2))


def test_columns_that_do_not_belong_together_are_refused():
    with pytest.raises(ShapeError, match="'a': 2, 'b': 3"):
        LatentTable([make_column("a", torch.zeros(2)), make_column("b", torch.zeros(3))], LABELS)
    with pytest.raises(ShapeError, match="needs columns"):
        LatentTable([], LABELS)
    with pytest.raises(ConfigError, match=r"Several columns are named \['a'\]"):
        LatentTable([make_column("a", torch.zeros(2)), make_column("A", torch.zeros(2))], LABELS)
    with pytest.raises(ConfigError, match="Every source needs a label of its own"):
        LatentTable([make_column("a", torch.zeros(2))], ["base", "base"])


def test_figures_of_text_or_of_nothing_are_refused():
    with pytest.raises(ConfigError, match="holds text, which has no axis"):
        DiffReport(make_small_table(), Overview(histograms=["class"]))
    with pytest.raises(ConfigError, match="no column 'nu_eror'"):
        DiffReport(make_small_table(), Overview(scatter=("nu_eror", "n_firings")))


def test_evidence_of_another_crosscoder_is_refused():
    contexts = Contexts(torch.tensor([3]), torch.tensor([[0]]), torch.ones(1, 1), ["chat"])
    with pytest.raises(ShapeError, match="latents from 3 to 3, and the table has 3"):
        DiffReport(make_small_table(), evidence=Evidence({0: "a"}, contexts))
    ids, values = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2)
    lens = LogitLens(torch.tensor([0]), ids, values, ids, values)
    with pytest.raises(ConfigError, match=r"logit lenses of \['tuned'\], and the sources are \['base', 'chat'\]"):
        DiffReport(make_small_table(), evidence=Evidence({0: "a"}, logit_lens={"tuned": lens}))


def test_a_document_needs_the_next_tokens_of_every_source():
    report = make_report(d_sae=50, n_with_contexts=10, n_documents=1)
    document = report.evidence.kl_documents[0]
    three = {"top_ids": document.top_ids[[0, 1, 1]], "top_probabilities": document.top_probabilities[[0, 1, 1]]}
    evidence = replace(report.evidence, kl_documents=[replace(document, **three)])
    with pytest.raises(ShapeError, match="next tokens of all 2 sources"):
        DiffReport(report.table, evidence=evidence)


def test_a_token_without_a_string_is_refused():
    contexts = Contexts(torch.tensor([0]), torch.tensor([[5, 6, -1]]), torch.ones(1, 3), ["chat"])
    with pytest.raises(DataError, match=r"1 token ids have no string, the first ones \[6\]"):
        Evidence({5: "a"}, contexts)


@pytest.mark.usefixtures("unchecked_types")
def test_evidence_whose_parts_do_not_fit_is_refused():
    one, ids, values = torch.tensor([0]), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2)
    with pytest.raises(ShapeError, match="1 contexts, tokens of shape"):
        Contexts(one, ids, values, ["chat", "chat"])
    with pytest.raises(ShapeError, match="logit lens of 1 latents"):
        LogitLens(one, ids, values, ids, values[:, :1])
    with pytest.raises(ShapeError, match="document of 2 tokens and 1 latents"):
        KLDocument(ids[0], values[0], ids[None], values[None], one, torch.zeros(1, 3))


def test_values_are_shown_in_127ths_of_the_largest_and_never_lost():
    values = torch.tensor([4.0, -2.0, 0.001, -0.001, 0.0, float("nan"), 2.01])
    assert in_steps(values, torch.tensor(4.0)).tolist() == [127, -64, 1, -1, 0, 0, 64]
    assert in_steps(torch.zeros(2), torch.tensor(0.0)).tolist() == [0, 0]


def test_every_public_name_is_explained():
    for name in diff_report.__all__:
        docstring = inspect.getdoc(getattr(diff_report, name))
        assert docstring, name
        assert not docstring.startswith(f"{name}("), f"{name} has only the docstring that dataclass made"
