"""A run on rented machines as Prefect tasks: an attempt, and within it a task a step.

The attempt is the task that Prefect retries. What happens in it, and why a retry is always safe, is
in `tsgb.cloud`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact

from flows.progress import listener
from flows.renting import ArmsWork, renting
from flows.tasks import artifact_key, only_preemption, quietly
from flows.workers import Workers, as_json
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.bill import RentalBill, make_bill
from tsgb.cloud.lifecycle import Lifecycle
from tsgb.config import Arm
from tsgb.settings import Settings
from tsgb.types import CheckpointRef

RETRIES = 10_000
"""Bounds nothing: budget, refusals, lost hosts and failed workers have bounds of their own."""

R = TypeVar("R")
Rented = Lifecycle[dict[str, CheckpointRef]]


def as_task(name: str, what: Callable[[], R]) -> R:
    """Run a step as a task; without retries of its own, since the attempt is retried as a whole."""
    # With a key of its own, or it would take over that of the attempt, and be its result.
    return task(name=name, persist_result=False, result_storage_key="step-{task_run.id}")(what)()


@task(
    name="attempt",
    task_run_name="attempts-{run}",
    retry_condition_fn=only_preemption,
    persist_result=True,
    result_serializer="json",
    result_storage_key="tsgb-{parameters[run]}-{parameters[key]}-rented.json",
)
def attempt(run: str, key: str, rented: Rented) -> dict[str, dict[str, Any]]:  # noqa: ARG001 - part of the result's name
    """One machine from its offer to its end; gives the checkpoints, by arm, once all are done."""
    return as_json(rented.attempt(as_task))


def train_rented(
    settings: Settings,
    *,
    run: str,
    key: str,
    store: str,
    arms: Sequence[str],
    env: str,
    budget: float | None,
    max_price: float | None,
    vast_url: str | None,
) -> dict[str, dict[str, Any]]:
    """Train all arms of a run on rented machines, one at a time; gives their checkpoints.

    Raises:
        TSGBError: It cannot go on; everything is kept, and nothing is left rented.
    """
    logger = get_run_logger()

    def tell(line: str) -> None:
        logger.info(line)
        listener().note(line)

    workers = Workers(settings, store, run, env)
    with renting(
        workers,
        [Arm(name) for name in arms],
        budget=budget,
        max_price=max_price,
        vast_url=vast_url,
        tell=tell,
    ) as (rented, work):
        work.pack()  # what it says is said before a machine costs anything
        retried = attempt.with_options(
            retries=RETRIES, retry_delay_seconds=settings.retry_delay_seconds
        )
        try:
            refs = retried(run, key, rented)
        except BaseException as error:
            _leave(rented, work, f"{type(error).__name__}: {error}")
            raise
        _leave(rented, work, "done")
        return refs


def _leave(rented: Rented, work: ArmsWork, reason: str) -> None:
    """The lease ends, and what it all cost is written down; neither may hide how it ended."""
    session = rented.session
    try:
        session.end(reason)
        summary = make_bill(session.documents, session.ledger, work.updates())
        if summary.machines:
            _show(session.documents.run, summary)
    except Exception as error:  # noqa: BLE001 - the reason of the flow's end counts
        session.note(f"no summary: {type(error).__name__}: {error}")


def _show(run: RunStore, summary: RentalBill) -> None:
    run.write_json("summary.json", summary.as_json())
    listener().note(f"{summary}; by machine in {run.run_url}/summary.json")
    key = artifact_key(f"machines-{run.run_id}")
    quietly(lambda: create_table_artifact(summary.rows(), key=key, description=str(summary)))
