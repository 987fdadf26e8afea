"""Lines are whole, files are their owner's, and the oldest go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tsgb.errors import UsageError
from tsgb.serve.journal import Journal


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def entries(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_files_are_set_aside_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = len(b'{"n":10}\n')
    before = os.umask(0)
    try:
        journal = Journal(path, max_bytes=2 * line, kept=2)
        assert all(journal.write({"n": n}) for n in range(10, 19))
    finally:
        os.umask(before)
    journal.close()
    files = {p.name: entries(p) for p in sorted(tmp_path.iterdir())}
    assert files == {"log": [18], "log.1": [16, 17], "log.2": [14, 15]}
    assert {mode(p) for p in tmp_path.iterdir()} == {0o600}
    again = Journal(path, max_bytes=2 * line, kept=2)
    assert again.write({"n": 19})
    assert entries(path) == [18, 19]


def test_a_file_that_others_could_read_and_a_line_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"n":1}\n{"n":')
    path.chmod(0o644)
    journal = Journal(path, max_bytes=1000, kept=1)
    journal.write({"n": 2})
    assert entries(path) == [1, 2]
    assert mode(path) == 0o600


def test_without_files_beside_it_a_full_one_takes_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", max_bytes=10, kept=0)
    assert journal.write({"n": 1})
    assert not journal.write({"n": 2})
    assert (entries(tmp_path / "log"), journal.lost) == ([1], 1)


def test_a_full_disk_loses_lines_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(UsageError, match="it is no file"):
        Journal(tmp_path / "log", max_bytes=1000, kept=1)
    journal = Journal(tmp_path / "other", max_bytes=1000, kept=1)
    journal.close()  # as if the disk had gone
    assert not journal.write({"n": 1})
    assert journal.lost == 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory: name a file"):
        Journal(tmp_path / "no" / "log", max_bytes=1000, kept=1)
