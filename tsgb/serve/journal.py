"""Files that grow line by line, that only their owner reads, and that never grow without bound."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsgb.errors import UsageError

OWNER_ONLY = 0o600
"""Mode of every file."""


class Journal:
    """JSON lines in a file; beyond a size it is set aside as `FILE.1`, that one as `FILE.2`, ...

    Example: `Journal(Path("audit.jsonl"), max_bytes=1 << 26, kept=5).write({"a": 1})`
    """

    def __init__(self, path: Path, *, max_bytes: int, kept: int) -> None:
        """Open the file, or make it.

        Args:
            path: The file.
            max_bytes: Size beyond which it is set aside; with `kept` 0 nothing more is written.
            kept: Files that are kept beside it; the oldest goes.

        Raises:
            UsageError: It cannot be written.
        """
        self._path, self._max_bytes, self._kept = path, max_bytes, kept
        self._file = -1
        self.lost = 0
        """Lines that could not be written."""
        try:
            self._open()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}: name a file that can be written") from None

    def write(self, entry: Mapping[str, Any]) -> bool:
        """Append a line in one write, so that a kill leaves whole lines; tell whether it is there.

        A disk that is full ends no service: the line is lost, and counted.
        """
        line = json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        try:
            if self._size and self._size + len(line) > self._max_bytes:
                self._set_aside()
            if self._size + len(line) > self._max_bytes and self._kept == 0:
                self.lost += 1
                return False
            written = os.write(self._file, line)
            self._size += written
            if written < len(line):
                os.ftruncate(self._file, self._size - written)
                self._size -= written
        except OSError:
            written = 0
        if written < len(line):
            self.lost += 1
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, OWNER_ONLY)
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OSError(0, "it is no file")
        if stat.S_IMODE(found.st_mode) != OWNER_ONLY:
            os.fchmod(self._file, OWNER_ONLY)
        self._size = found.st_size
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        """Cut what was written in part, as when the disk was full."""
        end = self._size
        while end and os.pread(self._file, 1, end - 1) != b"\n":
            end -= 1
        if end < self._size:
            os.ftruncate(self._file, end)
            self._size = end

    def _set_aside(self) -> None:
        if self._kept == 0:
            return
        self.close()
        for number in range(self._kept - 1, 0, -1):
            source = self._numbered(number)
            if source.exists():
                source.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
