"""A model in a local cache, laid out as `huggingface_hub` lays out what it has downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from tsgb.models.files import sha256_of


def cache_repository(
    cache: Path,
    repository: str,
    model: Path,
    *,
    ref: str = "main",
    without: Collection[str] = (),
) -> str:
    """Put a model's directory into the cache as a repository.

    Args:
        cache: The cache, what `HF_HUB_CACHE` names.
        repository: Name as `owner/name`.
        model: Directory with the files.
        ref: Branch that points at the commit.
        without: Names of files that were not downloaded.

    Returns:
        The commit, 40 hexadecimal digits that depend on the content.
    """
    root = cache / f"models--{repository.replace('/', '--')}"
    blobs = {path.name: sha256_of(path) for path in sorted(model.iterdir())}
    commit = hashlib.sha1(json.dumps(blobs).encode()).hexdigest()  # noqa: S324 - as git does
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for name, digest in blobs.items():
        if name not in without:
            blob = root / "blobs" / digest
            blob.write_bytes((model / name).read_bytes())
            (snapshot / name).symlink_to(Path("..", "..", "blobs", digest))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    return commit
