"""Stage 1: self-play training in segments, each of which survives the loss of its machines.

Wiring only: what a segment does is in `flows.workers`, when it is retried in `flows.tasks`.
"""

# No postponed annotations: `flow.serve` hands the flow to its processes by value, where names of
# this module are not found again.

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows import rented, tasks
from flows.hooks import release_machines, say_how_to_resume
from flows.parameters import takes
from flows.plan import arm_configs, check_targets, write_configs
from flows.progress import listener
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import Arm
from tsgb.run_options import MachineKind, RunOptions, read_options
from tsgb.settings import load_settings
from tsgb.types import CheckpointRef

CHECKPOINT_READY = "tsgb.checkpoint.ready"
STAGE_2 = {"run", "store", "env", "targets", "target_class", "judge_class", "fresh"}
"""Options that stage 2 shares, and that the event of its start carries."""


def _run_id() -> str:
    """The run's id; a flow run without one names it after itself, so that its retry finds it."""
    given: str | None = flow_run.parameters.get("run")
    return given or f"run-{str(flow_run.id)[:8]}"


def _flow_run_name() -> str:
    return f"stage1-{_run_id()}"


@flow(
    name="tsgb",
    flow_run_name=_flow_run_name,
    on_failure=[release_machines, say_how_to_resume],
    on_crashed=[release_machines, say_how_to_resume],
    on_cancellation=[release_machines, say_how_to_resume],
)
@takes(name for name in RunOptions.model_fields if name != "evaluate")
def stage1(**options: Any) -> dict[str, Any]:
    """Train all arms to their last step.

    Returns:
        Where the checkpoints are: `run`, `store`, `targets`, `checkpoint` (URL, self-play's),
        `step`, `checkpoints` by arm, and `attempts` by arm: the number of workers that trained it.
        A rented machine that never began to train is not counted.
    """
    chosen = read_options(**options)
    settings = load_settings()
    run = chosen.run or _run_id()
    store = canonical_url(chosen.store or settings.default_store)
    workers = Workers(settings, store, run, chosen.env)
    check_targets(chosen)
    configs = arm_configs(chosen)
    key = write_configs(workers, configs)
    names = [arm.value for arm in configs]
    listener().note(f"stage 1: run {run}, {', '.join(names)}, in {store}")
    refs: dict[str, dict[str, Any]] = {}
    if chosen.machine is MachineKind.RENTED:
        refs = rented.train_rented(
            settings,
            run=run,
            key=key,
            store=store,
            arms=names,
            env=chosen.env,
            budget=chosen.budget,
            max_price=chosen.max_price,
            vast_url=chosen.service_url,
        )
    else:
        tasks.resilient(tasks.build_models, settings)(run, key, store, chosen.env)
        for index in range(configs[Arm.SELFPLAY].segments):
            refs = tasks.resilient(tasks.segment, settings)(
                run, key, store, names, index, chosen.env
            )
    main = CheckpointRef(**refs[Arm.SELFPLAY.value])
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
