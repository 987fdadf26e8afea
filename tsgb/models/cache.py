"""A cache of trained models, keyed by a hash of what made them and verified at every read.

If two processes want the same model at once, one builds it, and the other waits and reads it.
A damaged entry is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from tsgb.models.file_lock import locked
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
    data, digest = cached_file(directory, key, WEIGHTS, lambda: _bytes(build()))
    return load(data), digest


def cached_file(
    directory: Path, key: str, name: str, build: Callable[[], bytes]
) -> tuple[bytes, str]:
    """Read the file of `key`; build it first if the cache lacks it.

    Args:
        directory: directory of the cache.
        key: see `cache_key`.
        name: name of the file.
        build: makes its content; called under the lock of the key.

    Returns:
        The content and its sha256 (hex).
    """
    entry = directory / key
    found = _read(entry, name)
    if found is not None:
        return found
    with locked(directory / f"{key}.lock"):
        found = _read(entry, name)
        if found is None:
            _publish(entry, name, build())
            found = _read(entry, name)
    if found is None:
        raise OSError(f"{entry} does not read back as written: the disk under the cache is faulty")
    return found


class Unfinished:
    """State of a training that may be interrupted, beside the entry that it becomes.

    It is verified as entries are; who uses it holds the lock of the entry.
    """

    def __init__(self, directory: Path, key: str) -> None:
        """Name the state of `key` in the cache `directory`."""
        self._entry = directory / f"{key}.unfinished"

    def read(self) -> bytes | None:
        """Return the safetensors file that was written last; None where there is none."""
        found = _read(self._entry, WEIGHTS)
        return None if found is None else found[0]

    def write(self, data: bytes) -> None:
        """Replace the file."""
        _publish(self._entry, WEIGHTS, data)

    def drop(self) -> None:
        """Delete what is there."""
        shutil.rmtree(self._entry, ignore_errors=True)


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})


def _read(entry: Path, name: str) -> tuple[bytes, str] | None:
    try:
        data = (entry / name).read_bytes()
        expected = (entry / "sha256").read_text().strip()
    except FileNotFoundError:
        return None
    digest = hashlib.sha256(data).hexdigest()
    return (data, digest) if digest == expected else None


def _publish(entry: Path, name: str, data: bytes) -> None:
    scratch = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / name).write_bytes(data)
    (scratch / "sha256").write_text(hashlib.sha256(data).hexdigest())
    shutil.rmtree(entry, ignore_errors=True)  # a damaged entry, or an earlier state
    scratch.rename(entry)
