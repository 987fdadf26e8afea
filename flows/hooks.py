"""What happens when a flow run does not end well.

A hook may run in another process than the flow did, so it has the flow run's parameters and nothing
else. Local workers need no clean-up here: they are ended in the segment's `finally`, and by the
kernel if the flow itself was killed. A rented machine is to be released from here.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

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
