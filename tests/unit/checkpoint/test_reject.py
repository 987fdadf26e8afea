"""A checkpoint that loads nowhere is taken out, and nothing but a person does it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.checkpoints import open_store, parts_in, publish_with_parts, writer
from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.reject import names_of_rejected, reject
from tsgb.checkpoint.run import RunStore
from tsgb.errors import CheckpointError, UsageError

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def clock() -> datetime:
    return NOW


@pytest.fixture
def files() -> MemoryFiles:
    """A run of one attempt with two checkpoints."""
    made = MemoryFiles("memory://fake/r1")
    publish_with_parts(writer(made), 10, 20)
    return made


def run_of(files: MemoryFiles) -> RunStore:
    return open_store(files).run


def test_the_run_goes_on_from_the_one_before(files: MemoryFiles) -> None:
    newest = open_store(files).newest()
    assert newest is not None
    found = reject(run_of(files), newest.name, reason="a trainer cannot load it", clock=clock)
    assert (found.rejected, found.before.step) == (newest, 10)
    assert open_store(files).newest() == found.before
    assert names_of_rejected(run_of(files)) == [newest.name]
    document = run_of(files).read_json(f"rejected/{newest.name}.json")
    assert (document["reason"], document["sha256"]) == ("a trainer cannot load it", newest.sha256)

    files.write(f"checkpoints/{newest.name}/manifest.json", document["manifest"].encode())
    assert open_store(files).newest() == newest, "its manifest brings it back"
    files.delete(f"checkpoints/{newest.name}/manifest.json")

    later = writer(files)
    publish_with_parts(later, 20, 30)
    later.prune(2)
    assert [path for path in files.files if newest.name in path and "rejected" not in path] == []
    assert later.newest_valid(pytest.fail) is not None, "parts that are used stay"
    assert len(parts_in(files)) < 70


def only_one(files: MemoryFiles) -> None:
    for path in [path for path in files.files if "step-00000010" in path]:
        files.delete(path)


def damaged_before(files: MemoryFiles) -> None:
    for path in [path for path in files.files if "step-00000010" in path and "/guard" in path]:
        files.write(path, b"rotten")


def at_work(files: MemoryFiles) -> None:
    beat = {"updated_at": (NOW - timedelta(seconds=5)).isoformat()}
    run_of(files).write_json("heartbeats/0001.json", beat)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (only_one, "is the only"),
        (damaged_before, "is the only one left"),
        (at_work, "a worker is alive"),
    ],
)
def test_nothing_is_taken_out_while(
    files: MemoryFiles, change: Callable[[MemoryFiles], None], says: str
) -> None:
    newest = open_store(files).newest()
    assert newest is not None
    change(files)
    before = dict(files.files)
    with pytest.raises(UsageError, match=says):
        reject(run_of(files), newest.name, clock=clock)
    assert files.files == before


def test_one_that_is_not_there_is_named(files: MemoryFiles) -> None:
    with pytest.raises(CheckpointError, match="that is no checkpoint's name"):
        reject(run_of(files), "step-1", clock=clock)
