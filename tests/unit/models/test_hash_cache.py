"""Large files are hashed once, and again when they change; any other entry is ignored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.chat_model import save_chat_model
from tsgb.models.fetch import fetch
from tsgb.models.files import identity
from tsgb.models.hash_cache import HashCache
from tsgb.setting_groups import HubSettings

SIZE = 2**20
OTHER = "0" * 64
"""A hash that is no file's: where it comes out, an entry was believed."""
BLANKS = " " * 2**14
"""What makes an entry longer than any that is written."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    fill(path, b"a")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "cache")


def fill(path: Path, letter: bytes, *, hours_ago: int = 2) -> None:
    """Write a large file that has not changed for some time."""
    path.write_bytes(SIZE * letter)
    age(path, hours_ago)


def age(path: Path, hours_ago: int) -> None:
    at = path.stat().st_mtime_ns - hours_ago * 3600 * 10**9
    os.utime(path, ns=(at, at))


def entry_of(tmp_path: Path) -> Path:
    [entry] = (tmp_path / "cache" / "hashes").iterdir()
    return entry


def change(entry: Path, **changes: Any) -> None:
    entry.write_text(json.dumps(json.loads(entry.read_text()) | changes))


def behind_a_link(entry: Path) -> None:
    """Put an entry elsewhere, with a link in its place."""
    real = entry.parent.parent / "real"
    entry.rename(real)
    entry.symlink_to(real)


def settle(entry: Path) -> None:
    """Let an entry be written long after its file changed; only a clock sets a file's ctime."""
    at = entry.stat().st_mtime_ns + 3600 * 10**9
    os.utime(entry, ns=(at, at))


def hash_of(letter: bytes) -> str:
    return sha256(SIZE * letter).hexdigest()


def test_a_file_that_has_not_changed_is_not_read_again(
    cache: HashCache, path: Path, tmp_path: Path
) -> None:
    assert cache.sha256_of(path) == hash_of(b"a")
    change(entry_of(tmp_path), sha256=OTHER)
    settle(entry_of(tmp_path))
    assert cache.sha256_of(path) == OTHER
    link = tmp_path / "link"
    link.symlink_to(path)
    assert cache.sha256_of(link) == OTHER, "one file has one entry"


def test_a_changed_file_of_the_same_size_is_noticed(
    cache: HashCache, path: Path, tmp_path: Path
) -> None:
    cache.sha256_of(path)
    settle(entry_of(tmp_path))
    fill(path, b"b", hours_ago=1)
    assert cache.sha256_of(path) == hash_of(b"b")
    settle(entry_of(tmp_path))
    kept = path.stat()
    fill(path, b"c")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert path.stat().st_mtime_ns == kept.st_mtime_ns
    assert cache.sha256_of(path) == hash_of(b"c"), "its time was put back"
    settle(entry_of(tmp_path))
    other = tmp_path / "other"
    fill(other, b"d")
    os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    other.replace(path)
    assert cache.sha256_of(path) == hash_of(b"d"), "another file took its place"


@pytest.mark.parametrize("hours_ago", [0, 2], ids=["written", "written, and its time put back"])
def test_a_file_that_changed_a_moment_ago_may_change_again_unnoticed(
    cache: HashCache, path: Path, tmp_path: Path, hours_ago: int
) -> None:
    """Clocks of file systems may be coarse: its entry is believed when it was hashed later."""
    fill(path, b"e", hours_ago=hours_ago)
    cache.sha256_of(path)
    change(entry_of(tmp_path), sha256=OTHER)
    assert cache.sha256_of(path) == hash_of(b"e")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.write_bytes(b""),
        lambda entry: entry.write_bytes(b"\xff{"),
        lambda entry: entry.write_text("[" * 100_000),
        lambda entry: entry.write_text("[1]"),
        lambda entry: entry.write_text(json.dumps({"sha256": OTHER})),
        lambda entry: change(entry, sha256=OTHER[1:]),
        lambda entry: change(entry, sha256=7),
        lambda entry: change(entry, sha256=OTHER, size=str(SIZE)),
        lambda entry: change(entry, sha256=OTHER, machine="another"),
        lambda entry: change(entry, sha256=OTHER, path="2f"),
        lambda entry: change(entry, sha256=OTHER, more=1),
        lambda entry: (entry.unlink(), entry.mkdir()),
        lambda entry: change(entry, sha256=OTHER) or entry.write_text(entry.read_text() + BLANKS),
        lambda entry: (change(entry, sha256=OTHER), behind_a_link(entry)),
        lambda entry: (entry.unlink(), os.mkfifo(entry)),
    ],
)
def test_a_damaged_entry_is_ignored(
    cache: HashCache, path: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    cache.sha256_of(path)
    entry = entry_of(tmp_path)
    damage(entry)
    settle(entry)
    assert cache.sha256_of(path) == hash_of(b"a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_entry_of_another_user_is_ignored(cache: HashCache, path: Path, tmp_path: Path) -> None:
    cache.sha256_of(path)
    change(entry_of(tmp_path), sha256=OTHER)
    os.chown(entry_of(tmp_path), 12345, -1)
    settle(entry_of(tmp_path))
    assert cache.sha256_of(path) == hash_of(b"a")


def test_a_cache_that_cannot_be_written_costs_time_only(path: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").write_text("a file")
    assert HashCache(tmp_path / "closed").sha256_of(path) == hash_of(b"a")


def test_small_files_leave_no_entries(cache: HashCache, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    assert cache.sha256_of(tmp_path / "small") == sha256(b"small").hexdigest()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError):
        cache.sha256_of(tmp_path / "none")


def test_a_model_is_known_by_its_hashes_and_a_changed_one_by_others(tmp_path: Path) -> None:
    model, cache_dir = save_chat_model(tmp_path / "model"), tmp_path / "cache"
    weights = model / "model.safetensors"
    fill(weights, b"a")
    first = fetch(str(model), HubSettings(), cache_dir).identity
    assert first == fetch(str(model), HubSettings(), cache_dir).identity == identity(model)
    settle(entry_of(tmp_path))
    assert first == fetch(str(model), HubSettings(), cache_dir).identity
    fill(weights, b"b", hours_ago=1)
    changed = fetch(str(model), HubSettings(), cache_dir).identity
    assert changed == identity(model)
    assert changed.sha256 != first.sha256
