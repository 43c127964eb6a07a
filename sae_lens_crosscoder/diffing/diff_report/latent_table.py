"""The table of a diffing run: one row a latent, one described column a quantity; and as parquet, CSV and data frame."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sae_lens_crosscoder.diffing.classes import class_names
from sae_lens_crosscoder.diffing.diff_report.column import INDEX, Column
from sae_lens_crosscoder.errors import (
    ConfigError,
    CrosscoderError,
    DataError,
    NotFoundError,
    ShapeError,
    first_line,
)

if TYPE_CHECKING:
    import pandas as pd

PARQUET = "latents.parquet"

_KEY = b"sae_lens_crosscoder"
_DESCRIPTION = ("title", "meaning", "group", "format", "scale", "shown")


@dataclass(frozen=True, eq=False)
class LatentTable:
    """Columns of equal length, row j being latent j, with the labels and thresholds that they were made with.

    Raises:
        ShapeError: No column, or columns of different length.
        ConfigError: Two columns of one name (upper and lower case count as the same), or labels as in `class_names`.
    """

    columns: Sequence[Column]
    """In the order in which the page shows them; columns of one group stand together."""

    labels: Sequence[str]
    """Names of the sources, the base first."""

    thresholds: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    """What the classes and flags were drawn at, by name; stored in the parquet file and shown on the page."""

    def __post_init__(self) -> None:
        class_names(self.labels)
        if not self.columns or len({len(column.values) for column in self.columns}) > 1:
            lengths = {column.name: len(column.values) for column in self.columns}
            raise ShapeError(f"A table needs columns with one value for every latent, and these have {lengths}.")
        names = [column.name.lower() for column in self.columns]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Several columns are named {repeated}: a filter or a file could not tell them apart.")

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.columns[0].values)

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order, without the index."""
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            ConfigError: There is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ConfigError(f"There is no column {name!r}; the table has {', '.join(self.names)}.")

    def to_arrow(self, nan_is_null: bool = False) -> Any:
        """A `pyarrow.Table`, the column `latent` first; the schema holds labels, thresholds and descriptions.

        Types stay what they are (bfloat16 becomes float32), and so does NaN unless it is to be null.
        """
        about = {
            "labels": list(self.labels),
            "thresholds": dict(self.thresholds),
            "columns": {column.name: {key: getattr(column, key) for key in _DESCRIPTION} for column in self.columns},
        }
        arrays = [pa.array(range(self.d_sae), pa.int64()), *(_to_array(column, nan_is_null) for column in self.columns)]
        data = pa.table(arrays, names=[INDEX, *self.names])
        return data.replace_schema_metadata({_KEY: json.dumps(about).encode()})

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with the column `latent` first; `attrs` holds the labels and the thresholds."""
        frame = self.to_arrow().to_pandas()
        frame.attrs = {"labels": list(self.labels), "thresholds": dict(self.thresholds)}
        return frame

    def to_parquet(self) -> bytes:
        """The content of a parquet file, which `load` reads back to the last bit."""
        buffer = io.BytesIO()
        pq.write_table(self.to_arrow(), buffer, compression="zstd")
        return buffer.getvalue()

    def to_csv(self) -> bytes:
        """The content of a CSV file; NaN is an empty cell, and floats have the digits that their precision needs."""
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(self.to_arrow(nan_is_null=True), buffer)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: str | Path) -> LatentTable:
        """The table that `DiffReport.save` wrote, with its labels, thresholds and descriptions.

        Args:
            path: `latents.parquet`, or the folder it is in.

        Raises:
            NotFoundError: There is no such file.
            DataError: It is no parquet file, or none of this package.
        """
        file = Path(path) / PARQUET if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise NotFoundError(f"There is no table of latents at {file}; DiffReport.save writes one.")
        try:
            data = pq.read_table(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{file} cannot be read as parquet ({first_line(error)}); write it again with DiffReport.save."
            ) from error
        metadata: dict[bytes, bytes] = data.schema.metadata or {}
        if _KEY not in metadata:
            raise DataError(
                f"{file} is a parquet file without this package's labels, thresholds and column descriptions, so that "
                "its classes could not be read as they were meant; take a file written by DiffReport.save."
            )
        try:
            about = json.loads(metadata[_KEY])
            columns = [
                Column(name=name, values=_from_array(data.column(name)), **description)
                for name, description in about["columns"].items()
            ]
            return cls(columns, about["labels"], about["thresholds"])
        except CrosscoderError:
            raise
        except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} is damaged ({first_line(error)}); write it again with DiffReport.save.") from error


def _to_array(column: Column, nan_is_null: bool) -> Any:
    if isinstance(column.values, Tensor):
        values = column.values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        return pa.array(values.numpy(), from_pandas=nan_is_null)
    # Files hold UTF-8, which has no lone surrogates.
    return pa.array([text.encode("utf-8", "backslashreplace").decode() for text in column.values], pa.string())


def _from_array(array: Any) -> Tensor | list[str]:
    if pa.types.is_string(array.type):
        return array.to_pylist()
    return torch.tensor(array.to_numpy())
