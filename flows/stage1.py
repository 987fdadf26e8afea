"""Stage 1: self-play training in segments, each of which survives the loss of its machines.

Wiring only: the segments are in `flows.training`, how one is trained in `flows.machines`.
"""

# No postponed annotations: `flow.serve` hands the flow to its processes by value, where names of
# this module are not found again.

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.artifacts import tag_run
from flows.cancellation import check_cancelled, ends_when_cancelled
from flows.hooks import end_task_runs, release_machines, say_how_to_resume
from flows.model_choice import choose_models, stored_models
from flows.parameters import takes
from flows.prepare import (
    arm_configs,
    check_targets,
    training_data_of,
    with_checked_names,
    write_configs,
)
from flows.server_settings import settings_of_flow
from flows.training import train_segments
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import Arm
from tsgb.run_options import NOT_OF_A_RUN, RunOptions, read_options
from tsgb.types import CheckpointRef

CHECKPOINT_READY = "tsgb.checkpoint.ready"
STAGE_2 = {
    *("run", "store", "env", "targets", "targets_file", "adaptive", "max_requests", "max_cost"),
    *("target_class", "judge_class", "judge", "human_labels", "guards", "fresh"),
}
"""Options that stage 2 shares, and that the event of its start carries."""


def _run_id() -> str:
    """Return the run's id; without one it follows from the flow run, so that a retry finds it."""
    given: str | None = flow_run.parameters.get("run")
    return given or f"run-{str(flow_run.id)[:8]}"


def _flow_run_name() -> str:
    return f"stage1-{_run_id()}"


@flow(
    name="tsgb",
    flow_run_name=_flow_run_name,
    on_failure=[release_machines, say_how_to_resume],
    on_crashed=[release_machines, end_task_runs, say_how_to_resume],
    on_cancellation=[release_machines, end_task_runs, say_how_to_resume],
)
@ends_when_cancelled
@takes(name for name in RunOptions.model_fields if name not in NOT_OF_A_RUN)
def stage1(**options: Any) -> dict[str, Any]:
    """Train all arms to their last step.

    Returns:
        Where the checkpoints are: `run`, `store`, `targets`, `checkpoint` (URL, self-play's),
        `step`, `checkpoints` by arm, and `attempts` by arm: the number of workers that trained it.
        A rented machine that never began to train is not counted.
    """
    chosen = read_options(**options)
    settings = chosen.applied_to(settings_of_flow())
    run = chosen.run or _run_id()
    tag_run(run)
    store = canonical_url(chosen.store or settings.default_store)
    workers = Workers(settings, store, run, chosen.env)
    chosen = choose_models(chosen, settings, stored_models(workers))
    chosen = with_checked_names(chosen, settings)
    check_targets(chosen)
    data = training_data_of(chosen)
    configs = arm_configs(chosen, data)
    key = write_configs(workers, configs, data)
    names = ", ".join(arm.value for arm in configs)
    notes = [f"stage 1: run {run}, {names}, in {store}", *([] if data is None else [str(data)])]
    refs = train_segments(workers, configs, key, chosen.machine, notes)
    main = CheckpointRef(**refs[Arm.SELFPLAY.value])
    check_cancelled()  # what nobody wants any more starts no stage 2
    _announce(main, chosen.model_copy(update={"run": run, "store": store}))
    return {
        "run": run,
        "store": store,
        "targets": chosen.targets,
        "checkpoint": main.url,
        "step": main.step,
        "checkpoints": refs,
        "attempts": {arm.value: workers.attempts(arm) for arm in configs},
    }


def _announce(checkpoint: CheckpointRef, options: RunOptions) -> None:
    """Emit the event that starts stage 2 where both are deployed; repeated, it has the same id."""
    emit_event(
        event=CHECKPOINT_READY,
        id=uuid5(NAMESPACE_URL, f"{checkpoint.url}#{checkpoint.sha256}"),
        resource={
            "prefect.resource.id": f"tsgb.run.{options.run}",
            "prefect.resource.name": str(options.run),
        },
        payload={"checkpoint": checkpoint.url, **options.model_dump(mode="json", include=STAGE_2)},
    )
