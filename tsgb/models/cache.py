"""Models that are trained once and kept: by hash of what made them, verified whenever read.

Two processes that want the same model at once: one builds, the other waits for its lock and reads.
A damaged entry is rebuilt. The lock is the kernel's, so it dies with its holder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

WEIGHTS = "model.safetensors"
"""Name of the file that holds a model's weights, as `save_pretrained` of transformers names it."""
FORMAT = 1
"""Raised when training code changes what equal recipes produce."""


def cache_key(parts: Mapping[str, object]) -> str:
    """sha256 (hex, 24 digits) of what determines a model's weights."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def cached_tensors(
    directory: Path, key: str, build: Callable[[], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of `key`, building them first if they are not there.

    Args:
        directory: the cache.
        key: see `cache_key`.
        build: makes the tensors; called with the key's lock held.

    Returns:
        The tensors and the sha256 (hex) of their file.
    """
    entry = directory / key
    found = _read(entry)
    if found is not None:
        return found
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / f"{key}.lock"):
        found = _read(entry)
        if found is None:
            data = save({name: t.contiguous() for name, t in sorted(build().items())})
            _publish(entry, data)
            found = _read(entry)
    if found is None:
        raise OSError(f"{entry} does not read back as written: the disk under the cache is faulty")
    return found


def is_cached(directory: Path, key: str) -> bool:
    """Whether `key` is there and whole."""
    return _read(directory / key) is not None


def _read(entry: Path) -> tuple[dict[str, Tensor], str] | None:
    try:
        data = (entry / WEIGHTS).read_bytes()
        expected = (entry / "sha256").read_text().strip()
    except FileNotFoundError:
        return None
    digest = hashlib.sha256(data).hexdigest()
    return (load(data), digest) if digest == expected else None


def _publish(entry: Path, data: bytes) -> None:
    scratch = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / WEIGHTS).write_bytes(data)
    (scratch / "sha256").write_text(hashlib.sha256(data).hexdigest())
    shutil.rmtree(entry, ignore_errors=True)  # only a damaged entry can be in the way
    scratch.rename(entry)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
