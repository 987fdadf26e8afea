"""A cache of trained models, keyed by a hash of what made them and verified at every read.

If two processes want the same model at once, one builds it, and the other waits and reads it.
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

from tsgb.models.files import WEIGHTS

FORMAT = 1
"""Version of the training code; it rises when equal recipes produce other weights."""


def cache_key(parts: Mapping[str, object]) -> str:
    """Return the first 24 hex digits of the sha256 of what determines a model's weights."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def cached_tensors(
    directory: Path, key: str, build: Callable[[], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of `key`; build them first if the cache lacks them.

    Args:
        directory: directory of the cache.
        key: see `cache_key`.
        build: makes the tensors; called under the lock of the key.

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
