"""Files as rows: CSV, TSV, JSON, JSON lines and Parquet, also compressed by gzip.

It knows bytes and cells, and no benchmark. A file is read row after row in bounded memory, except a
JSON document, whose size is bounded. What cannot be read at all is one line for the user; one bad
row is data, and is counted by whoever reads.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import stat
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tsgb.data.characters import visible
from tsgb.data.parquet import parquet_columns, parquet_rows
from tsgb.data.records import RawRow
from tsgb.errors import UsageError

MAX_CELL = 8 << 20
"""Characters of the longest cell of a table that is read."""
MAX_LINE = 32 << 20
"""Bytes of the longest line that is read."""
MAX_DOCUMENT = 256 << 20
"""Bytes of the largest JSON document that is read; JSON lines are read without such a bound."""
MAX_COLUMNS = 1000
"""Columns of the widest table that is read."""
PEEK = 200
"""Rows of JSON whose keys are taken for the columns."""
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}
_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTable:
    """An open file."""

    path: Path
    """The file."""
    kind: str
    """`csv`, `tsv`, `json`, `jsonl` or `parquet`."""
    columns: tuple[str, ...]
    """Names of the columns in the order of the file; for JSON the keys of the first rows."""
    rows: Iterator[RawRow]
    """The rows, which can be read once."""

    @property
    def stem(self) -> str:
        """Name of the file without folder and endings, in lower case."""
        return self.path.name.partition(".")[0].lower()


@contextmanager
def open_table(path: Path) -> Generator[DataTable]:
    """Open a file of rows by its ending.

    Raises:
        UsageError: It is missing, no file, empty, of an unknown ending, not UTF-8, damaged, or a
            column has two cells of a row. Also raised while its rows are read.
    """
    kind, compressed = _kind(path)
    with _readable(path):
        raw = path.open("rb")
    with raw:
        if kind == "parquet":
            if compressed:
                raise UsageError(f"{path} is Parquet within gzip: unpack it")
            columns = parquet_columns(raw, path)
            rows: Iterator[RawRow] = parquet_rows(raw, path)
        else:
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if compressed else raw
            lines = _Lines(stream, path)
            columns, rows = _READERS[kind](lines)
        _check_columns(columns, path)
        yield DataTable(path=path, kind=kind, columns=columns, rows=rows)


def _kind(path: Path) -> tuple[str, bool]:
    """Return the kind of a file that can be read, and whether it is compressed."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: {reason}: name a file of prompts") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a directory: name the files in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is no regular file: write its content into one")
    compressed = path.suffix.lower() == ".gz"
    kind = _KINDS.get((path.with_suffix("") if compressed else path).suffix.lower())
    if kind is None:
        raise UsageError(
            f"{path}: the ending says no format: name it .csv, .tsv, .json, .jsonl or .parquet, "
            "the first four also with .gz"
        )
    return kind, compressed


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Turn errors of the file and of gzip into a line for people."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UsageError(f"{path} is no whole gzip file: {error}: fetch it again") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}: name a readable file") from error


def _check_columns(columns: tuple[str, ...], path: Path) -> None:
    if len(columns) > MAX_COLUMNS:
        raise UsageError(f"{path} has {len(columns)} columns: at most {MAX_COLUMNS} are read")
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise UsageError(
            f"{path} has the column {visible(twice[0], 40)!r} more than once: rename one of them"
        )


class _Lines:
    """Lines of a file as text, with their numbers."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self.path = path
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            self.number += 1
            if len(line) > MAX_LINE:
                raise UsageError(
                    f"{self.path}, line {self.number} is longer than {MAX_LINE} bytes: split it"
                )
            yield self._text(line)

    def _next(self) -> bytes:
        with _readable(self.path):
            return self._stream.readline(MAX_LINE + 1)

    def _text(self, line: bytes) -> str:
        if self.number == 1:
            for mark, name in _OTHER_BOMS.items():
                if line.startswith(mark):
                    raise UsageError(f"{self.path} is {name}: convert it to UTF-8")
            line = line.removeprefix(_BOM)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self.path}, line {self.number} is not UTF-8 at byte {error.start + 1}: convert "
                "the file to UTF-8"
            ) from error

    def document(self) -> str:
        """Return the rest as one text."""
        parts: list[str] = []
        size = 0
        for line in self:
            size += len(line)
            if size > MAX_DOCUMENT:
                raise UsageError(
                    f"{self.path} is a JSON document of more than {MAX_DOCUMENT} bytes: write it "
                    "as JSON lines, one object a line (.jsonl)"
                )
            parts.append(line)
        return "".join(parts)


def _read_csv(lines: _Lines, delimiter: str = ",") -> tuple[tuple[str, ...], Iterator[RawRow]]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    records = _records(reader, lines)
    header = next(records, None)
    if header is None:
        raise UsageError(f"{lines.path} is empty: it needs a line with the names of its columns")
    columns = tuple(header)
    return columns, _csv_rows(records, columns)


def _read_tsv(lines: _Lines) -> tuple[tuple[str, ...], Iterator[RawRow]]:
    return _read_csv(lines, "\t")


def _records(reader: Iterable[list[str]], lines: _Lines) -> Iterator[list[str]]:
    records = iter(reader)
    while True:
        start = lines.number + 1
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(
                f"{lines.path}: the record that begins in line {start} cannot be read ({error}): "
                "look for a quotation mark without its other half"
            ) from error
        if record:  # an empty line is no row
            yield record


def _csv_rows(records: Iterator[list[str]], columns: tuple[str, ...]) -> Iterator[RawRow]:
    for number, record in enumerate(records, 1):
        if len(record) == len(columns):
            yield RawRow(number, dict(zip(columns, record, strict=True)))
        else:
            few = "fewer" if len(record) < len(columns) else "more"
            yield RawRow(number, {}, f"{few} cells than the header has")


def _read_jsonl(lines: _Lines) -> tuple[tuple[str, ...], Iterator[RawRow]]:
    return _with_columns(_json_rows(iter(lines), lines), lines.path)


def _json_rows(texts: Iterable[str], lines: _Lines) -> Iterator[RawRow]:
    for text in texts:
        if not text.isspace():
            yield _json_row(lines.number, text)


def _json_row(number: int, text: str) -> RawRow:
    try:
        value: object = json.loads(text, object_pairs_hook=_unique)
    except _TwiceError:
        return RawRow(number, {}, "a key occurs twice in a JSON object")
    except (ValueError, RecursionError):
        return RawRow(number, {}, "not JSON")
    return _object_row(number, value)


def _object_row(number: int, value: object) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(number, {}, "not a JSON object")
    return RawRow(number, cast("dict[str, Any]", value))


class _TwiceError(ValueError):
    """A key occurs twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _TwiceError
    return made


def _read_json(lines: _Lines) -> tuple[tuple[str, ...], Iterator[RawRow]]:
    """Read an array of objects, or JSON lines under another ending."""
    texts = iter(lines)
    start = next((text for text in texts if not text.isspace()), "")
    if not start.lstrip().startswith("["):
        return _with_columns(_json_rows(itertools.chain([start], texts), lines), lines.path)
    try:
        content: object = json.loads(start + lines.document(), object_pairs_hook=_unique)
    except _TwiceError as error:
        raise UsageError(f"{lines.path}: a key occurs twice in an object: keep one") from error
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{lines.path} is not JSON: {visible(reason, 120)}: mend it") from error
    rows = (_object_row(i, value) for i, value in enumerate(cast("list[object]", content), 1))
    return _with_columns(rows, lines.path)


def _with_columns(rows: Iterator[RawRow], path: Path) -> tuple[tuple[str, ...], Iterator[RawRow]]:
    first = list(itertools.islice(rows, PEEK))
    columns = tuple(dict.fromkeys(name for row in first for name in row.cells))
    if not columns:
        problems = ", ".join(sorted({row.problem for row in first} - {""}))
        raise UsageError(
            f"{path} holds no rows{f' ({problems})' if problems else ''}: it needs JSON objects, "
            "one a prompt"
        )
    return columns, itertools.chain(first, rows)


_READERS = {"csv": _read_csv, "tsv": _read_tsv, "jsonl": _read_jsonl, "json": _read_json}
