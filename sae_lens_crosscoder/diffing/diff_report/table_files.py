"""The table of latents as Arrow data, parquet and CSV. Descriptions and thresholds travel in the schema."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sae_lens_crosscoder.diffing.diff_report.latent_table import INDEX, Column, LatentTable
from sae_lens_crosscoder.errors import DataError

PARQUET = "latents.parquet"
CSV = "latents.csv"

_KEY = b"sae_lens_crosscoder"
_DESCRIPTION = ("title", "meaning", "group", "format", "scale", "shown")


def to_arrow(table: LatentTable) -> pa.Table:
    """The index and all columns; labels, thresholds and descriptions as JSON in the metadata of the schema."""
    arrays = [pa.array(range(table.d_sae), pa.int64()), *(_array(column) for column in table.columns)]
    about = {
        "labels": list(table.labels),
        "thresholds": dict(table.thresholds),
        "columns": {column.name: {key: getattr(column, key) for key in _DESCRIPTION} for column in table.columns},
    }
    data = pa.table(arrays, names=[INDEX, *table.names])
    return data.replace_schema_metadata({_KEY: json.dumps(about).encode()})


def to_parquet(table: LatentTable) -> bytes:
    """The content of a parquet file; NaN stays NaN, types stay what they are (bfloat16 becomes float32)."""
    buffer = io.BytesIO()
    pq.write_table(to_arrow(table), buffer, compression="zstd")
    return buffer.getvalue()


def to_csv(table: LatentTable) -> bytes:
    """The content of a CSV file; NaN is an empty cell, and floats have as many digits as their precision needs."""
    data = to_arrow(table)
    for index, column in enumerate(data.columns):
        if pa.types.is_floating(column.type):
            missing = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            data = data.set_column(index, data.column_names[index], missing)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(data, buffer)
    return buffer.getvalue()


def from_parquet(path: Path) -> LatentTable:
    """The table in a file that `to_parquet` made.

    Raises:
        DataError: The file is no parquet file, or none of this package.
    """
    try:
        data = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); write it again with DiffReport.save.") from error
    metadata: dict[bytes, bytes] = data.schema.metadata or {}
    if _KEY not in metadata:
        raise DataError(
            f"{path} is a parquet file without this package's labels, thresholds and column descriptions, so that its "
            "classes could not be read as they were meant; take a file written by DiffReport.save."
        )
    about: dict[str, Any] = json.loads(metadata[_KEY])
    columns = [
        Column(name=name, values=_values(data.column(name)), **description)
        for name, description in about["columns"].items()
    ]
    return LatentTable(columns, about["labels"], about["thresholds"])


def _array(column: Column) -> pa.Array:
    if isinstance(column.values, Tensor):
        values = column.values.detach().cpu()
        return pa.array((values.float() if values.dtype == torch.bfloat16 else values).numpy())
    # Files hold UTF-8, which has no lone surrogates.
    return pa.array([text.encode("utf-8", "backslashreplace").decode() for text in column.values], pa.string())


def _values(column: pa.ChunkedArray) -> Tensor | list[str]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.to_pylist()
    return torch.tensor(column.to_numpy())
