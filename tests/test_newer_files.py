"""What later versions of datasets and transformers saved opens in the installed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from helpers import gpt2_folder

from sae_lens_crosscoder import Source
from sae_lens_crosscoder.activations import DatasetConfig
from sae_lens_crosscoder.activations.datasets import load_documents
from sae_lens_crosscoder.hooked_models import load_source_model


def test_a_data_set_with_lists_opens_as_datasets_4_saves_it(tmp_path: Path) -> None:
    rows = [[3, 1, 2], [5]]
    Dataset.from_dict({"input_ids": rows}).save_to_disk(tmp_path)
    info = tmp_path / "dataset_info.json"
    info.write_text(info.read_text().replace('"Sequence"', '"List"'))
    (file,) = tmp_path.glob("*.arrow")
    table: Any = pa.ipc.open_stream(file.read_bytes()).read_all()
    metadata = {key: value.replace(b'"Sequence"', b'"List"') for key, value in table.schema.metadata.items()}
    with pa.ipc.new_stream(file, table.schema.with_metadata(metadata)) as stream:
        stream.write_table(table)
    assert load_documents(DatasetConfig(path=str(tmp_path)))["input_ids"][:] == rows  # pyright: ignore


def test_a_model_opens_with_its_tokenizer_as_transformers_5_saves_it(tmp_path: Path) -> None:
    path = gpt2_folder(tmp_path / "model")
    file = Path(path) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "TokenizersBackend"}))
    read = Source("base", path, "transformer.h.1", d_in=16, model_class_name="AutoModelForCausalLM")
    model = load_source_model(read, ["transformer.h.1"], "cpu")
    assert model.tokenizer.bos_token == "<bos>"
