"""Hashes of large files that were hashed before, kept in this machine's cache directory.

A hash is used again while the file has the path, size, times and inode that it had. Whatever else
an entry holds, or whoever else wrote it, it is ignored, and the file is hashed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tsgb.checkpoint.documents import parse_json_object
from tsgb.models.files import sha256_of

DIRECTORY = "hashes"
"""Name of the directory in the cache of models."""
_LEAST_BYTES = 2**20
"""Size below which a file is hashed as fast as its entry is read."""
_MOST_BYTES = 2**14
"""Size above which an entry is not ours: paths are much shorter."""
_SETTLED_NS = 2 * 10**9
"""Nanoseconds for which a file must not have changed before it was hashed: with coarser clocks of a
file system, a change right after the hash would leave the times as they were."""
_SHA256 = re.compile("[0-9a-f]{64}")


class HashCache:
    """Hashes of files, by where they lie and when they changed.

    Example: `HashCache(Path("cache/models")).sha256_of(Path("model.safetensors"))`
    """

    def __init__(self, cache_dir: Path) -> None:
        """Name the cache of models; nothing is read or written yet."""
        self._directory = cache_dir / DIRECTORY

    def sha256_of(self, path: Path) -> str:
        """Return the hex digest of a file's content, from the cache if it has not changed.

        Raises:
            OSError: The file cannot be read.
        """
        path = path.resolve()
        before = _facts(path)
        if int(before["size"]) < _LEAST_BYTES:
            return sha256_of(path)
        entry = self._directory / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
        known = _read(entry, before)
        if known is not None:
            return known
        digest = sha256_of(path)
        if _facts(path) == before:
            with suppress(OSError):  # a full or closed cache costs time only
                _write(entry, {**before, "sha256": digest})
        return digest


def _facts(path: Path) -> dict[str, int | str]:
    """Return all by which a changed file is noticed without reading it."""
    found = path.stat()
    return {
        "path": os.fsencode(path).hex(),
        "machine": os.uname().nodename,  # a cache directory may lie on a network
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _read(entry: Path, facts: dict[str, int | str]) -> str | None:
    """Return the hash in an entry; None unless it is of this very file, ours and whole."""
    try:
        said, written_ns = _content(entry)
    except (OSError, ValueError):
        return None
    digest = said.pop("sha256", None)
    # A file's mtime can be set to any time, its ctime cannot.
    changed_ns = max(int(facts["mtime_ns"]), int(facts["ctime_ns"]))
    if said != facts or written_ns - changed_ns <= _SETTLED_NS or not isinstance(digest, str):
        return None
    return digest if _SHA256.fullmatch(digest) else None


def _content(entry: Path) -> tuple[dict[str, Any], int]:
    """Return what an entry says, and the time at which it was written, in ns.

    Raises:
        OSError: It is not there, or no file of this user.
        ValueError: It is longer than any entry, or no JSON object.
    """
    # Without O_NONBLOCK opening a pipe would wait for a writer.
    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{entry} is no file of this user")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{entry} is too long")
    return parse_json_object(data), found.st_mtime_ns


def _write(entry: Path, content: dict[str, int | str]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as file:
        try:
            json.dump(content, file)
            file.flush()
        except OSError:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(entry)
