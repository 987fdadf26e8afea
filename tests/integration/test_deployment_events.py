"""Signals, kills and restarts of a real server, worker and flow, and how the runs end.

One control plane goes through all of it, as one of an operator does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.flow_runs import crash_silent
from tests.fakes.control_plane import TINY, ControlPlane, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
FINAL = {"COMPLETED", "CRASHED", "CANCELLED", "FAILED"}
PLAN = {
    "cancelled": {"step_seconds": 20},
    "unheard": {"step_seconds": 40},
    "killed": {"step_seconds": 3},
    "stopped": {"step_seconds": 20},
    "restarted": {"cell_seconds": 6},
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("plane"), PLAN) as plane:
        plane.deploy()
        yield plane


def training(plane: ControlPlane, name: str) -> str:
    """Start stage 1; return its flow run once its worker has begun."""
    number = plane.run("tsgb/stage1", run=name, targets=["T_s"], **TINY)
    wait_for("training", lambda: bool(plane.processes("worker.py", "run", f"/{name}")), 180)
    return number


def ended(plane: ControlPlane, number: str, seconds: float = 200) -> dict[str, Any]:
    """The flow run once its state is final."""
    wait_for("the end", lambda: plane.state(number) in FINAL, seconds)
    return plane.flow_run(number)


def stage_2_of(plane: ControlPlane, name: str) -> list[dict[str, Any]]:
    return [run for run in plane.automated() if run["parameters"].get("run") == name]


def engine(plane: ControlPlane, number: str) -> int:
    """The process in which a flow runs."""
    for process in plane.processes():
        environment = Path(f"/proc/{process}/environ").read_bytes()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        trains = any(b"worker.py" in Path(f"/proc/{c}/cmdline").read_bytes() for c in children)
        if number.encode() in environment and trains:
            return process
    raise AssertionError(f"no process of {number}")


def resumed(plane: ControlPlane, number: str) -> dict[str, Any]:
    """The flow run at its end, once the reaper has looked at the right time."""
    time.sleep(31)  # a younger crash may be reported a second time
    plane.run("tsgb-reaper/reaper")
    wait_for("the reaper", lambda: plane.state(number) not in {"CRASHED", "RUNNING"}, 120)
    return ended(plane, number)


def test_a_cancelled_run_ends_with_all_that_it_started(plane: ControlPlane) -> None:
    number = training(plane, "cancelled")
    plane.prefect("flow-run", "cancel", number)
    assert ended(plane, number)["state_name"] == "Cancelled"
    wait_for("its processes", lambda: not plane.processes("worker.py"), 60)
    assert "Running" not in plane.task_runs(number).values()
    assert stage_2_of(plane, "cancelled") == []


def test_a_cancel_of_which_prefect_lost_track_is_heard(plane: ControlPlane) -> None:
    number = training(plane, "unheard")
    plane.stop_server()
    time.sleep(60)  # Prefect gives up after some tries
    plane.start_server()
    plane.prefect("flow-run", "cancel", number)
    run = ended(plane, number)
    assert run["state_name"] == "Cancelled"
    assert "its flow run was cancelled" in run["state"]["message"]
    wait_for("its processes", lambda: not plane.processes("worker.py"), 60)
    assert stage_2_of(plane, "unheard") == []
    saved = plane.home / "store" / "unheard" / "attempts"
    assert len(list(saved.iterdir())) == 1, "the second segment never began"


def test_a_killed_flow_is_finished_by_the_reaper(plane: ControlPlane) -> None:
    number = training(plane, "killed")
    wait_for("a segment", lambda: "segment-001" in plane.task_runs(number), 120)
    os.kill(engine(plane, number), signal.SIGKILL)
    assert ended(plane, number)["state_name"] == "Crashed"
    wait_for("its processes", lambda: not plane.processes("worker.py"), 60)
    wait_for("the hook", lambda: "Running" not in plane.task_runs(number).values(), 60)
    assert resumed(plane, number)["state_name"] == "Completed"
    assert plane.task_runs(number)["segment-000"] in {"Cached", "Completed"}
    wait_for("stage 2", lambda: len(stage_2_of(plane, "killed")) == 1, 60)
    assert ended(plane, stage_2_of(plane, "killed")[0]["id"])["state_name"] == "Completed"


def test_an_evaluation_outlives_a_restart_of_the_server(plane: ControlPlane) -> None:
    training(plane, "restarted")
    wait_for("stage 2", lambda: bool(stage_2_of(plane, "restarted")), 200)
    [run] = stage_2_of(plane, "restarted")
    wait_for("its cells", lambda: bool(plane.processes("worker.py", "evaluate")), 120)
    plane.stop_server()
    time.sleep(30)
    plane.start_server()
    assert ended(plane, run["id"])["state_name"] == "Completed"


def test_a_stopped_worker_takes_no_run_and_leaves_none_behind(plane: ControlPlane) -> None:
    """Prefect's worker kills its flows as it stops, and may end before it says that they did."""
    number = training(plane, "stopped")
    plane.end_worker()
    later = plane.run("tsgb/stage1", run="later", targets=["T_s"], **TINY)
    wait_for("its processes", lambda: not plane.processes("worker.py"), 60)
    time.sleep(5)
    assert plane.state(later) == "SCHEDULED"
    untold = plane.state(number) == "RUNNING"
    if untold:
        start = datetime.fromisoformat(plane.flow_run(number)["start_time"])
        for seconds in (4, 2, 0):  # a flow that sends more of them is missed sooner
            beat(plane, number, start - timedelta(seconds=seconds))
        time.sleep(20)
    plane.start_worker()
    if untold:
        reaper = plane.run("tsgb-reaper/reaper")
        assert ended(plane, reaper)["state_name"] == "Completed"
        with SyncPrefectClient(plane.url) as client:  # as the reaper does some minutes later
            later_on = datetime.now(UTC) + timedelta(minutes=20)
            crash_silent(client, ["stage1"], "tsgb-reaper", later_on)
        assert plane.flow_run(number)["state"]["message"].endswith("min: its process is gone")
        assert "Running" not in plane.task_runs(number).values()
    assert resumed(plane, number)["state_name"] == "Completed"
    assert ended(plane, later)["state_name"] == "Completed"


def beat(plane: ControlPlane, number: str, at: datetime) -> None:
    """A heartbeat, as flows send them."""
    event = {
        "id": str(uuid4()),
        "occurred": at.isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{number}"},
    }
    httpx.post(f"{plane.url}/events", json=[event], timeout=30).raise_for_status()
