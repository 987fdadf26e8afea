"""Flow runs whose process is gone: found, marked, and started again.

A flow run and its task runs stay "Running" for ever where nobody was left to say that they ended:
the flow's process was killed together with the Prefect worker, or by it as it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import AwaitingRetry, Crashed

FLOW = "tsgb"
"""Name of the flow of both stages."""
MAX_RUNS = 20
"""Starts of one flow run, after which it stays crashed."""
LEAST_AGE = timedelta(seconds=30)
"""Least age of a crash: a Prefect worker reports it twice, the second time some seconds later."""
MAX_AGE = timedelta(hours=24)
"""Greatest age of a crash whose run is started again."""
_HEARTBEAT = "prefect.flow-run.heartbeat"
_LOST_HEARTBEATS = 3
_PAGE = 200


def crash_silent(
    client: SyncPrefectClient, deployments: Sequence[str], watcher: str, now: datetime
) -> list[str]:
    """Set flow runs to `Crashed` that count as running and whose process is gone; return their ids.

    A live one sends a heartbeat every so often. One that has missed three is dead, unless it was
    the server that was away: so the server must have worked in between, which is known from a run
    of a watcher that began after the heartbeats were due, and a further three ago.

    Args:
        client: The server.
        deployments: Names of the deployments whose flow runs are looked at.
        watcher: Name of the flow whose completed runs show that the server worked.
        now: Current time.
    """
    crashed: list[str] = []
    for run in _runs(client, deployments, StateType.RUNNING):
        beats = _heartbeats(client, run.id)
        if len(beats) < 2:
            continue
        patience = _LOST_HEARTBEATS * max(a - b for a, b in pairwise(beats))
        if now - beats[0] > patience and _watched(
            client, watcher, beats[0] + patience, now - patience
        ):
            minutes = (now - beats[0]).total_seconds() / 60
            reason = f"no heartbeat for {minutes:.0f} min: its process is gone"
            crash(client, run.id, reason)
            crashed.append(str(run.id))
    return crashed


def resume(client: SyncPrefectClient, deployments: Sequence[str], now: datetime) -> list[str]:
    """Have crashed flow runs of these deployments scheduled again, as far as that makes sense.

    The state is not forced: only then the server hands the run to a worker, with the same id, and
    its finished segments come from their stored results.

    Returns:
        Ids of the flow runs.
    """
    resumed: list[str] = []
    for run in _runs(client, deployments, StateType.CRASHED):
        age = timedelta(0) if run.state is None else now - run.state.timestamp
        if age <= MAX_AGE:
            crash_tasks(client, run.id, "its flow run crashed")
        if run.run_count < MAX_RUNS and LEAST_AGE <= age <= MAX_AGE:
            again = AwaitingRetry(message="Resumed by the reaper")
            answer = client.set_flow_run_state(run.id, again)
            if answer.status is SetStateStatus.ACCEPT:
                resumed.append(str(run.id))
    return resumed


def crash(client: SyncPrefectClient, flow_run_id: UUID, reason: str) -> None:
    """Set a flow run whose process is gone to `Crashed`, and its task runs with it."""
    client.set_flow_run_state(flow_run_id, Crashed(message=reason), force=True)
    crash_tasks(client, flow_run_id, reason)


def crash_tasks(client: SyncPrefectClient, flow_run_id: UUID, reason: str) -> int:
    """Set the task runs of a flow run that count as running to `Crashed`; return how many did."""
    of_type = TaskRunFilterStateType(any_=[StateType.RUNNING])
    killed = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=of_type)),
    )
    for run in killed:
        client.set_task_run_state(run.id, Crashed(message=f"Killed: {reason}"), force=True)
    return len(killed)


def _runs(
    client: SyncPrefectClient, deployments: Sequence[str], kind: StateType
) -> Iterator[FlowRun]:
    """Read the flow runs of our deployments in a state, the newest first."""
    yield from client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=list(deployments))),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind]))
        ),
        sort=FlowRunSort.START_TIME_DESC,
        limit=_PAGE,
    )


def _heartbeats(client: SyncPrefectClient, flow_run_id: UUID) -> list[datetime]:
    """Return the times of the last heartbeats, the newest first."""
    wanted: dict[str, Any] = {
        "event": {"name": [_HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
        "order": "DESC",
    }
    answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 5})
    return [datetime.fromisoformat(event["occurred"]) for event in answer.json()["events"]]


def _watched(client: SyncPrefectClient, watcher: str, after: datetime, before: datetime) -> bool:
    """Whether a run of the watcher began after one time and ended before another."""
    return after < before and bool(
        client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[watcher])),
            flow_run_filter=FlowRunFilter(
                start_time=FlowRunFilterStartTime.model_validate({"after_": after}),
                end_time=FlowRunFilterEndTime.model_validate({"before_": before}),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])),
            ),
            limit=1,
        )
    )
