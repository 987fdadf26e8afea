"""Files of prompts as benchmarks publish them, with harmless text."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Rows = Sequence[Mapping[str, Any]]
Write = Callable[[str, Rows], Path]


def encoded(name: str, rows: Rows) -> bytes:
    """The bytes of a file, by its ending."""
    if ".json" in name:
        if ".jsonl" in name:
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        return json.dumps(list(rows)).encode()
    stream = io.StringIO(newline="")
    delimiter = "\t" if ".tsv" in name else ","
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows into a file whose ending says the form."""

    def write(name: str, rows: Rows) -> Path:
        path = tmp_path / name
        data = encoded(name, rows)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write
