"""Every task: one library call each, with its retries and the key that its result is kept under.

They are called directly, never submitted: only then a signal reaches the loop that watches the
workers, and its `finally` ends them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect import Task, get_run_logger, task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State, TaskRun

from flows.progress import bar_of
from flows.workers import Workers, as_json
from tsgb.config import Arm
from tsgb.errors import Preempted, StoreUnreachable
from tsgb.processes import JobState
from tsgb.settings import Settings, load_settings

_ARTIFACT_SECONDS = 5.0


P = ParamSpec("P")
R = TypeVar("R")


def resilient(given: Task[P, R], settings: Settings) -> Task[P, R]:
    """The task with the retries that the settings grant to a lost machine."""
    return given.with_options(
        retries=settings.retries, retry_delay_seconds=settings.retry_delay_seconds
    )


def only_preemption(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what another machine or a store that answers again can heal, and nothing else."""
    return isinstance(state.result(raise_on_failure=False), (Preempted, StoreUnreachable))


@task(
    name="build-models",
    retry_condition_fn=only_preemption,
    persist_result=True,
    result_serializer="json",
    result_storage_key="tsgb-{parameters[run]}-{parameters[key]}-models.json",
)
def build_models(
    run: str,
    key: str,  # noqa: ARG001 - part of the result's name
    store: str,
    env: str,
) -> bool:
    """Build the models that a run needs."""
    Workers(load_settings(), store, run, env).build(Arm.SELFPLAY, _Watch())
    return True


@task(
    name="segment",
    task_run_name="segment-{index:03d}",
    retry_condition_fn=only_preemption,
    persist_result=True,
    result_serializer="json",
    result_storage_key="tsgb-{parameters[run]}-{parameters[key]}-segment-{parameters[index]}.json",
)
def segment(
    run: str,
    key: str,  # noqa: ARG001 - part of the result's name
    store: str,
    arms: Sequence[str],
    index: int,
    env: str,
) -> dict[str, dict[str, Any]]:
    """Train every arm to the end of one segment; gives the checkpoints, by arm."""
    workers = Workers(load_settings(), store, run, env)
    refs = workers.train([Arm(name) for name in arms], index, _Watch())
    quietly(lambda: _checkpoint_table(run, index, as_json(refs)))
    return as_json(refs)


@task(name="evaluate", task_run_name="evaluate-{run}", retry_condition_fn=only_preemption)
def evaluate(
    run: str,
    store: str,
    eval_id: str,
    env: str | None,
    target_class: Sequence[str],
    judge_class: str | None,
) -> None:
    """Fill the cells of an evaluation; those that are there already are not filled again."""
    Workers(load_settings(), store, run, env).evaluate(
        Arm.SELFPLAY, eval_id, _Watch(), target_class=target_class, judge_class=judge_class
    )


@task(name="report", retry_condition_fn=only_preemption)
def report(
    run: str, store: str, eval_id: str, more_runs: Sequence[str], env: str | None
) -> dict[str, Any]:
    """Merge the cells into the report; gives its summary."""
    settings = load_settings()
    workers = Workers(settings, store, run, env)
    urls = [Workers(settings, store, other).open().run_url for other in more_runs]
    workers.report(Arm.SELFPLAY, eval_id, urls, _Watch())
    return workers.open().read_json(f"reports/{eval_id}/summary.json")


class _Watch:
    """Shows the workers' progress as an artifact of the task run, which nothing depends on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock()
        self._artifact: Any = None
        self._started: set[str] = set()

    def __call__(self, states: Sequence[JobState]) -> None:
        for state in states:
            if state.started is not None and state.key not in self._started:
                self._started.add(state.key)
                get_run_logger().info("Started the worker %s", state.key)
        if self._clock() >= self._next:
            self._next = self._clock() + _ARTIFACT_SECONDS
            quietly(lambda: self._show(states))

    def _show(self, states: Sequence[JobState]) -> None:
        bars = [bar_of(state) for state in states]
        total = sum(bar.total for bar in bars)
        percent = 100.0 * sum(bar.done for bar in bars) / total if total else 0.0
        text = "; ".join(f"{bar.key} {bar.done}/{bar.total} {bar.text}" for bar in bars)
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, description=text)
        else:
            update_progress_artifact(self._artifact, percent, description=text)


def quietly(show: Callable[[], object]) -> None:
    """An API that is down for a while must not end a training run."""
    try:
        show()
    except (httpx.HTTPError, OSError) as error:
        get_run_logger().warning("No artifact: %s", error)


def _checkpoint_table(run: str, index: int, refs: Mapping[str, Mapping[str, Any]]) -> None:
    create_table_artifact(
        [
            {"arm": arm, **{name: ref[name] for name in ("step", "episode", "attempt", "name")}}
            for arm, ref in refs.items()
        ],
        key=artifact_key(f"checkpoints-{run}"),
        description=f"Checkpoints of run {run} after segment {index}",
    )


def artifact_key(text: str) -> str:
    """Lower-case letters, digits and dashes: what Prefect takes as a key."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
