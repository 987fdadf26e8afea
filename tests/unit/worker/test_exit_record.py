"""How the ends of several workers make the end of a machine."""

from __future__ import annotations

import signal

import pytest

from tsgb.cloud.termination import Observation, TerminationReason, termination_reason
from tsgb.worker.exit_record import (
    EXIT_CODES,
    WORST_FIRST,
    WorkerEnd,
    machine_exit_record,
    outcome_of,
    worst,
)


@pytest.mark.parametrize(
    ("exit_code", "record", "outcome"),
    [
        (0, None, "done"),
        (1, None, "crash"),
        (2, None, "config"),
        (5, None, "lease_lost"),
        (6, None, "disk_full"),
        (7, None, "store_unreachable"),
        (130, None, "interrupted"),
        (143, None, "interrupted"),
        (-signal.SIGTERM, None, "interrupted"),
        (-signal.SIGKILL, None, "crash"),
        (None, None, "crash"),
        (1, {"outcome": "disk_full"}, "disk_full"),
        (0, {"outcome": "crash"}, "crash"),
        (7, {"outcome": "what?"}, "store_unreachable"),
    ],
)
def test_a_workers_exit_record_counts_first(
    exit_code: int | None, record: dict[str, str] | None, outcome: str
) -> None:
    assert outcome_of(exit_code, record) == outcome


def test_the_worst_decides() -> None:
    assert worst(["done", "done"]) == "done"
    assert worst(["done", "interrupted", "crash"]) == "crash"
    assert worst(["crash", "disk_full", "done"]) == "disk_full"
    assert worst(["config", "lease_lost"]) == "lease_lost"
    assert worst([]) == "crash"
    assert set(EXIT_CODES) < set(WORST_FIRST)


@pytest.mark.parametrize("outcome", WORST_FIRST)
def test_the_flow_knows_every_outcome(outcome: str) -> None:
    cause = termination_reason(Observation(instance=None, exit_record={"outcome": outcome}))
    assert (cause is TerminationReason.WORKER) == (outcome == "crash")


def ended(arm: str, outcome: str | None, step: int = 1) -> WorkerEnd:
    return WorkerEnd(arm=arm, outcome=outcome, step=step, message="why", log_tail="x" * 9000)


def test_a_machine_that_was_told_to_end_is_done_if_its_workers_are() -> None:
    both = [ended("a", "done", 3), ended("b", "done", 4)]
    record = machine_exit_record(both, outcome="interrupted", message="revoked")
    assert (record["outcome"], record["step"]) == ("done", 7)
    assert machine_exit_record(both, outcome="lease_lost", message="m")["outcome"] == "lease_lost"
    half = [*both, ended("c", None)]
    assert machine_exit_record(half, outcome="interrupted", message="m")["outcome"] == "interrupted"
    assert (
        machine_exit_record(half, outcome="interrupted", message="m")["arms"]["c"]["outcome"]
        is None
    )
    assert machine_exit_record([], outcome="config", message="a\nb")["message"] == "a b"
    assert len(record["log_tail"]) < 4200


@pytest.mark.parametrize("stored", [["x"], "x", {}, float("inf"), -5])
def test_an_exit_record_with_strange_fields_is_read_as_far_as_it_goes(stored: object) -> None:
    record = {"outcome": "done", "step": stored, "useful_seconds": stored, "checkpoint": stored}
    end = WorkerEnd.of(
        "sft",
        exit_code=0,
        record=record,
        step=4,
        durable_step=3,
        useful_seconds=2.0,
        earlier_seconds=1.0,
        log_tail="",
    )
    assert (end.outcome, end.step, end.durable_step, end.useful_seconds) == ("done", 4, 3, 2.0)
