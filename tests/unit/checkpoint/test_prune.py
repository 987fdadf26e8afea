"""What pruning keeps, and what a death in its middle leaves behind."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.checkpoints import (
    flip,
    open_store,
    parts_in,
    publish,
    publish_with_parts,
    with_parts,
    writer,
)
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.prune import prune
from tsgb.checkpoint.store import CheckpointStore, RunLock, RunStore, open_run
from tsgb.errors import CheckpointError, LeaseLost, StoreFull, UsageError


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


class TestParts:
    """Those that no checkpoint refers to any more go with the checkpoints, and no others."""

    def test_parts_of_what_stays_stay(self) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish_with_parts(store, 3, 2, 1)  # as if rounds were dropped again
        assert len(parts_in(files)) == 5
        store.prune(keep=1)  # the newest is that of step 3
        assert len(parts_in(files)) == 5
        found = open_store(files).newest_valid(pytest.fail)
        assert found is not None
        assert found[1] == with_parts(3)

    def test_parts_of_nothing_that_stays_go(self) -> None:
        files = MemoryFiles()
        old = {**with_parts(1), "attacker.safetensors/sft": b"a start of long ago"}
        store = writer(files)
        store.publish(1, 10, old, "0" * 64)
        publish_with_parts(store, 2)
        before = sum(map(len, parts_in(files).values()))
        store.prune(keep=1)
        assert b"a start of long ago" not in parts_in(files).values()
        assert store.part_bytes_freed == before - sum(map(len, parts_in(files).values())) == 19
        # What went and is asked for again is written again.
        store.publish(3, 30, {**old, "trainer_state.json": b"3"}, "0" * 64)
        found = open_store(files).newest_valid(pytest.fail)
        assert found is not None
        assert found[1]["attacker.safetensors/sft"] == b"a start of long ago"

    def test_what_a_killed_writer_left_goes(self) -> None:
        files = MemoryFiles()
        dying = FaultyFiles(files)
        dead = writer(dying)
        dying.before = dies_after(2)
        with pytest.raises(Killed):
            publish_with_parts(dead, 1)
        assert len(parts_in(files)) == 2
        store = writer(files)
        publish_with_parts(store, 1)
        assert len(parts_in(files)) == 5
        store.prune()
        assert len(parts_in(files)) == 3

    def test_parts_of_a_save_that_failed_are_not_deleted_under_it(self) -> None:
        files = MemoryFiles()
        full = FaultyFiles(files)
        store = writer(full)
        publish(store, 0, 1)

        def no_space(operation: str, path: str) -> None:
            if operation == "write" and path.endswith("/guard.safetensors"):
                raise StoreFull("no space")

        full.before = no_space
        with pytest.raises(StoreFull):
            publish_with_parts(store, 2)
        assert len(store.prune(keep=1)) == 1
        full.before = lambda _operation, _path: None
        before = len(files.writes)
        publish_with_parts(store, 2)
        assert not any(path.startswith("parts/") for path in files.writes[before:])
        assert open_store(files).newest_valid(pytest.fail) is not None

    def test_with_a_damaged_manifest_none_goes(self) -> None:
        files = MemoryFiles()
        publish_with_parts(writer(files), 1)
        [manifest] = [path for path in files.files if path.endswith("manifest.json")]
        files.files[manifest] = b"{"
        store = writer(files)
        publish(store, 2)
        store.prune(keep=2)  # nobody knows what the damaged one refers to
        assert len(parts_in(files)) == 3
        publish(store, 3)
        assert len(store.prune(keep=2)) == 1
        assert not parts_in(files)

    @pytest.mark.parametrize("when", ["before it looks", "while it deletes"])
    def test_a_writer_that_was_taken_over_deletes_none(self, when: str) -> None:
        files = MemoryFiles()
        seen = FaultyFiles(files)
        old = writer(seen, 1)
        publish_with_parts(old, 1)
        publish(old, 2)

        def taken_over() -> None:
            """A newer process resumes from the older checkpoint and refers to its parts."""
            new = writer(files, 2)
            newest = new.newest()
            assert newest is not None
            for path in [path for path in files.files if newest.name in path]:
                files.files[path] = flip(files.files[path], 1)  # so that it falls back
            assert new.newest_valid(lambda _line: None) is not None
            publish_with_parts(new, 2)

        def before(operation: str, path: str) -> None:
            if operation == "delete":
                seen.before = lambda _operation, _path: None
                taken_over()

        if when == "before it looks":
            taken_over()
        else:
            seen.before = before
        with pytest.raises(LeaseLost):
            old.prune(keep=1)
        found = open_store(files).newest_valid(lambda _line: None)
        assert found is not None
        assert found[1] == with_parts(2)

    @pytest.mark.parametrize("num_changes", range(20))
    def test_death_while_pruning_leaves_a_valid_store(self, num_changes: int) -> None:
        files = MemoryFiles()
        dying = FaultyFiles(files)
        store = writer(dying)
        publish_with_parts(store, 5, 6)
        publish(store, 7, 8)
        dying.before = dies_after(num_changes)
        with suppress(Killed):
            store.prune(keep=1)
        found = open_store(files).newest_valid(pytest.fail)
        assert found is not None
        assert found[0].step == 8
        other = writer(files)
        publish_with_parts(other, 9)
        other.prune(keep=1)
        found = open_store(files).newest_valid(pytest.fail)
        assert found is not None
        assert found[1] == with_parts(9)
        assert len(parts_in(files)) == 11


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
        publish_with_parts(writer(files), 0, 1, 2)
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
