"""How the end of an attempt is judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tsgb.cloud.provider import Instance, InstanceState
from tsgb.cloud.termination import (
    JobEnd,
    Observation,
    TerminationReason,
    job_end,
    overdue,
    termination_reason,
)


@pytest.mark.parametrize(
    ("exit_code", "said", "outcome"),
    [
        pytest.param(0, "done", JobEnd.DONE, id="done"),
        pytest.param(-9, "done", JobEnd.DONE, id="killed-after-it-was-done"),
        pytest.param(0, None, JobEnd.DONE, id="exit-0-of-a-part-that-leaves-no-record"),
        pytest.param(1, "crash", JobEnd.FAILED, id="crash"),
        pytest.param(2, "config", JobEnd.FAILED, id="config"),
        pytest.param(5, "lease_lost", JobEnd.FAILED, id="lease-lost"),
        pytest.param(6, "disk_full", JobEnd.FAILED, id="disk-full"),
        pytest.param(7, "store_unreachable", JobEnd.PREEMPTED, id="the-store-came-back"),
        pytest.param(7, None, JobEnd.PREEMPTED, id="the-store-is-still-away"),
        pytest.param(130, "interrupted", JobEnd.PREEMPTED, id="signal-that-was-not-ours"),
        pytest.param(-9, None, JobEnd.PREEMPTED, id="sigkill"),
        pytest.param(-15, None, JobEnd.PREEMPTED, id="sigterm-before-it-listened"),
        pytest.param(137, None, JobEnd.PREEMPTED, id="sigkill-in-a-container"),
        pytest.param(130, None, JobEnd.PREEMPTED, id="interrupted-before-it-could-save"),
        pytest.param(None, None, JobEnd.PREEMPTED, id="machine-gone"),
        pytest.param(-11, None, JobEnd.FAILED, id="segmentation-fault"),
        pytest.param(134, None, JobEnd.FAILED, id="abort-in-a-container"),
        pytest.param(1, None, JobEnd.FAILED, id="traceback-before-the-run-was-claimed"),
        pytest.param(2, None, JobEnd.FAILED, id="usage"),
    ],
)
def test_job_end(exit_code: int | None, said: str | None, outcome: JobEnd) -> None:
    assert job_end(exit_code, None if said is None else {"outcome": said}) is outcome


@pytest.mark.parametrize("said", [["done"], {}, 5, None])
def test_an_exit_record_with_a_strange_outcome_is_a_failure(said: object) -> None:
    assert job_end(1, {"outcome": said}) is JobEnd.FAILED


ALIVE = Instance(id=7)
OUTBID = Instance(id=7, state=InstanceState.STOPPED)
LOADING = Instance(id=7, state=InstanceState.PROVISIONING)


def signs(instance: Instance | None, **more: Any) -> Observation:
    return replace(
        Observation(
            instance=instance, seen_before=True, heartbeat_age_seconds=10.0, age_seconds=3600.0
        ),
        **more,
    )


def said(outcome: str) -> dict[str, str]:
    return {"outcome": outcome}


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        pytest.param(signs(ALIVE), None, id="at-work"),
        pytest.param(signs(OUTBID), TerminationReason.PREEMPTED, id="outbid"),
        pytest.param(signs(OUTBID, stop_asked=True), TerminationReason.STOPPED, id="our-own-stop"),
        pytest.param(
            signs(OUTBID, credit_used_up=True), TerminationReason.FUNDS, id="stopped-for-money"
        ),
        pytest.param(
            signs(OUTBID, exit_record=said("done")), TerminationReason.DONE, id="its-word-first"
        ),
        pytest.param(signs(None), TerminationReason.PREEMPTED, id="gone"),
        pytest.param(signs(None, stop_asked=True), TerminationReason.STOPPED, id="gone-as-asked"),
        pytest.param(signs(None, verified=False), None, id="a-failed-read-is-no-absence"),
        pytest.param(signs(None, seen_before=False), None, id="not-in-the-list-yet"),
        pytest.param(signs(OUTBID, verified=False), None, id="partial-read"),
        pytest.param(
            signs(replace(ALIVE, state=InstanceState.UNREACHABLE)),
            TerminationReason.HOST_LOST,
            id="offline",
        ),
        pytest.param(
            signs(replace(ALIVE, state=InstanceState.EXITED)),
            TerminationReason.WORKER,
            id="out-of-memory",
        ),
        pytest.param(signs(ALIVE, heartbeat_age_seconds=599.0), None, id="late-heartbeat"),
        pytest.param(
            signs(ALIVE, heartbeat_age_seconds=601.0), TerminationReason.HOST_LOST, id="silent"
        ),
        pytest.param(
            signs(ALIVE, heartbeat_age_seconds=601.0, doubted_before=True),
            TerminationReason.WORKER,
            id="silent-twice-at-one-step",
        ),
        pytest.param(signs(ALIVE, step_age_seconds=3601.0), TerminationReason.WORKER, id="hangs"),
        pytest.param(signs(None, exit_record=said("crash")), TerminationReason.WORKER, id="crash"),
        pytest.param(
            signs(None, exit_record=said("config")), TerminationReason.CONFIG, id="config"
        ),
        pytest.param(
            signs(None, exit_record=said("disk_full")), TerminationReason.DISK_FULL, id="disk"
        ),
        pytest.param(
            signs(None, exit_record=said("lease_lost")), TerminationReason.LEASE_LOST, id="fenced"
        ),
        pytest.param(
            signs(None, exit_record=said("interrupted")), TerminationReason.PREEMPTED, id="sigterm"
        ),
        pytest.param(
            signs(None, exit_record=said("interrupted"), stop_asked=True),
            TerminationReason.STOPPED,
            id="told",
        ),
        pytest.param(
            signs(None, exit_record=said("of a later version")),
            TerminationReason.WORKER,
            id="other",
        ),
    ],
)
def test_termination_reason(seen: Observation, cause: TerminationReason | None) -> None:
    assert termination_reason(seen) is cause


@pytest.mark.parametrize(
    ("instance", "age", "cause"),
    [
        pytest.param(LOADING, 1100.0, None, id="a-slow-host-is-silent"),
        pytest.param(LOADING, 1201.0, TerminationReason.BAD_HOST, id="stuck"),
        pytest.param(ALIVE, 1201.0, TerminationReason.BAD_HOST, id="up-but-no-heartbeat"),
        pytest.param(
            replace(LOADING, message="Error response from daemon: OCI runtime create failed"),
            60.0,
            TerminationReason.BAD_HOST,
            id="no-container",
        ),
        pytest.param(
            replace(LOADING, message="Error response from daemon: manifest unknown"),
            60.0,
            TerminationReason.CONFIG,
            id="no-such-image",
        ),
        pytest.param(
            replace(LOADING, message="no space left on device"),
            9.0,
            TerminationReason.DISK_FULL,
            id="disk",
        ),
        pytest.param(OUTBID, 300.0, TerminationReason.PREEMPTED, id="outbid-before-it-began"),
        pytest.param(
            None, 300.0, TerminationReason.BAD_HOST, id="destroyed-itself-before-it-began"
        ),
    ],
)
def test_a_machine_without_a_heartbeat(
    instance: Instance | None, age: float, cause: TerminationReason | None
) -> None:
    seen = Observation(instance=instance, seen_before=True, age_seconds=age)
    assert termination_reason(seen) is cause


@pytest.mark.parametrize(
    ("seen", "late_for"),
    [
        pytest.param(signs(ALIVE), "", id="at-work"),
        pytest.param(
            signs(LOADING, heartbeat_age_seconds=None),
            "no heartbeat within 1200 s of its rental",
            id="slow",
        ),
        pytest.param(
            signs(ALIVE, heartbeat_age_seconds=601.0), "no heartbeat for 600 s", id="silent"
        ),
        pytest.param(signs(ALIVE, step_age_seconds=3601.0), "no update for 3600 s", id="stuck"),
        pytest.param(signs(OUTBID, heartbeat_age_seconds=601.0), "", id="outbid"),
        pytest.param(signs(None, heartbeat_age_seconds=601.0), "", id="gone"),
    ],
)
def test_the_deadline_that_a_machine_missed_is_named(seen: Observation, late_for: str) -> None:
    assert overdue(seen) == late_for


def test_how_a_flow_treats_a_cause() -> None:
    final = {TerminationReason.CONFIG, TerminationReason.FUNDS, TerminationReason.LEASE_LOST}
    assert {cause for cause in TerminationReason if cause.job_end is JobEnd.FAILED} == final
    assert TerminationReason.DONE.job_end is JobEnd.DONE
