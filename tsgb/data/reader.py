"""A user's file as prompts: recognised by its columns, or read by the columns that a user names."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsgb.data.cells import RowDroppedError
from tsgb.data.characters import visible
from tsgb.data.formats import DataFormat, Row, recognise
from tsgb.data.mapping import EXAMPLE, ColumnMap
from tsgb.data.records import DataPrompt, DroppedRow, RawRow
from tsgb.data.tables import DataTable, open_table
from tsgb.errors import UsageError

_SHOWN_COLUMNS = 20
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """An open file of prompts."""

    path: Path
    """The file."""
    kind: str
    """Form of the file, see `DataTable`."""
    format: str
    """Name of the recognised format, or `map` where the user names the columns."""
    labels: str
    """How labels are told, in a few words."""
    rows: Iterator[DataPrompt | DroppedRow]
    """What each row gives, in order; can be read once."""


@contextmanager
def open_data(path: Path, mapping: ColumnMap | None = None) -> Generator[DataFile]:
    """Open a file of prompts.

    Args:
        path: a file that `open_table` reads.
        mapping: columns that the user names. It is used where a file has all of them; a file that
            lacks some is read by its format.

    Raises:
        UsageError: It cannot be read, or nothing says which column is the prompt.
    """
    with open_table(path) as table:
        if mapping is not None and not mapping.missing(table.columns):
            yield DataFile(
                path=path,
                kind=table.kind,
                format="map",
                labels=mapping.label or "none",
                rows=_mapped(table, mapping),
            )
            return
        form, label = _format_of(table, mapping)
        yield DataFile(
            path=path,
            kind=table.kind,
            format=form.name,
            labels=form.labels,
            rows=_recognised(table, form, label),
        )


def _format_of(table: DataTable, mapping: ColumnMap | None) -> tuple[DataFormat, bool | None]:
    """Return the one format of a table, and the label of the whole file if it has one.

    Raises:
        UsageError: No format has its columns, or several have; or its name does not say the label.
    """
    found = recognise(table.columns)
    told = [(form, form.label_of(table.stem)) for form in found]
    sure = [(form, label) for form, label in told if not form.stems or label is not None]
    if len(sure) == 1:
        return sure[0]
    columns = _shown(table.columns)
    if mapping is not None:
        lacks = _shown(mapping.missing(table.columns))
        raise UsageError(f"{table.path} lacks the columns {lacks} of --map: it has {columns}")
    if len(sure) > 1:
        names = " and ".join(form.name for form, _ in sure)
        raise UsageError(
            f"{table.path} may be {names}: name its columns ({columns}), as in {EXAMPLE}"
        )
    if found:
        raise UsageError(
            f"{table.path} has the columns of {found[0].name}, whose label is told by the file's "
            f"name ({' or '.join(found[0].stems or ())}), and this name does not: rename it, or "
            f"name its columns ({columns}) by --map with label=@harmful or label=@benign"
        )
    raise UsageError(
        f"{table.path} has the columns {columns}, which no known format has: name them, as in "
        f"{EXAMPLE} --map group=COLUMN (label and group may be left out)"
    )


def _shown(columns: Sequence[str]) -> str:
    names = [visible(name, _SHOWN_CHARACTERS) or "(no name)" for name in columns]
    more = len(names) - _SHOWN_COLUMNS
    return ", ".join(names[:_SHOWN_COLUMNS]) + (f" and {more} more" if more > 0 else "")


def _recognised(
    table: DataTable, form: DataFormat, label: bool | None
) -> Iterator[DataPrompt | DroppedRow]:
    return _read(table.rows, lambda raw: form.read(Row(raw.cells, raw.number, form.name, label)))


def _mapped(table: DataTable, mapping: ColumnMap) -> Iterator[DataPrompt | DroppedRow]:
    return _read(table.rows, lambda raw: mapping.read(raw.cells, raw.number, table.columns))


def _read(
    rows: Iterator[RawRow], rule: Callable[[RawRow], Any]
) -> Iterator[DataPrompt | DroppedRow]:
    for raw in rows:
        if raw.problem:
            yield DroppedRow(raw.number, raw.problem)
            continue
        try:
            yield rule(raw)
        except RowDroppedError as reason:
            yield DroppedRow(raw.number, str(reason))
