"""Parquet files, by the optional library pyarrow (extra `data`)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from tsgb.data.records import RawRow
from tsgb.errors import UsageError

BATCH = 256
"""Rows that are taken from a file at once."""
_ERRORS = (OSError, ValueError, TypeError, NotImplementedError)
"""Kinds of errors that pyarrow raises for a damaged file."""


def parquet_columns(file: BinaryIO, path: Path) -> tuple[str, ...]:
    """Return the names of the columns.

    Raises:
        UsageError: pyarrow is missing, or the file is no Parquet.
    """
    return tuple(_opened(file, path).schema_arrow.names)


def parquet_rows(file: BinaryIO, path: Path) -> Iterator[RawRow]:
    """Yield the rows, numbered from 1.

    Raises:
        UsageError: See `parquet_columns`; or a page is damaged.
    """
    source, number = _opened(file, path), 0
    batches = source.iter_batches(batch_size=BATCH)
    while batch := _next(batches, path):
        for cells in batch:
            number += 1
            yield RawRow(number, cells)


def _library() -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            "a Parquet file needs the extra `data` (pyarrow): run `uv sync --extra data`, or "
            "convert the file to CSV or JSON lines"
        ) from error


def _opened(file: BinaryIO, path: Path) -> Any:
    library = _library()
    file.seek(0)
    try:
        return library.ParquetFile(file, memory_map=False, pre_buffer=False)
    except _ERRORS as error:
        raise _damaged(path, error) from error


def _next(batches: Iterator[Any], path: Path) -> list[dict[str, Any]]:
    """Return the rows of the next batch that has any; none at the end."""
    try:
        for batch in batches:
            if batch.num_rows:
                return batch.to_pylist()
    except _ERRORS as error:
        raise _damaged(path, error) from error
    return []


def _damaged(path: Path, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:120]
    return UsageError(f"{path} is no whole Parquet file ({reason}): fetch it again")
