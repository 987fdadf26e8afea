"""Files of remote checkpoints on this machine's disk, by their sha256.

A worker that starts again where one was preempted restores from here instead of over the wire. It
knows no store. What it holds is checked on every read, so nothing here is trusted, synced or
locked: several processes may share a directory, and every failure is a miss.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from tsgb.checkpoint.manifest import FileRecord
from tsgb.types import Buffer

LIMIT_BYTES = 4 * 1024**3
"""Size that the cache may have: five checkpoints of two adapters on a 3B model."""
RESERVE_BYTES = 1024**3
"""Bytes that stay free on the disk: others need them more than a cache does."""


class FileCache:
    """A directory of files that may go at any time.

    Example: `FileCache(settings.cache_dir / "files").get(record)`
    """

    def __init__(
        self,
        directory: Path,
        limit_bytes: int = LIMIT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.reserve_bytes = reserve_bytes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.directory)!r})"

    def get(self, record: FileRecord) -> bytes | None:
        """Return the file with this hash; None if it is not here, or no longer what it was."""
        path = self.directory / record.sha256
        with suppress(OSError):
            data = path.read_bytes()
            if record.mismatch(data) is None:
                _touch(path)
                return data
            path.unlink()
        return None

    def put(self, record: FileRecord, data: Buffer) -> None:
        """Keep a file if there is room for it; the longest unused ones go first."""
        path = self.directory / record.sha256
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                _touch(path)
            elif self._make_room(record.size):
                temporary.write_bytes(data)
                temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Delete the oldest files, torn ones of killed processes too, until `size` bytes fit."""
        found: list[tuple[float, int, Path]] = []
        for path in self.directory.iterdir():
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        excess = sum(bytes_ for _, bytes_, _ in found) + size - self.limit_bytes
        free = shutil.disk_usage(self.directory).free
        excess = max(excess, self.reserve_bytes + size - free)
        for _, bytes_, path in sorted(found):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= bytes_
        return excess <= 0


def _touch(path: Path) -> None:
    """Mark a file as used just now."""
    with suppress(OSError):
        os.utime(path)
