"""The reaper: ends machines that no lease covers, and starts crashed flow runs again.

It runs on a schedule, in another process than the flows that it looks after, best on another host.
Where it could not look, or could not do what it should, its flow run fails. Wiring only: what an
orphan is, `tsgb.cloud.orphans` says; what is done about it, `tsgb.cloud.reaper`; which flow runs
have crashed, `flows.flow_runs`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.artifacts import quietly
from flows.flow_runs import crash_silent, resume
from flows.server_settings import settings_of_flow
from tsgb.cloud.connect import connect
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.reaper import ReapReport, reap
from tsgb.errors import ProviderError

NAME = "tsgb-reaper"
RESUMED = ("stage1", "stage2")
"""Deployments whose crashed flow runs are started again."""


@flow(name=NAME, flow_run_name="reaper")
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
    settings = settings_of_flow()
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
    """Find flow runs whose process is gone, start crashed ones again; return the ids of these."""
    with get_client(sync_client=True) as client:
        silent = crash_silent(client, deployments, NAME, datetime.now(UTC))
        resumed = resume(client, deployments, datetime.now(UTC))
    for flow_run_id in silent:
        get_run_logger().warning("Flow run %s sends no heartbeat: it has crashed", flow_run_id)
    for flow_run_id in resumed:
        get_run_logger().warning("Flow run %s had crashed and starts again", flow_run_id)
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
