"""A lease that comes late, never, or in pieces, as a rented machine sees it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.lease import Lease, LeaseState, grant, renew
from tsgb.errors import StoreError, StoreUnreachable
from tsgb.worker.lease_monitor import LeaseMonitor, run_within

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TTL = timedelta(seconds=600)


class Scene:
    def __init__(self) -> None:
        self.files = MemoryFiles()
        self.down = False
        self.run = RunStore(FaultyFiles(self.files, self._before), self.files.url)
        self.monotonic = 0.0
        self.monitor = LeaseMonitor(
            self.run,
            1,
            every_seconds=0.01,
            clock=lambda: self.monotonic,
            now=lambda: NOW + timedelta(seconds=self.monotonic),
        )

    def _before(self, operation: str, path: str) -> None:
        if self.down:
            raise StoreUnreachable("the store is away")

    def put(self, lease: Lease) -> Lease:
        self.run.write_json("lease.json", lease.to_json())
        return lease

    def look(self) -> LeaseState:
        self.monitor.read()
        return self.monitor.standing()


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.put(grant(None, run="r1", attempt=1, owner="me", now=NOW, ttl=TTL))
    return made


def test_an_unknown_lease_holds_until_its_time_is_over(scene: Scene) -> None:
    scene.down = True
    assert scene.look() is LeaseState.HOLDS
    assert not scene.monitor.known
    assert isinstance(scene.monitor.error, StoreUnreachable)
    scene.monotonic = 1201.0
    assert scene.look() is LeaseState.OVER
    assert scene.monitor.reason == "the lease could not be read for too long"


def test_what_was_known_holds_for_its_own_time_while_the_store_is_away(scene: Scene) -> None:
    assert scene.look() is LeaseState.HOLDS
    scene.down = True
    scene.monotonic = 599.0
    assert scene.look() is LeaseState.HOLDS
    scene.monotonic = 601.0
    assert scene.look() is LeaseState.OVER


def test_a_renewal_prolongs_it(scene: Scene) -> None:
    scene.look()
    lease = Lease.from_json(scene.run.read_json("lease.json"))
    scene.monotonic = 500.0
    scene.put(renew(lease, NOW, ttl=TTL))
    assert scene.look() is LeaseState.HOLDS
    scene.monotonic = 1000.0
    assert scene.monitor.standing() is LeaseState.HOLDS
    scene.monotonic = 1101.0
    assert scene.monitor.standing() is LeaseState.OVER


def test_a_read_that_hung_is_as_old_as_its_beginning(scene: Scene) -> None:
    def hang(operation: str, path: str) -> None:
        scene.monotonic += 400.0

    scene.run = RunStore(FaultyFiles(scene.files, hang), scene.files.url)
    monitor = LeaseMonitor(scene.run, 1, every_seconds=1.0, clock=lambda: scene.monotonic)
    monitor.read()
    assert monitor.standing() is not LeaseState.REVOKED
    scene.monotonic = 601.0
    assert monitor.standing() is LeaseState.OVER


def test_a_lease_that_is_surely_absent_is_over(scene: Scene) -> None:
    assert scene.look() is LeaseState.HOLDS
    scene.run.delete("lease.json")
    assert scene.look() is LeaseState.OVER
    assert scene.monitor.reason == "there is no lease"


def test_one_that_is_away_for_a_moment_is_not_absent(scene: Scene) -> None:
    lease = scene.files.files["lease.json"]
    looks: list[str] = []

    def replace(operation: str, path: str) -> None:
        looks.append(path)
        if len(looks) == 1:
            del scene.files.files["lease.json"]
        else:
            scene.files.files["lease.json"] = lease

    run = RunStore(FaultyFiles(scene.files, replace), scene.files.url)
    monitor = LeaseMonitor(run, 1, every_seconds=0.01, now=lambda: NOW)
    monitor.read()
    assert monitor.standing() is LeaseState.HOLDS


def test_what_is_no_lease_is_unknown(scene: Scene) -> None:
    scene.run.write_json("lease.json", {"attempt": 1})
    assert scene.look() is LeaseState.HOLDS
    assert not scene.monitor.known
    assert isinstance(scene.monitor.error, StoreError)


def test_it_reads_by_itself_and_stops(scene: Scene) -> None:
    monitor = LeaseMonitor(scene.run, 1, every_seconds=0.01, now=lambda: NOW)
    before = threading.active_count()
    monitor.start()
    ends_at = time.monotonic() + 60
    while not monitor.known and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert monitor.known
    monitor.stop()
    while threading.active_count() > before and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_run_within_waits_no_longer_than_it_says() -> None:
    never = threading.Event()
    ticks: list[None] = []
    with pytest.raises(StoreUnreachable, match=r"did not answer in 0\.2 s"):
        run_within(0.2, never.wait, tick=lambda: ticks.append(None))
    never.set()
    assert ticks
    assert run_within(20.0, lambda: 7) == 7

    def fails() -> None:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        run_within(20.0, fails)
