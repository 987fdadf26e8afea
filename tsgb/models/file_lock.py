"""A lock on a file of this machine, for processes that would do the same work at once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, wait: Callable[[], None] | None = None) -> Generator[None]:
    """Hold the lock; wait while another process does.

    It is the kernel's, so it dies with its holder.

    Args:
        path: File of the lock, made with the directories above it.
        wait: Is called between two tries, and may raise; None waits in the kernel.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while wait is not None and not _take(file):
            wait()
        if wait is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
