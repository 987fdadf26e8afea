"""What pruning keeps, and what a death in its middle leaves behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.checkpoints import flip, open_store, publish, writer
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.prune import prune
from tsgb.checkpoint.store import CheckpointStore, RunLock, RunStore, open_run
from tsgb.errors import CheckpointError, LeaseLost, UsageError


class TestPrune:
    def steps(self, files: MemoryFiles) -> list[int]:
        places = {
            CheckpointName.parse(path.split("/")[1]) for path in files.files if "step-" in path
        }
        return sorted(place.step for place in places if place)

    def test_keeps_the_newest(self) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish(store, 0, 1, 2, 3, 4)
        deleted = store.prune(keep=3)
        assert [name[:13] for name in deleted] == ["step-00000000", "step-00000001"]
        assert self.steps(files) == [2, 3, 4]
        assert store.prune(keep=3) == []

    def test_keeps_what_it_started_from_until_it_has_enough_of_its_own(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1, 2)
        damaged = sorted(path for path in files.files if path.endswith("/guard.safetensors"))[1:]
        for path in damaged:
            files.files[path] = flip(files.files[path], 0)
        store = writer(files)
        found = store.newest_valid(lambda _line: None)
        assert found is not None
        assert found[0].step == 0
        publish(store, 1)
        store.prune(keep=2)
        assert 0 in self.steps(files)
        publish(store, 2)
        store.prune(keep=2)
        assert self.steps(files) == [1, 2]

    def test_removes_what_older_writers_left_unfinished(self) -> None:
        files = MemoryFiles()
        dying = FaultyFiles(files)
        dead = writer(dying)
        publish(dead, 0)
        dying.before = dies_after(2)
        with pytest.raises(Killed):
            publish(dead, 1)
        store = writer(files)
        publish(store, 2)
        assert [name[:13] for name in store.prune(keep=3)] == ["step-00000001"]
        assert self.steps(files) == [0, 2]

    @pytest.mark.parametrize("num_changes", range(8))
    def test_death_while_pruning_leaves_a_valid_store(self, num_changes: int) -> None:
        files = MemoryFiles()
        dying = FaultyFiles(files)
        store = writer(dying)
        publish(store, 0, 1, 2, 3)
        dying.before = dies_after(num_changes)
        with pytest.raises(Killed):
            store.prune(keep=2)
        found = open_store(files).newest_valid(pytest.fail)
        assert found is not None
        assert found[0].step == 3
        other = writer(files)
        publish(other, 4)
        other.prune(keep=2)
        assert self.steps(files) == [3, 4]

    def test_order_is_by_attempt_then_step_also_with_many_digits(self) -> None:
        files = MemoryFiles()
        publish(writer(files, 9999), 99_999_999, 100_000_000)
        newest = open_store(files).newest()
        assert newest is not None
        assert newest.step == 100_000_000
        publish(writer(files), 5)
        newest = open_store(files).newest()
        assert newest is not None
        assert (newest.attempt, newest.step) == (10_000, 5)


NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


class TestPruneByHand:
    """`tsgb checkpoint prune`: for the worker that is no more."""

    def run(self, files: MemoryFiles) -> RunStore:
        return open_store(files).run

    def beat(self, files: MemoryFiles, number: int, seconds_ago: float) -> None:
        at = (NOW - timedelta(seconds=seconds_ago)).isoformat()
        self.run(files).write_json(f"heartbeats/{number:04d}.json", {"updated_at": at})

    def left(self, files: MemoryFiles, number: int, seconds_ago: float) -> None:
        at = (NOW - timedelta(seconds=seconds_ago)).isoformat()
        self.run(files).write_json(f"exits/{number:04d}.json", {"ended_at": at})

    def prune(self, files: MemoryFiles, keep: int = 1, **options: bool) -> list[int]:
        pruned = prune(self.run(files), keep, clock=lambda: NOW, **options)
        return [listed.checkpoint.step for listed in pruned.deleted]

    @pytest.mark.parametrize("keep", [1, 2, 3, 9])
    @pytest.mark.parametrize("rotten", [(), (4,), (4, 3), (0,)])
    def test_a_dry_run_says_what_a_real_one_does_and_writes_nothing(
        self, keep: int, rotten: tuple[int, ...]
    ) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1, 2)
        dying = FaultyFiles(files)
        store = writer(dying)
        publish(store, 3, 4)
        dying.before = dies_after(2)
        with pytest.raises(Killed):
            publish(store, 5)
        for path in files.files:
            if "/guard" in path and any(f"-{step:08d}-" in path for step in rotten):
                files.files[path] = flip(files.files[path], 0)
        before, files.writes = dict(files.files), []
        said = prune(self.run(files), keep, dry_run=True)
        assert (files.files, files.writes) == (before, [])
        done = prune(self.run(files), keep)
        assert [item.url for item in said.deleted] == [item.url for item in done.deleted]
        assert said.num_bytes == done.num_bytes
        gone = sum(
            len(data)
            for path, data in before.items()
            if path not in files.files and not path.endswith("manifest.json")
        )
        assert done.num_bytes == gone
        assert 5 in [item.checkpoint.step for item in done.deleted]
        found = open_store(files).newest_valid(lambda _line: None)
        assert found is not None
        assert found[0].step == max({0, 1, 2, 3, 4} - set(rotten))

    def test_nothing_is_deleted_where_nothing_verifies(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1, 2)
        for path in files.files:
            if "/guard" in path:
                files.files[path] = flip(files.files[path], 0)
        before = dict(files.files)
        with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
            self.prune(files)
        assert files.files == before

    def test_a_worker_that_is_alive(self) -> None:
        files = MemoryFiles()
        alive = writer(files)
        publish(alive, 0, 1)
        self.beat(files, 1, 119)
        before = dict(files.files)
        with pytest.raises(UsageError, match=r"heartbeats/0001.json is 119 s old, .*--force"):
            self.prune(files)
        assert files.files == before
        assert self.prune(files, dry_run=True) == [0]
        assert self.prune(files, force=True) == [0]
        with pytest.raises(LeaseLost):  # before it writes anything
            publish(alive, 2)

    @pytest.mark.parametrize("ahead", [-5, -500])
    def test_a_clock_that_is_behind_the_workers(self, ahead: float) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1)
        self.beat(files, 1, ahead)
        with pytest.raises(UsageError, match="0 s old"):
            self.prune(files)

    def test_a_worker_that_is_dead(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1)
        self.beat(files, 1, 120)
        assert self.prune(files) == [0]

    def test_a_worker_that_has_left(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1)
        self.beat(files, 1, 5)
        self.left(files, 1, 60)  # that was an earlier start of this attempt
        with pytest.raises(UsageError, match="alive"):
            self.prune(files)
        self.left(files, 1, 4)
        assert self.prune(files) == [0]

    def test_an_older_attempts_heartbeat_is_not_asked(self) -> None:
        files = MemoryFiles()
        publish(writer(files, 10_000), 0, 1)
        self.beat(files, 10_000, 300)
        self.beat(files, 9_999, 5)
        assert self.prune(files) == [0]

    def test_it_uses_up_no_attempt(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 1, 2)
        self.prune(files)
        self.prune(files)
        publish(writer(files, 1), 3)  # a machine that starts its worker again
        assert self.prune(files) == [2]
        assert open_store(files).claim() == 2

    def test_a_process_of_this_machine(self, tmp_path: Path) -> None:
        run = open_run(str(tmp_path / "r1"))
        store = CheckpointStore(run)
        store.claim()
        publish(store, 0, 1)
        with RunLock(run.run_url):
            with pytest.raises(UsageError, match="is in use by process"):
                prune(run, 1)
            assert len(prune(run, 1, dry_run=True).deleted) == 1
        assert len(prune(run, 1).deleted) == 1
