"""A lock on a file of this machine, for processes that would make or download the same model."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock; wait while another process does.

    It is the kernel's, so it dies with its holder.

    Args:
        path: File of the lock, made with the directories above it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
