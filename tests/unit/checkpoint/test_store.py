"""Publish, fence, fall back: what may never happen to a run's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.checkpoints import (
    CONFIG,
    NAMES,
    content,
    flip,
    open_store,
    parts_in,
    publish,
    publish_with_parts,
    with_parts,
    writer,
)
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tests.fakes.miniature import make_trainer, miniature_config
from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.manifest import MANIFEST
from tsgb.checkpoint.store import NONE, CheckpointStore, PinnedStore, RunStore
from tsgb.errors import CheckpointError, LeaseLost, StoreError, StoreFull
from tsgb.types import Buffer


class TestPublish:
    def test_reads_back_what_was_written(self) -> None:
        files = MemoryFiles()
        ref = writer(files, 3).publish(1200, 48000, content(1200), CONFIG, parent="x")

        assert (ref.step, ref.episode, ref.attempt) == (1200, 48000, 3)
        assert re.fullmatch(r"step-00001200-a0003-000[0-9a-f]{5}", ref.name)
        reader = open_store(files)
        assert reader.newest() == ref
        assert reader.read(ref) == content(1200)
        assert reader.read(ref, ["guard.safetensors"]).keys() == {"guard.safetensors"}

    def test_manifest_is_written_last(self) -> None:
        files = MemoryFiles()
        publish_with_parts(writer(files), 0)
        written = [path.split("/")[0::2] for path in files.writes[1:]]
        assert sorted(written[:2]) == [["parts"], ["parts"]]
        assert sorted(name for _, name in written[2:-1]) == sorted(NAMES)
        assert written[-1][1] == "manifest.json"

    def test_the_smallest_file_is_written_first(self) -> None:
        # The first one in a directory that is yet to be made may be sent twice.
        files = MemoryFiles()
        sizes = {name: 100 - position for position, name in enumerate(NAMES)}
        writer(files).publish(0, 0, {name: bytes(size) for name, size in sizes.items()}, CONFIG)
        assert [path.rpartition("/")[2] for path in files.writes[1:-1]] == list(reversed(NAMES))

    @pytest.mark.parametrize("torn", [False, True], ids=["clean kill", "half a file left"])
    @pytest.mark.parametrize("num_changes", range(6))
    def test_any_prefix_of_the_writes_leaves_the_previous_step(
        self, num_changes: int, torn: bool
    ) -> None:
        files = MemoryFiles()
        publish(writer(files), 0, 7)
        dying = FaultyFiles(files)
        store = writer(dying)
        dying.before, dying.torn = dies_after(num_changes), torn
        with pytest.raises(Killed):
            publish(store, 8)

        skipped: list[str] = []
        found = open_store(files).newest_valid(skipped.append)
        assert found is not None
        assert found[0].step == 7
        assert found[1] == content(7)
        newest = open_store(files).newest()
        assert newest is not None
        assert newest.step == 7
        began = num_changes > 0 or torn
        assert len(skipped) == began
        # The next machine goes on where the last one stopped.
        publish(writer(files), 8)
        newest = open_store(files).newest()
        assert newest is not None
        assert (newest.step, newest.attempt) == (8, 3)

    def test_death_in_the_very_first_save_loses_nothing(self) -> None:
        files = MemoryFiles()
        dying = FaultyFiles(files)
        store = writer(dying)
        dying.before = dies_after(3)
        with pytest.raises(Killed):
            publish(store, 0)
        assert open_store(files).newest() is None
        assert open_store(files).newest_valid(lambda _line: None) is None

    def test_a_lost_write_is_not_committed(self) -> None:
        class Lossy(MemoryFiles):
            def write(self, path: str, data: bytes) -> None:
                super().write(path, data[:5] if "optim_guard" in path else data)

        files = Lossy()
        store = writer(files)
        with pytest.raises(StoreError, match=r"optim_guard.safetensors has 5 bytes"):
            publish(store, 4)
        assert not any("manifest" in path for path in files.files)

    def test_full_disk(self) -> None:
        files = MemoryFiles()
        full = FaultyFiles(files)
        store = writer(full)
        publish(store, 0)

        def no_space(operation: str, path: str) -> None:
            if operation == "write" and "trainer_state" in path:
                raise StoreFull("no space")

        full.before = no_space
        with pytest.raises(StoreFull):
            publish(store, 5)
        newest = open_store(files).newest()
        assert newest is not None
        assert newest.step == 0
        full.before = lambda _operation, _path: None
        publish(store, 5)  # after space was made, the same call succeeds

    def test_repeating_a_call_is_harmless_and_never_writes_over_a_commit(self) -> None:
        files = MemoryFiles()
        store = writer(files)
        first = store.publish(1, 10, content(1), CONFIG)
        before = dict(files.files)
        assert store.publish(1, 10, content(1), CONFIG) == first
        with pytest.raises(CheckpointError, match="never written over"):
            store.publish(1, 10, content(2), CONFIG)
        assert files.files == before

    def test_needs_a_claim(self) -> None:
        with pytest.raises(RuntimeError, match="claim"):
            publish(open_store(MemoryFiles()), 0)

    @pytest.mark.parametrize("name", ["../x", "manifest.json", ".hidden", "a/b", ""])
    def test_refuses_file_names_that_lead_elsewhere(self, name: str) -> None:
        store = writer(MemoryFiles())
        with pytest.raises(ValueError, match="file names"):
            store.publish(0, 0, {name: b""}, CONFIG)


class TestParts:
    """Content that never changes is written once, and every checkpoint that has it refers to it."""

    def test_each_is_written_once_however_often_it_is_saved(self) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish_with_parts(store, 0, 1, 2, 2)
        written = [path for path in files.writes if path.startswith("parts/")]
        assert len(written) == len(set(written)) == 4  # one start, three rounds
        reader = open_store(files)
        newest = reader.newest()
        assert newest is not None
        assert reader.read(newest) == with_parts(2)
        assert reader.read(newest, ["attacker.safetensors"]).keys() == {
            "attacker.safetensors",
            "attacker.safetensors/sft",
            "attacker.safetensors/warm",
        }
        files_and_parts = [*content(0).values(), *content(1).values(), *content(2).values()]
        files_and_parts += parts_in(files).values()
        assert store.bytes_sent == sum(map(len, files_and_parts))

    def test_the_next_process_writes_none_again(self) -> None:
        files = MemoryFiles()
        publish_with_parts(writer(files), 1)
        before = parts_in(files)
        store = writer(files)
        assert store.newest_valid(pytest.fail) is not None
        publish_with_parts(store, 1)
        assert parts_in(files) == before
        newest = open_store(files).newest()
        assert newest is not None
        assert (newest.attempt, newest.step) == (2, 1)
        assert open_store(files).read(newest) == with_parts(1)

    @pytest.mark.parametrize("damage", ["deleted", "truncated"])
    def test_what_the_store_has_lost_is_written_again(self, damage: str) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish_with_parts(store, 1)
        path = min(parts_in(files))
        if damage == "deleted":
            del files.files[path]
        else:
            files.files[path] = files.files[path][:3]
        publish_with_parts(store, 2)
        found = open_store(files).newest_valid(pytest.fail)
        assert found is not None
        assert found[1] == with_parts(2)

    def test_a_store_that_loses_every_part_is_an_error_and_nothing_is_committed(self) -> None:
        class Lossy(MemoryFiles):
            def write(self, path: str, data: Buffer) -> None:
                super().write(path, data[:5] if path.startswith("parts/") else data)

        files = Lossy()
        store = writer(files)
        with pytest.raises(StoreError, match=r"parts/.* does not have the 7 bytes .*committed"):
            publish_with_parts(store, 4)
        assert not any("manifest" in path for path in files.files)

    def test_a_rotten_part_that_only_a_cache_has_whole_is_written_again(
        self, tmp_path: Path
    ) -> None:
        files = MemoryFiles()
        cache = FileCache(tmp_path / "files", reserve_bytes=0)

        def cached() -> CheckpointStore:
            store = CheckpointStore(RunStore(files, files.url, cache=cache, sleep=lambda _: None))
            store.claim()
            return store

        publish_with_parts(cached(), 1)
        path = min(parts_in(files))
        files.files[path] = flip(files.files[path], 0)
        store = cached()
        found = store.newest_valid(pytest.fail)  # from the cache
        assert found is not None
        publish_with_parts(store, 2)
        assert len(parts_in(files)) == 5  # the rotten one, its new copy, and three more
        newest = open_store(files).newest_valid(pytest.fail)
        assert newest is not None
        assert newest[1] == with_parts(2)
        # The older checkpoint names the rotten file; the copy will do.
        assert open_store(files).read(found[0]) == with_parts(1)

    @pytest.mark.parametrize("how", ["flipped", "missing", "swapped", "cut", "grown"])
    def test_a_damaged_part_costs_the_checkpoints_that_have_it(self, how: str) -> None:
        files = MemoryFiles()
        publish_with_parts(writer(files), 1, 2)
        newest = next(p for p, data in parts_in(files).items() if data == b"the guard of round 2")
        other = next(p for p, data in parts_in(files).items() if data == b"the guard of round 1")
        good = files.files.pop(newest)
        damaged = {
            "flipped": flip(good, 9),
            "swapped": files.files[other],
            "cut": good[:-1],
            "grown": good + b"more",
        }
        if how != "missing":
            files.files[newest] = damaged[how]
        skipped: list[str] = []
        found = open_store(files).newest_valid(skipped.append)
        assert found is not None
        assert found[1] == with_parts(1)
        [line] = skipped
        assert "guard.safetensors/round-2 is" in line

    def test_a_damaged_part_of_all_checkpoints_is_one_line(self) -> None:
        files = MemoryFiles()
        publish_with_parts(writer(files), 1, 2)
        shared = next(path for path, data in parts_in(files).items() if data == b"a start")
        files.files[shared] = flip(files.files[shared], 0)
        with pytest.raises(CheckpointError, match=r"none of the 2 .*/sft is damaged: sha256"):
            open_store(files).newest_valid(lambda _line: None)

    @pytest.mark.parametrize("name", ["guard.safetensors/../x", "guard.safetensors/", "x/y", "/x"])
    def test_names_that_lead_elsewhere_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="file names"):
            writer(MemoryFiles()).publish(0, 0, {**content(0), name: b""}, CONFIG)


class TestFence:
    def test_attempts_count_up(self) -> None:
        files = MemoryFiles()
        assert [open_store(files).claim() for _ in range(3)] == [1, 2, 3]
        assert open_store(files).claim(7) == 7
        with pytest.raises(LeaseLost, match="attempt 7 has claimed it"):
            open_store(files).claim(6)

    def test_the_older_of_two_writers_stops_and_damages_nothing(self) -> None:
        files = MemoryFiles()
        old = writer(files, 1)
        publish(old, 0, 10)
        new = writer(files, 2)
        with pytest.raises(LeaseLost, match="claimed by a0002"):
            publish(old, 20)
        with pytest.raises(LeaseLost):
            old.prune(1)
        publish(new, 11)
        newest = open_store(files).newest()
        assert newest is not None
        assert (newest.step, newest.attempt) == (11, 2)

    def test_a_claim_during_the_upload_stops_the_commit(self) -> None:
        files = MemoryFiles()
        slow = FaultyFiles(files)
        old = writer(slow, 1)

        def rival(operation: str, path: str) -> None:
            if operation == "write" and "trainer_state" in path:
                writer(files, 2)

        slow.before = rival
        with pytest.raises(LeaseLost):
            publish(old, 0)
        assert not any("manifest" in path for path in files.files)

    def test_a_zombie_that_slips_through_is_still_not_the_newest(self) -> None:
        files = MemoryFiles()
        old, new = writer(files, 1), None

        def publish_then_commit_late(operation: str, path: str) -> None:
            nonlocal new
            if operation == "write" and path.endswith("manifest.json"):
                new = writer(files, 2)
                publish(new, 5)

        old.run.filesystem = FaultyFiles(files, publish_then_commit_late)
        publish(old, 50)
        newest = open_store(files).newest()
        assert newest is not None
        assert (newest.attempt, newest.step) == (2, 5)

    def test_a_restart_of_the_same_attempt_outranks_the_first_start(self) -> None:
        files = MemoryFiles()
        starts = [writer(files, 4) for _ in range(20)]
        assert [store.writer for store in starts] == sorted(store.writer for store in starts)
        starts[-1].check_fence()
        for store in starts[:-1]:
            with pytest.raises(LeaseLost):
                store.check_fence()

    def test_a_vanished_claim_is_not_a_permission(self) -> None:
        files = MemoryFiles()
        store = writer(files)
        files.files.clear()
        with pytest.raises(StoreError, match="vanished"):
            publish(store, 0)
        with pytest.raises(StoreError, match="vanished"):
            store.newest()


class TestUnknownIsNeverEmpty:
    def test_a_new_run_has_no_checkpoint(self) -> None:
        assert open_store(MemoryFiles()).newest() is None
        claimed = writer(MemoryFiles())
        assert claimed.newest() is None

    def test_an_outage_raises(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 3)

        def down(operation: str, path: str) -> None:
            raise StoreError("store cannot be reached")

        store = open_store(FaultyFiles(files, down))
        with pytest.raises(StoreError):
            store.newest()
        with pytest.raises(StoreError):
            store.newest_valid(lambda _line: None)
        with pytest.raises(StoreError):
            store.claim()

    def test_an_outage_in_the_middle_does_not_fall_back(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 3, 4)

        def down(operation: str, path: str) -> None:
            if operation == "read" and "00000004" in path:
                raise StoreError("store cannot be reached")

        store = open_store(FaultyFiles(files, down))
        with pytest.raises(StoreError, match="reached"):
            store.newest_valid(lambda _line: None)

    def test_nothing_valid_is_an_error(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 3, 4)
        for path in [path for path in files.files if path.endswith("manifest.json")]:
            del files.files[path]
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* delete"):
            open_store(files).newest()

    def test_a_damaged_step_zero_is_an_error(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 0)
        path = next(path for path in files.files if path.endswith("manifest.json"))
        files.files[path] = b"{"
        with pytest.raises(CheckpointError, match="damaged"):
            open_store(files).newest()


class TestDamage:
    @pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
    def test_every_flipped_byte_is_found_and_the_older_one_is_used(self, name: str) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish(store, 1, 2)
        path = f"checkpoints/step-00000002-a0001-{store.writer}/{name}"
        good = files.files[path]
        for position in range(0, len(good), 7):
            files.files[path] = flip(good, position)
            skipped: list[str] = []
            found = open_store(files).newest_valid(skipped.append)
            assert found is not None
            assert found[0].step == 1, f"byte {position} of {name}"
            assert len(skipped) == 1
            assert name in skipped[0]
            assert "\n" not in skipped[0]

    @pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
    def test_a_missing_file(self, name: str) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish(store, 1, 2)
        newest = store.newest()
        assert newest is not None
        del files.files[f"checkpoints/{newest.name}/{name}"]
        found = open_store(files).newest_valid(lambda _line: None)
        assert found is not None
        assert found[0].step == 1
        with pytest.raises(CheckpointError, match=rf"cannot be used: .*{name}"):
            open_store(files).read(newest)

    @given(st.data())
    def test_a_changed_file_is_never_returned(self, data: st.DataObject) -> None:
        files = MemoryFiles()
        store = writer(files)
        publish(store, 1)
        paths = sorted(path for path in files.files if path.startswith("checkpoints"))
        path = data.draw(st.sampled_from(paths))
        good = files.files[path]
        bad = data.draw(st.binary(max_size=len(good) + 3).filter(lambda value: value != good))
        files.files[path] = bad
        with pytest.raises(CheckpointError):
            open_store(files).newest_valid(lambda _line: None)

    @pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
    def test_the_wire_may_lie_three_times(self, name: str) -> None:
        files = MemoryFiles()
        publish(writer(files), 1)

        class Wire(FaultyFiles):
            lies = 3

            def read(self, path: str, max_bytes: int | None = None) -> bytes:
                data = super().read(path, max_bytes)
                if path.endswith(name) and self.lies:
                    self.lies -= 1
                    return flip(data, 3)
                return data

        found = open_store(Wire(files)).newest_valid(pytest.fail)
        assert found is not None
        assert found[1] == content(1)

    def test_a_manifest_swapped_with_another_checkpoints(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 1, 2)
        one, two = sorted(path for path in files.files if path.endswith("manifest.json"))
        files.files[two] = files.files[one]
        newest = open_store(files).newest()
        assert newest is not None
        assert newest.step == 1

    def test_a_ref_binds_the_content(self) -> None:
        files = MemoryFiles()
        store = writer(files)
        ref = store.publish(1, 10, content(1), CONFIG)
        # Someone puts a consistent checkpoint with other weights in its place.
        files.files = {path: data for path, data in files.files.items() if "claims" in path}
        store.publish(1, 10, content(2), CONFIG)
        with pytest.raises(CheckpointError, match="not the one named"):
            open_store(files).read(ref)


def test_foreign_files_are_ignored() -> None:
    files = MemoryFiles()
    files.write("checkpoints/README", b"x")
    files.write("checkpoints/step-12/guard.safetensors", b"x")
    files.write("claims/.keep", b"")
    assert open_store(files).newest() is None
    assert open_store(files).claim() == 1


class Countdown:
    """For `FaultyFiles`: dies at a request, after so many have been let through."""

    def __init__(self, num_requests: int) -> None:
        self.left = num_requests

    def __call__(self, operation: str, path: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def life(files: FaultyFiles, save: Callable[..., None]) -> None:
    """All that a worker asks of its store: claim, resume, save, prune."""
    store = writer(files)
    assert store.newest_valid(pytest.fail) is not None
    save(store, 8, 9)
    store.prune(keep=1)


@pytest.mark.parametrize("torn", [False, True], ids=["clean kill", "half a file left"])
@pytest.mark.parametrize(
    ("save", "made"), [(publish, content), (publish_with_parts, with_parts)], ids=["files", "parts"]
)
def test_any_prefix_of_the_requests_leaves_a_whole_checkpoint(
    torn: bool, save: Callable[..., None], made: Callable[[int], Mapping[str, bytes]]
) -> None:
    seen: set[int] = set()
    for num_requests in count():
        files = MemoryFiles()
        save(writer(files), 6, 7)
        dying = FaultyFiles(files, Countdown(num_requests), torn=torn)
        try:
            life(dying, save)
        except Killed:
            found = open_store(files).newest_valid(lambda _line: None)
            assert found is not None, f"after {num_requests} requests"
            assert found[1] == made(found[0].step), f"after {num_requests} requests"
            seen.add(found[0].step)
            # The next machine goes on, and collects what nobody refers to.
            store = writer(files)
            save(store, 10)
            store.prune(keep=1)
            found = open_store(files).newest_valid(pytest.fail)
            assert found is not None
            assert found[1] == made(10)
            referred = {path.split("/")[1] for path in files.files if path.startswith("parts/")}
            assert len(referred) == len(set(made(10).values())) - len(NAMES)
            continue
        break
    assert num_requests > 40
    assert seen == {7, 8, 9}


OFFSETS = 200
STEPS = (6, 10)


@pytest.fixture(scope="module")
def run() -> tuple[MemoryFiles, dict[str, bytes]]:
    """A run with two checkpoints, and the files of the older one."""
    files = MemoryFiles()
    store = writer(files)
    trainer = make_trainer(miniature_config())
    saved: list[dict[str, bytes]] = []
    for step in STEPS:
        while trainer.state.step < step:
            trainer.step()
        saved.append(trainer.files())
        store.publish(step, trainer.state.episode, saved[-1], CONFIG)
    assert {name for name in saved[0] if "/" not in name} == set(NAMES)
    assert all(saved[0][name] != saved[1][name] for name in NAMES)
    return files, saved[0]


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_every_changed_byte_is_found_and_the_older_checkpoint_is_used(
    run: tuple[MemoryFiles, dict[str, bytes]], name: str
) -> None:
    files, older = run
    [path] = [
        path for path in files.files if f"step-{STEPS[1]:08d}" in path and path.endswith(f"/{name}")
    ]
    good = files.files[path]
    rng = Random(name)
    try:
        for _ in range(OFFSETS):
            offset, change = rng.randrange(len(good)), rng.randrange(1, 256)
            bad = bytearray(good)
            bad[offset] ^= change
            files.files[path] = bytes(bad)
            skipped: list[str] = []
            found = open_store(files).newest_valid(skipped.append)
            where = f"byte {offset} of {name}, by {change}"
            assert found is not None, where
            assert found[0].step == STEPS[0], where
            assert found[1] == older, where
            assert len(skipped) == 1, where
            assert name in skipped[0], where
    finally:
        files.files[path] = good
    assert open_store(files).newest_valid(pytest.fail) is not None


class TestPins:
    """A machine goes on from what its flow named, whatever others put into its folder."""

    def test_a_newer_one_of_somebody_else_does_not_count(self) -> None:
        files = MemoryFiles()
        publish(writer(files, 1), 5)
        ours = open_store(files).newest()
        assert ours is not None
        publish(writer(files, 2), 7)
        store = PinnedStore(RunStore(files, files.url), ours.sha256)
        store.claim(3)
        skipped: list[str] = []
        found = store.newest_valid(skipped.append)
        assert found is not None
        assert found[0] == ours
        assert "not the one that this machine was told" in skipped[0]
        publish(store, 9)
        again = PinnedStore(RunStore(files, files.url), ours.sha256)
        again.claim(3)
        newest = again.newest()
        assert newest is not None
        assert newest.step == 9, "its own ones count when its container starts again"

    def test_where_nothing_was_named_nothing_counts(self) -> None:
        files = MemoryFiles()
        publish(writer(files, 1), 5)
        store = PinnedStore(RunStore(files, files.url), NONE)
        store.claim(2)
        with pytest.raises(CheckpointError, match="not the one that this machine was told"):
            store.newest()
