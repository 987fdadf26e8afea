"""Saving in the background: what waits, what is replaced, what is raised where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count

import pytest

from tsgb.checkpoint.saver import Saver, Snapshot
from tsgb.errors import LeaseLost, StoreUnreachable
from tsgb.types import CheckpointRef

SECONDS = 60.0
"""No test waits for so long unless it fails."""


class SlowStore:
    """Commits when it is told to; remembers what it was given."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.committed: list[tuple[int, bytes]] = []
        self.error: BaseException | None = None

    def commit(self, snapshot: Snapshot) -> CheckpointRef:
        self.started.release()
        assert self.go.acquire(timeout=SECONDS)
        if self.error is not None:
            raise self.error
        self.committed.append((snapshot.step, bytes(snapshot.files["guard"])))
        return ref(snapshot.step)


def ref(step: int) -> CheckpointRef:
    return CheckpointRef(
        run_url="memory://s/r", step=step, episode=0, attempt=1, writer="w", name="n", sha256="0"
    )


def take(step: int) -> Callable[[bytearray], Snapshot]:
    """Copies one byte into the stage, as a trainer copies its tensors."""

    def copy(stage: bytearray) -> Snapshot:
        stage[:] = bytes([step])
        return Snapshot(step, step, {"guard": memoryview(stage)}, "")

    return copy


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


def make_saver(store: SlowStore, stages: list[bytearray] | None = None) -> Saver[bytearray]:
    made = [] if stages is None else stages

    def make_stage() -> bytearray:
        made.append(bytearray(1))
        return made[-1]

    return Saver(store.commit, make_stage)


def test_training_goes_on_while_a_save_is_under_way(store: SlowStore) -> None:
    saver = make_saver(store)
    saver.submit(take(1))
    assert store.started.acquire(timeout=SECONDS)
    assert saver.durable is None
    assert not saver.idle
    store.go.release()
    assert saver.flush(SECONDS)
    assert saver.durable == ref(1)
    assert store.committed == [(1, b"\x01")]


def test_the_newest_replaces_what_waits_and_nothing_under_way_is_overwritten(
    store: SlowStore,
) -> None:
    stages: list[bytearray] = []
    saver = make_saver(store, stages)
    saver.submit(take(1))
    assert store.started.acquire(timeout=SECONDS)
    for step in (2, 3, 4):
        saver.submit(take(step))
    for _ in range(2):
        store.go.release()
    assert saver.flush(SECONDS)
    assert store.committed == [(1, b"\x01"), (4, b"\x04")]
    assert len(stages) == 2


def test_the_first_stage_is_used_again(store: SlowStore) -> None:
    stages: list[bytearray] = []
    saver = make_saver(store, stages)
    for step in (1, 2, 3):
        saver.submit(take(step))
        store.go.release()
        assert saver.flush(SECONDS)
    assert len(stages) == 1


def test_a_run_that_was_taken_over_stops_training_at_its_next_look(store: SlowStore) -> None:
    saver = make_saver(store)
    store.error = LeaseLost("taken over")
    saver.submit(take(1))
    store.go.release()
    assert saver.flush(SECONDS)
    with pytest.raises(LeaseLost):
        saver.check()
    saver.check()


def test_an_outage_does_not_stop_training_and_the_next_save_counts(store: SlowStore) -> None:
    saver = make_saver(store)
    store.error = StoreUnreachable("away")
    saver.submit(take(1))
    store.go.release()
    assert saver.flush(SECONDS)
    saver.check()
    assert saver.durable is None
    store.error = None
    saver.submit(take(2))
    store.go.release()
    assert saver.flush(SECONDS)
    assert saver.durable == ref(2)


def test_a_blocking_save_says_so_when_the_store_is_away(store: SlowStore) -> None:
    saver = make_saver(store)
    store.error = StoreUnreachable("away")
    store.go.release()
    with pytest.raises(StoreUnreachable):
        saver.save_now(take(1))
    store.error = None
    store.go.release()
    assert saver.save_now(take(2)) == ref(2)


def test_waiting_has_an_end(store: SlowStore) -> None:
    saver = make_saver(store)
    saver.submit(take(1))
    assert store.started.acquire(timeout=SECONDS)
    assert not saver.flush(0.01)
    saver.submit(take(2))
    saver.drop_waiting()
    store.go.release()
    assert saver.flush(SECONDS)
    assert [step for step, _ in store.committed] == [1]


def test_seconds_left_go_by_the_commit_before() -> None:
    ticks = count()
    done = SlowStore()
    saver = Saver(done.commit, lambda: bytearray(1), clock=lambda: float(next(ticks)))
    assert saver.seconds_left() == 0
    done.go.release()
    saver.save_now(take(1))
    assert saver.commit_seconds == 1
    before = saver.unsaved_seconds
    assert saver.unsaved_seconds > before
