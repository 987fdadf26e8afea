"""How the end of an attempt is judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tsgb.cloud.provider import Instance, InstanceState
from tsgb.cloud.termination import Cause, Outcome, Signs, judge, verdict


@pytest.mark.parametrize(
    ("exit_code", "said", "outcome"),
    [
        pytest.param(0, "done", Outcome.DONE, id="done"),
        pytest.param(-9, "done", Outcome.DONE, id="killed-after-it-was-done"),
        pytest.param(0, None, Outcome.DONE, id="exit-0-of-a-part-that-leaves-no-record"),
        pytest.param(1, "crash", Outcome.FAILED, id="crash"),
        pytest.param(2, "config", Outcome.FAILED, id="config"),
        pytest.param(5, "lease_lost", Outcome.FAILED, id="lease-lost"),
        pytest.param(6, "disk_full", Outcome.FAILED, id="disk-full"),
        pytest.param(7, "store_unreachable", Outcome.PREEMPTED, id="the-store-came-back"),
        pytest.param(7, None, Outcome.PREEMPTED, id="the-store-is-still-away"),
        pytest.param(130, "interrupted", Outcome.PREEMPTED, id="signal-that-was-not-ours"),
        pytest.param(-9, None, Outcome.PREEMPTED, id="sigkill"),
        pytest.param(-15, None, Outcome.PREEMPTED, id="sigterm-before-it-listened"),
        pytest.param(137, None, Outcome.PREEMPTED, id="sigkill-in-a-container"),
        pytest.param(130, None, Outcome.PREEMPTED, id="interrupted-before-it-could-save"),
        pytest.param(None, None, Outcome.PREEMPTED, id="machine-gone"),
        pytest.param(-11, None, Outcome.FAILED, id="segmentation-fault"),
        pytest.param(134, None, Outcome.FAILED, id="abort-in-a-container"),
        pytest.param(1, None, Outcome.FAILED, id="traceback-before-the-run-was-claimed"),
        pytest.param(2, None, Outcome.FAILED, id="usage"),
    ],
)
def test_verdict(exit_code: int | None, said: str | None, outcome: Outcome) -> None:
    assert verdict(exit_code, None if said is None else {"outcome": said}) is outcome


ALIVE = Instance(id=7)
OUTBID = Instance(id=7, state=InstanceState.STOPPED)
LOADING = Instance(id=7, state=InstanceState.PROVISIONING)


def signs(instance: Instance | None, **more: Any) -> Signs:
    return replace(
        Signs(instance=instance, seen_before=True, heartbeat_age_seconds=10.0, age_seconds=3600.0),
        **more,
    )


def said(outcome: str) -> dict[str, str]:
    return {"outcome": outcome}


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        pytest.param(signs(ALIVE), None, id="at-work"),
        pytest.param(signs(OUTBID), Cause.PREEMPTED, id="outbid"),
        pytest.param(signs(OUTBID, stop_asked=True), Cause.STOPPED, id="our-own-stop"),
        pytest.param(signs(OUTBID, credit_used_up=True), Cause.FUNDS, id="stopped-for-money"),
        pytest.param(signs(OUTBID, exit_record=said("done")), Cause.DONE, id="its-word-first"),
        pytest.param(signs(None), Cause.PREEMPTED, id="gone"),
        pytest.param(signs(None, stop_asked=True), Cause.STOPPED, id="gone-as-asked"),
        pytest.param(signs(None, verified=False), None, id="a-failed-read-is-no-absence"),
        pytest.param(signs(None, seen_before=False), None, id="not-in-the-list-yet"),
        pytest.param(signs(OUTBID, verified=False), None, id="partial-read"),
        pytest.param(
            signs(replace(ALIVE, state=InstanceState.UNREACHABLE)),
            Cause.HOST_LOST,
            id="offline",
        ),
        pytest.param(
            signs(replace(ALIVE, state=InstanceState.EXITED)),
            Cause.WORKER,
            id="out-of-memory",
        ),
        pytest.param(signs(ALIVE, heartbeat_age_seconds=599.0), None, id="late-heartbeat"),
        pytest.param(signs(ALIVE, heartbeat_age_seconds=601.0), Cause.HOST_LOST, id="silent"),
        pytest.param(
            signs(ALIVE, heartbeat_age_seconds=601.0, doubted_before=True),
            Cause.WORKER,
            id="silent-twice-at-one-step",
        ),
        pytest.param(signs(ALIVE, step_age_seconds=3601.0), Cause.WORKER, id="hangs"),
        pytest.param(signs(None, exit_record=said("crash")), Cause.WORKER, id="crash"),
        pytest.param(signs(None, exit_record=said("config")), Cause.CONFIG, id="config"),
        pytest.param(signs(None, exit_record=said("disk_full")), Cause.DISK_FULL, id="disk"),
        pytest.param(signs(None, exit_record=said("lease_lost")), Cause.LEASE_LOST, id="fenced"),
        pytest.param(signs(None, exit_record=said("interrupted")), Cause.PREEMPTED, id="sigterm"),
        pytest.param(
            signs(None, exit_record=said("interrupted"), stop_asked=True),
            Cause.STOPPED,
            id="told",
        ),
        pytest.param(
            signs(None, exit_record=said("of a later version")),
            Cause.WORKER,
            id="other",
        ),
    ],
)
def test_judge(seen: Signs, cause: Cause | None) -> None:
    assert judge(seen) is cause


@pytest.mark.parametrize(
    ("instance", "age", "cause"),
    [
        pytest.param(LOADING, 1100.0, None, id="a-slow-host-is-silent"),
        pytest.param(LOADING, 1201.0, Cause.BAD_HOST, id="stuck"),
        pytest.param(ALIVE, 1201.0, Cause.BAD_HOST, id="up-but-no-heartbeat"),
        pytest.param(
            replace(LOADING, message="Error response from daemon: OCI runtime create failed"),
            60.0,
            Cause.BAD_HOST,
            id="no-container",
        ),
        pytest.param(
            replace(LOADING, message="Error response from daemon: manifest unknown"),
            60.0,
            Cause.CONFIG,
            id="no-such-image",
        ),
        pytest.param(
            replace(LOADING, message="no space left on device"),
            9.0,
            Cause.DISK_FULL,
            id="disk",
        ),
        pytest.param(OUTBID, 300.0, Cause.PREEMPTED, id="outbid-before-it-began"),
        pytest.param(None, 300.0, Cause.BAD_HOST, id="destroyed-itself-before-it-began"),
    ],
)
def test_a_machine_without_a_heartbeat(
    instance: Instance | None, age: float, cause: Cause | None
) -> None:
    seen = Signs(instance=instance, seen_before=True, age_seconds=age)
    assert judge(seen) is cause


def test_how_a_flow_treats_a_cause() -> None:
    final = {Cause.CONFIG, Cause.FUNDS, Cause.LEASE_LOST}
    assert {cause for cause in Cause if cause.outcome is Outcome.FAILED} == final
    assert Cause.DONE.outcome is Outcome.DONE
