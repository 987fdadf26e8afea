"""What pruning keeps, and what a death in its middle leaves behind."""

from __future__ import annotations

import pytest

from tests.fakes.checkpoints import flip, open_store, publish, writer
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tsgb.checkpoint.layout import Place


class TestPrune:
    def steps(self, files: MemoryFiles) -> list[int]:
        places = {Place.parse(path.split("/")[1]) for path in files.files if "step-" in path}
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
