"""Each protection, switched off, breaks what it protects: so the other tests would notice.

The same scenario passes with the protection and fails without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

from tests.fakes.filesystems import MemoryFiles
from tests.fakes.fleet import DEAF, Fleet, when_training
from tests.fakes.mortal_flow import Flow
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.promote import Expected, promote
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cloud.provider import Instance
from tsgb.cloud.session import Session
from tsgb.errors import ProviderUnreachable, StoreError, TSGBError
from tsgb.types import Buffer

pytestmark = pytest.mark.integration

LOST = {"method": "PUT", "path": "/asks/", "when": "after", "act": "close"}
LATE = {"method": "PUT", "path": "/asks/", "act": "late", "seconds": 260}
NO_LIST = {"method": "GET", "path": "/v1/instances", "act": "answer", "preset": "internal"}


@contextmanager
def broken(*, is_off: bool) -> Iterator[None]:
    """What is inside holds, unless the protection is off."""
    if not is_off:
        yield
        return
    with pytest.raises((AssertionError, TSGBError)):
        yield


class NoLabels(Session):
    """Does not find its instances by their labels."""

    def own(self) -> dict[int, Instance]:
        super().own()
        return {}


class FailsOpen(Session):
    """Takes a list that could not be read for an empty one."""

    def own(self) -> dict[int, Instance]:
        try:
            return super().own()
        except ProviderUnreachable:
            return {}


@pytest.mark.parametrize("is_off", [False, True])
def test_adoption_by_label(is_off: bool) -> None:
    with Fleet() as fleet, broken(is_off=is_off):
        fleet.vast.sim("faults", LOST)
        flow = Flow(fleet, session_type=NoLabels if is_off else Session)
        assert flow.run(most=3) == "done"
        assert fleet.bill()["max_live"] == 1


@pytest.mark.parametrize("is_off", [False, True])
def test_the_lease(is_off: bool) -> None:
    with Fleet(steps=10**6, machine_reads_lease=not is_off) as fleet, broken(is_off=is_off):
        assert Flow(fleet, kill_at="training").run() == "killed"
        fleet.advance(60 * 35)
        assert fleet.live() == [], "its flow is dead"


@pytest.mark.parametrize("is_off", [False, True])
def test_the_fence(is_off: bool) -> None:
    """A zombie that reads no lease still cannot publish over a newer attempt."""
    with (
        Fleet(steps=2400, machine_reads_lease=False, fenced=not is_off) as fleet,
        broken(is_off=is_off),
    ):
        fleet.vast.sim("faults", LATE)
        assert Flow(fleet).run() == "done"
        assert {attempt for attempt, _ in fleet.published} == {2}


@pytest.mark.parametrize("is_off", [False, True])
def test_a_list_that_fails_is_not_empty(is_off: bool) -> None:
    with Fleet() as fleet, broken(is_off=is_off):
        assert Flow(fleet, kill_at="training").run() == "killed"
        fleet.advance(45)
        fleet.vast.sim("faults", {**NO_LIST, "times": 40})
        flow = Flow(fleet, session_type=FailsOpen if is_off else Session)
        assert flow.run() == "done"
        assert fleet.bill()["max_live"] == 1


class NoDeadline(Session):
    """Labels instances as earlier versions did."""

    def label(self, attempt: int, deadline: datetime) -> str:
        return super().label(attempt, deadline).rpartition("/")[0]


@pytest.mark.parametrize("is_off", [False, True])
def test_the_deadline(is_off: bool, tmp_path: Path) -> None:
    """A machine that ignores its lease, whose lease nobody can read, ends nevertheless."""
    with (
        Fleet(directory=tmp_path, **DEAF) as fleet,
        broken(is_off=is_off),
    ):
        session_type = NoDeadline if is_off else Session
        flow = Flow(fleet, kill_at="training", budget="0.2", session_type=session_type)
        assert flow.run() == "killed"
        fleet.store.write_bytes("lease.json", b"{")
        fleet.advance(timedelta(hours=9).total_seconds())
        fleet.reap()
        assert fleet.live() == []


class ReadsFirst(Session):
    """Reads the last words of a machine before it is destroyed, and believes that it can."""

    def revoke(self, attempt: int, reason: str) -> None:
        found = self.documents.attempt(attempt)
        assert found is not None
        assert found.intent is not None
        self.seen(found.intent.exchange).read_json(f"machines/{attempt:04d}/exit.json")
        super().revoke(attempt, reason)

    seen: Callable[[str], RunStore]


@pytest.mark.parametrize("is_off", [False, True])
def test_destroying_comes_first(is_off: bool) -> None:
    with Fleet(steps=2400) as fleet, broken(is_off=is_off):
        ReadsFirst.seen = staticmethod(fleet.seen)

        def freeze(number: int) -> None:
            fleet.boxes[number].beat_at = float("inf")
            fleet.seen_by(1).write_bytes("machines/0001/exit.json", b"{")

        when_training(fleet, freeze)
        flow = Flow(fleet, session_type=ReadsFirst if is_off else Session)
        assert flow.run() == "done"
        assert fleet.live() == []


def believing(seen: RunStore, run: RunStore) -> None:
    """Take over the newest checkpoint whose hashes agree, as if they were signed."""
    found = CheckpointReader(seen).newest_whole(lambda _line: None)
    assert found is not None
    store = CheckpointStore(run)
    store.claim(2)
    store.publish(found[0].step, found[0].episode, found[2], found[1].config_sha256)


@pytest.mark.parametrize("is_off", [False, True])
def test_promotion(is_off: bool) -> None:
    """A checkpoint with numbers that are none does not become one of the run."""
    files = MemoryFiles("memory://exchange/r1"), MemoryFiles("memory://store/r1")
    seen, run = (RunStore(one, one.url) for one in files)
    weights = save_tensors({"weight": np.full(2, np.nan, dtype=np.float32)})
    machine = CheckpointStore(seen)
    machine.claim(2)
    machine.publish(30, 9, {"guard.safetensors": weights}, "c" * 64)
    with broken(is_off=is_off):
        if is_off:
            believing(seen, run)
        else:
            wanted = Expected(
                attempt=2,
                config_sha256="c" * 64,
                last_step=90,
                max_bytes=10**6,
                adapter=("full", 16),
            )
            promote(seen, run, wanted, note=lambda _line: None)
        assert CheckpointReader(run).newest_manifest() is None


class Uncontained(MemoryFiles):
    """Joins paths and looks at none of them, as a plain directory would."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self._directory = directory

    def write(self, path: str, data: Buffer) -> None:
        (self._directory / path).write_bytes(data)


@pytest.mark.parametrize("is_off", [False, True])
@pytest.mark.parametrize("name", ["../evil.py", "a/../../evil.py", "/evil.py"])
def test_containment(is_off: bool, name: str, tmp_path: Path) -> None:
    """No name that a document holds leads out of the directory of its run."""
    (tmp_path / "r1" / "a").mkdir(parents=True)
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    files = Uncontained(tmp_path / "r1") if is_off else open_filesystem(str(tmp_path / "r1"))
    with broken(is_off=is_off):
        with suppress(StoreError):
            RunStore(files, files.url).write_bytes(name, b"import os")
        assert not (tmp_path / "evil.py").exists()
