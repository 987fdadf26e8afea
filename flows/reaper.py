"""The reaper: ends machines that no lease covers, and starts crashed trainings again.

It runs on a schedule, in another process than the flows that it looks after, best on another host.
Where it could not look, or could not do what it should, its flow run fails. Wiring only: what an
orphan is, `tsgb.cloud.orphans` says; what is done about it, `tsgb.cloud.reaper`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import AwaitingRetry

from flows.tasks import quietly
from tsgb.cloud.connect import connect
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.reaper import ReapReport, reap
from tsgb.errors import ProviderError
from tsgb.settings import load_settings

RESUMED = ("stage1",)
"""Deployments whose crashed flow runs are started again."""
MAX_RUNS = 20
"""Starts of one flow run, after which it stays crashed."""
LEAST_AGE = timedelta(seconds=30)
"""Least age of a crash: a Prefect worker reports it twice, the second time some seconds later."""
MAX_AGE = timedelta(hours=24)
"""Greatest age of a crash whose run is started again."""


@flow(name="tsgb-reaper", flow_run_name="reaper")
def reaper(store: str | None = None, deployments: list[str] | None = None) -> dict[str, Any]:
    """Destroy the machines that no lease covers, and start crashed flow runs again.

    Args:
        store: URL of the runs of this deployment; None for the default of the settings. All
            flows of a deployment (`TSGB_DEPLOYMENT`) have one store, since a machine whose run is
            not in it counts as an orphan.
        deployments: Deployments whose crashed flow runs are started again; None for `RESUMED`.

    Returns:
        `machines`, as `tsgb reap --json` tells it, or None without a key; `resumed`, flow run ids.
    """
    swept = sweep_machines(store, return_state=True)
    resumed = resume_crashed(RESUMED if deployments is None else deployments)
    return {"machines": swept.result(), "resumed": resumed}


@task(name="sweep-machines")
def sweep_machines(store: str | None) -> dict[str, Any] | None:
    """Destroy instances that no lease covers; return what became of every instance.

    Raises:
        ProviderError: The list could not be read, or something is left to look after.
    """
    settings = load_settings()
    if settings.vast_api_key is None:
        get_run_logger().warning("No VAST_API_KEY here, so rented machines were not checked")
        _publish("No `VAST_API_KEY` here, so rented machines were not checked.")
        return None
    runs = DeploymentRuns.of(settings, store, settings.cache_dir)
    with connect(settings.vast_api_key, settings.vast_url) as provider:
        found = reap(
            provider,
            runs,
            settings.deployment,
            now=lambda: datetime.now(UTC),
            sleep=time.sleep,
            skew=timedelta(seconds=settings.skew_seconds),
        )
    _show(found)
    if found.left:
        raise ProviderError("; ".join(str(item) for item in found.left))
    return found.to_json()


@task(name="resume-crashed")
def resume_crashed(deployments: Sequence[str]) -> list[str]:
    """Start crashed flow runs again; return their ids."""
    with get_client(sync_client=True) as client:
        resumed = resume(client, deployments, datetime.now(UTC))
    for flow_run_id in resumed:
        get_run_logger().warning("Flow run %s had crashed and starts again", flow_run_id)
    return resumed


def resume(client: SyncPrefectClient, deployments: Sequence[str], now: datetime) -> list[str]:
    """Have crashed flow runs of these deployments scheduled again, as far as that makes sense.

    The state is not forced: only then the server hands the run to a worker, with the same id, and
    its finished segments come from their stored results.
    """
    crashed = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=list(deployments))),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED]))
        ),
        sort=FlowRunSort.START_TIME_DESC,
    )
    resumed: list[str] = []
    for run in crashed:
        age = timedelta(0) if run.state is None else now - run.state.timestamp
        if run.run_count < MAX_RUNS and LEAST_AGE <= age <= MAX_AGE:
            again = AwaitingRetry(message="Resumed by the reaper")
            answer = client.set_flow_run_state(run.id, again)
            if answer.status is SetStateStatus.ACCEPT:
                resumed.append(str(run.id))
    return resumed


def _show(found: ReapReport) -> None:
    for line in found.lines():
        get_run_logger().info(line)
    document = found.to_json()
    rows = [{name: row[name] for name in _COLUMNS} for row in document["instances"]]
    if rows:
        quietly(
            lambda: create_table_artifact(
                rows, key="reaper-machines", description=found.lines()[-1]
            )
        )
    _publish("\n".join(f"- {line}" for line in found.lines()))


_COLUMNS = ("id", "label", "standing", "why", "gone", "problem")


def _publish(text: str) -> None:
    about = "What the reaper found and did"
    quietly(lambda: create_markdown_artifact(text, key="reaper", description=about))
