"""Workers of this computer that cannot load a checkpoint, in a store on this disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.machines import LocalMachine
from flows.workers import Checkpoints, Workers
from tests.fakes.checkpoints import CONFIG, content
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.store import CheckpointStore, PinnedStore
from tsgb.cloud.termination import JobEnd
from tsgb.config import Arm, make_config
from tsgb.errors import Preempted, WorkerFailed
from tsgb.processes import JobState
from tsgb.settings import Settings

SIZES = {
    "segments": 2,
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 1, "attacker_steps": 20, "guard_steps": 20},
}
SAVED = 3
"""Attempts whose checkpoints a run begins with here."""


@dataclass(frozen=True, slots=True)
class Loading(Workers):
    """Workers of one arm that do nothing but load a checkpoint, and save the next one."""

    sound: set[int] = field(default_factory=set[int])
    """Updates in the checkpoints that load, beside those that this class saves."""
    says: dict[str, str] = field(default_factory=dict[str, str])
    """Other words of a worker whose checkpoint does not."""
    tried: list[int] = field(default_factory=list[int])
    """Updates in the checkpoints that workers went on from."""

    def build(self, arm: Arm) -> None:
        """All is built."""

    def train(
        self,
        targets: Mapping[Arm, int],
        attempt: int,
        label: str,
        pins: Mapping[Arm, str] | None = None,
    ) -> list[JobState]:
        run, pin = self.open(), (pins or {}).get(Arm.SELFPLAY)
        store = CheckpointStore(run) if pin is None else PinnedStore(run, pin)
        store.claim(attempt)
        found = store.newest_valid(lambda _line: None)
        assert found is not None
        self.tried.append(found[0].step)
        if found[0].attempt <= SAVED and found[0].step not in self.sound:
            record = {"message": "it is odd", "not_loaded": found[0].name, **self.says}
            return [JobState("selfplay", end=JobEnd.FAILED, exit_code=2, exit_record=record)]
        step = targets[Arm.SELFPLAY]
        store.publish(step, step, content(step), CONFIG)
        return [JobState("selfplay", end=JobEnd.DONE, exit_code=0)]


@pytest.fixture
def workers(tmp_path: Path) -> Loading:
    """Those of a run that has saved after 10, 20 and 30 updates."""
    made = Loading(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")
    store = CheckpointStore(made.open())
    for step in (10, 20, 30):
        store.claim(None)
        store.publish(step, step, content(step), CONFIG)
    return made


def flow(workers: Loading) -> LocalMachine:
    return LocalMachine(workers, {Arm.SELFPLAY: make_config(SIZES)})


def attempts(machine: LocalMachine, most: int = 9) -> Checkpoints:
    """What a flow's retries do."""
    for _ in range(most):
        try:
            return machine.attempt(1)
        except Preempted:
            continue
    pytest.fail("it never ends")


def test_after_two_failures_the_next_attempt_begins_at_the_one_before(workers: Loading) -> None:
    workers.sound.add(20)
    ended = attempts(flow(workers))
    assert workers.tried == [30, 30, 20]
    assert ended[Arm.SELFPLAY].step == 60
    assert CheckpointReader(workers.open()).newest() == ended[Arm.SELFPLAY]


def test_where_two_checkpoints_fail_alike_neither_is_to_blame(workers: Loading) -> None:
    with pytest.raises(WorkerFailed, match="segment 1: selfplay: it is odd"):
        attempts(flow(workers))
    assert workers.tried == [30, 30, 20, 20]


def test_a_flow_that_is_started_again_tries_the_newest_again(workers: Loading) -> None:
    machine = flow(workers)
    for _ in range(2):
        with pytest.raises(Preempted):
            machine.attempt(1)
    workers.sound.add(30)
    assert attempts(flow(workers))[Arm.SELFPLAY].step == 60
    assert workers.tried == [30, 30, 30]


def test_another_failure_is_tried_no_more(workers: Loading) -> None:
    workers.says["not_loaded"] = ""
    with pytest.raises(WorkerFailed, match="it is odd"):
        attempts(flow(workers))
    assert workers.tried == [30]
