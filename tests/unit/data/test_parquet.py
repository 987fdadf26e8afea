from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tsgb.data.records import RawRow
from tsgb.data.tables import open_table
from tsgb.errors import UsageError


def installed() -> bool:
    try:
        import_module("pyarrow")
    except ImportError:
        return False
    return True


with_pyarrow = pytest.mark.skipif(not installed(), reason="needs the extra `data`")
without_pyarrow = pytest.mark.skipif(installed(), reason="the extra `data` is installed")


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    library: Any = import_module("pyarrow")
    import_module("pyarrow.parquet").write_table(library.table(columns), path, row_group_size=2)
    return path


@with_pyarrow
def test_rows_and_columns(tmp_path: Path) -> None:
    texts = ["a\0b", "map \u202e", "NA", "map" * 400_000, ""]
    flags = [True, None, False, True, None]
    path = write(tmp_path / "x.parquet", {"prompt": texts, "adversarial": flags})
    with open_table(path) as table:
        assert table.columns == ("prompt", "adversarial")
        assert list(table.rows) == [
            RawRow(i, {"prompt": text, "adversarial": flag})
            for i, (text, flag) in enumerate(zip(texts, flags, strict=True), 1)
        ]


@with_pyarrow
def test_more_rows_than_a_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"a": list(range(1000))})
    with open_table(path) as table:
        assert [(row.number, row.cells["a"]) for row in table.rows] == [
            (i + 1, i) for i in range(1000)
        ]


@with_pyarrow
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_one_line(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"a": ["map" * 50] * 1000})
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"prompt\nmap\n",
            "cut": data[: len(data) // 2],
            "flipped": data[:4] + bytes(byte ^ 255 for byte in data[4:60]) + data[60:],
        }[damage]
    )
    with (
        pytest.raises(UsageError, match="no whole Parquet file") as caught,
        open_table(path) as table,
    ):
        list(table.rows)
    assert "\n" not in str(caught.value)


@without_pyarrow
def test_without_the_library_the_way_out_is_named(tmp_path: Path) -> None:
    assert "pyarrow" not in sys.modules
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with (
        pytest.raises(UsageError, match="uv sync --extra data"),
        open_table(tmp_path / "x.parquet"),
    ):
        pass
