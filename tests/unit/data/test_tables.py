from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.conftest import Write, encoded
from tsgb.data import tables
from tsgb.data.records import RawRow
from tsgb.data.tables import open_table
from tsgb.errors import UsageError


def rows_of(path: Path) -> list[RawRow]:
    with open_table(path) as table:
        return list(table.rows)


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


ODD = {
    "NUL bytes": "a\0b",
    "direction": "abc \u202e def",
    "ends of lines": "one\r\ntwo\nthree\rfour",
    "quotation marks": 'say "map", please',
    "an emoji of several characters": "\U0001f469\u200d\U0001f680",
    "a word that means nothing": "NA",
    "a megabyte": "map " * 262_144,
    "spaces": "  map\t",
}


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json", "x.csv.gz", "x.jsonl.gz"])
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_cell_is_stored_exactly(name: str, text: str, write: Write) -> None:
    path = write(name, [{"prompt": text, "label": "b"}])
    assert rows_of(path) == [RawRow(1, {"prompt": text, "label": "b"})]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_survives_a_table(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.csv"
    path.write_bytes(encoded("x.csv", [{"prompt": text, "label": "b"} for text in texts]))
    assert [row.cells["prompt"] for row in rows_of(path)] == texts


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = made(tmp_path / "x.csv", b"\xef\xbb\xbfprompt,label\nmap,1\n")
    with open_table(path) as table:
        assert table.columns == ("prompt", "label")


BAD = {
    "UTF-16": ("x.csv", "prompt,label\nmap,1\n".encode("utf-16"), "UTF-16"),
    "Latin-1": ("x.csv", b"prompt\nmap\ncaf\xe9\n", r"line 3 is not UTF-8 at byte 4"),
    "empty": ("x.csv", b"", "is empty"),
    "empty lines": ("x.jsonl", b"\n\n", "no rows"),
    "no object": ("x.jsonl", b"[1]\n", r"no rows \(not a JSON object\)"),
    "columns twice": ("x.csv", b"prompt,label,prompt\n1,2,3\n", "'prompt' more than once"),
    "open quotation": ("x.csv", b'prompt\nmap\n"map\n', "begins in line 3.*quotation"),
    "no gzip": ("x.csv.gz", b"prompt\nmap\n", "no whole gzip"),
    "half a gzip": ("x.csv.gz", gzip.compress(b"prompt\nmap\n" * 99)[:-12], "no whole gzip"),
    "ending": ("x.txt", b"map", "ending"),
    "only .gz": ("x.gz", b"map", "ending"),
    "no JSON": ("x.json", b'[{"a": 1}', "is not JSON"),
    "a key twice": ("x.json", b'[{"a": 1, "a": 2}]', "twice"),
    "too deep": ("x.json", b"[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize(("name", "data", "message"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_read_is_one_line(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        rows_of(made(tmp_path / name, data))
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        rows_of(tmp_path / "x.csv")
    with pytest.raises(UsageError, match="directory"):
        rows_of(tmp_path)
    with pytest.raises(UsageError, match="name a file"):
        rows_of(Path("x\0.csv"))
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match="no regular file"):
        rows_of(tmp_path / "pipe.csv")


def test_rows_that_do_not_fit_are_kept_as_problems(tmp_path: Path) -> None:
    path = made(tmp_path / "x.csv", b"prompt,label\nmap\n\nmap,1\nmap,1,2\n")
    assert [(row.number, row.problem) for row in rows_of(path)] == [
        (1, "fewer cells than the header has"),
        (2, ""),
        (3, "more cells than the header has"),
    ]


def test_bad_lines_of_json_are_kept_as_problems(tmp_path: Path) -> None:
    lines = ['{"a": 1}', "", "{torn", "[2]", '{"a": 1, "a": 2}', '{"b": 2}', "[" * 100_000]
    path = made(tmp_path / "x.jsonl", "\n".join(lines).encode())
    with open_table(path) as table:
        assert table.columns == ("a", "b")
        found = [(row.number, row.problem) for row in table.rows]
    assert found == [
        (1, ""),
        (3, "not JSON"),
        (4, "not a JSON object"),
        (5, "a key occurs twice in a JSON object"),
        (6, ""),
        (7, "not JSON"),
    ]


def test_json_lines_under_the_ending_of_a_document(tmp_path: Path) -> None:
    path = made(tmp_path / "x.json", b'\n{"a": 1}\n{"a": 2}\n')
    assert [(row.number, row.cells) for row in rows_of(path)] == [(2, {"a": 1}), (3, {"a": 2})]


def test_bounds(tmp_path: Path) -> None:
    wide = ",".join(f"c{i}" for i in range(tables.MAX_COLUMNS + 1))
    with pytest.raises(UsageError, match="columns"):
        rows_of(made(tmp_path / "x.csv", wide.encode()))
    cell = b"a" * (tables.MAX_CELL + 1)
    with pytest.raises(UsageError, match="line 2 cannot be read"):
        rows_of(made(tmp_path / "x.csv", b"prompt\n" + cell))
    line = b"a" * (tables.MAX_LINE + 1)
    with pytest.raises(UsageError, match="line 1 is longer"):
        rows_of(made(tmp_path / "x.jsonl", line))


def test_a_file_is_read_as_it_is_needed(tmp_path: Path) -> None:
    """The rows before a damaged one are given, so a file is never held as a whole."""
    good = "".join(json.dumps({"a": i}) + "\n" for i in range(1000))
    path = made(tmp_path / "x.jsonl", good.encode() + b"\xff\n")
    with open_table(path) as table:
        assert next(table.rows).cells == {"a": 0}
        with pytest.raises(UsageError, match="line 1001"):
            list(table.rows)
