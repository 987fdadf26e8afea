"""Every task: one library call each, with its retries and the key that its result is kept under.

They are called directly: only then a signal reaches the loop that watches the workers, and its
`finally` ends them. `evaluate_part` alone is submitted, to a cluster, and watches its flow run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run

from flows.artifacts import quietly
from flows.cancellation import while_flow_runs
from flows.progress import Bar, Listener, ProgressText, listener, listening, shown
from flows.server_settings import complete
from flows.workers import Checkpoints, Workers, as_json
from tsgb.cloud.lifecycle import Machine
from tsgb.config import Arm
from tsgb.errors import Preempted, StoreUnreachable
from tsgb.eval.additions import Additions
from tsgb.settings import Settings, load_settings

_ARTIFACT_SECONDS = 5.0
_LOG_SECONDS = 60.0


P = ParamSpec("P")
R = TypeVar("R")


def resilient(given: Task[P, R], settings: Settings, retries: int | None = None) -> Task[P, R]:
    """Return the task with retries after a lost machine; without `retries` those of the settings.

    Args:
        given: The task.
        settings: Retries, and the delay before each.
        retries: Other number of retries.
    """
    return given.with_options(
        retries=settings.retries if retries is None else retries,
        retry_delay_seconds=settings.retry_delay_seconds,
    )


def only_preemption(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what another machine or a store that answers again can heal, and nothing else."""
    return isinstance(state.result(raise_on_failure=False), (Preempted, StoreUnreachable))


def as_task(name: str, function: Callable[[], R]) -> R:
    """Run a step as a task; without retries of its own, since the segment is retried as a whole."""
    # With a key of its own, or it would take over that of the segment, and be its result.
    step = task(name=name, persist_result=False, result_storage_key="step-{task_run.id}")
    return step(function)()


@task(
    name="segment",
    task_run_name="segment-{index:03d}",
    retry_condition_fn=only_preemption,
    persist_result=True,
    result_serializer="json",
    result_storage_key="tsgb-{parameters[run]}-{parameters[key]}-segment-{parameters[index]}.json",
)
def segment(
    run: str,  # noqa: ARG001 - part of the result's name
    key: str,  # noqa: ARG001 - part of the result's name
    index: int,
    machine: Machine[Checkpoints],
    show: Callable[[], object],
) -> dict[str, dict[str, Any]]:
    """Train every arm to the end of one segment; gives the checkpoints, by arm.

    `show` is called when an attempt has ended, well or not.
    """
    try:
        return as_json(machine.attempt(index, as_task))
    finally:
        show()


@task(name="evaluate", task_run_name="evaluate-{run}", retry_condition_fn=only_preemption)
def evaluate(
    run: str,
    store: str,
    eval_id: str,
    env: str | None,
    added: Additions,
) -> None:
    """Fill the cells of an evaluation; those that are there already are not filled again."""
    Workers(load_settings(), store, run, env).evaluate(Arm.SELFPLAY, eval_id, added)


@task(
    name="evaluate-part",
    task_run_name="evaluate-{run}-part-{part}",
    retry_condition_fn=only_preemption,
)
def evaluate_part(
    run: str,
    store: str,
    eval_id: str,
    env: str | None,
    added: Additions,
    part: int,
    parts: int,
) -> None:
    """Fill one part of an evaluation's cells, in a process of a cluster.

    It may be on another machine than the flow, so it takes settings from its own environment and
    from the server.
    """
    complete(get_run_logger().warning)
    workers = Workers(load_settings(), store, run, env)
    with listening(PrefectListener(listener())), while_flow_runs():
        workers.evaluate_part(Arm.SELFPLAY, eval_id, part, parts, added)


@task(name="report", retry_condition_fn=only_preemption)
def report(
    run: str, store: str, eval_id: str, more_runs: Sequence[str], env: str | None
) -> dict[str, Any]:
    """Merge the cells into the report; gives its summary."""
    settings = load_settings()
    workers = Workers(settings, store, run, env)
    urls = [Workers(settings, store, other).open().run_url for other in more_runs]
    workers.report(Arm.SELFPLAY, eval_id, urls)
    return workers.open().read_signed_json(f"reports/{eval_id}/summary.json")


class PrefectListener:
    """Shows notes and progress in the log of the run, and progress as an artifact of the task run.

    The log has a line about the workers every minute, and at each tenth of their work.
    """

    def __init__(self, to: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        """Wrap another listener.

        Args:
            to: Is told the same.
            clock: Monotonic seconds.
        """
        self._to = to
        self._clock = clock
        self._text = ProgressText(_LOG_SECONDS, clock)
        self._task: object = None
        self._next = 0.0
        self._artifact: Any = None

    def note(self, text: str) -> None:
        """Log a line."""
        get_run_logger().info("%s", shown(text))
        self._to.note(text)

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Log a line if it is time, and update the artifact, which each task run has of its own."""
        self._to.bars(stage, bars)
        if (stage, task_run.id) != self._task:
            self._task, self._artifact = (stage, task_run.id), None
            self._next = self._clock() + _ARTIFACT_SECONDS
        line = self._text.due(stage, bars)
        if line is not None:
            get_run_logger().info("%s", shown(line))
        if self._clock() >= self._next:
            self._next = self._clock() + _ARTIFACT_SECONDS
            quietly(lambda: self._show(bars))

    def _show(self, bars: Sequence[Bar]) -> None:
        total = sum(bar.total for bar in bars)
        percent = 100.0 * sum(bar.done for bar in bars) / total if total else 0.0
        text = shown(self._text.describe(bars))
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, description=text)
        else:
            update_progress_artifact(self._artifact, percent, description=text)
