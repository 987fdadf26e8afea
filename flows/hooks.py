"""Hooks of flow runs that do not end well.

A hook may run in another process than the flow did, so it has the flow run's parameters and nothing
else. Local workers need no clean-up here: they are ended in the segment's `finally`, and by the
kernel if the flow itself was killed. Rented machines are ended here too, when the flow could not;
but no hook runs after `kill -9` of flow and worker, so lease and reaper are what one counts on.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from flows.flow_runs import crash_tasks
from flows.rented import rental_session
from flows.server_settings import complete
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url
from tsgb.cloud.recover import release_all
from tsgb.config import Arm
from tsgb.run_options import MachineKind, read_options
from tsgb.settings import load_settings

_WAYS = {
    "FAILED": "mend the reason, then start it again with the same parameters",
    "CRASHED": "start it again with the same parameters, or `prefect flow-run retry {id}`",
    "CANCELLED": "start it again with the same parameters",
}


def say_how_to_resume(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Log what is kept and how to go on."""
    way = _WAYS.get(state.type.value, _WAYS["CANCELLED"]).format(id=flow_run.id)
    flow_run_logger(flow_run, flow).warning(
        "%s ended as %s; checkpoints and finished segments are kept: %s",
        flow_run.name,
        state.name,
        way,
    )


def release_machines(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End what the run has rented, if its own process could not; errors are logged, never raised.

    A flow that holds the run's lock is alive and looks after its machine itself.
    """
    parameters = dict(flow_run.parameters)
    arm = parameters.pop("arm", None)  # of a flow that trains one
    if parameters.get("machine") != MachineKind.RENTED:
        return
    logger = flow_run_logger(flow_run, flow)
    try:
        if flow_run.deployment_id is not None:
            complete(logger.warning)
        options = read_options(**parameters)
        settings = options.applied_to(load_settings())
        where = canonical_url(options.store or settings.default_store)
        run = options.run or f"run-{str(flow_run.id)[:8]}"
        workers = Workers(settings, where, run, alone=None if arm is None else Arm(arm))
        with rental_session(workers, logger.warning) as session:
            num = release_all(session, f"its flow run ended as {state.name}")
        logger.warning("%d machines of run %s were still there, and are gone", num, workers.home)
    except Exception:
        logger.exception("machines of the run may be left: `tsgb reap` or the reaper ends them")


def end_task_runs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Say of task runs whose process was killed that they do not run any more."""
    with get_client(sync_client=True) as client:
        num = crash_tasks(client, flow_run.id, f"its flow run ended as {state.name}")
    if num:
        flow_run_logger(flow_run, flow).info("%d task runs were killed with it", num)
