"""Stage 1: self-play training in segments, each of which survives the loss of its machines.

Wiring only: what a segment does is in `flows.workers`, when it is retried in `flows.tasks`.
"""

# No postponed annotations: `flow.serve` hands the flow to its processes by value, where names of
# this module are not found again.

from collections.abc import Sequence
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows import rented, tasks
from flows.hooks import release_machines, say_how_to_resume
from flows.plan import arm_configs, check_targets, parse_arms, write_configs
from flows.progress import listener
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import Arm, Profile
from tsgb.settings import load_settings
from tsgb.types import CheckpointRef

CHECKPOINT_READY = "tsgb.checkpoint.ready"


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
def stage1(
    run: str | None = None,
    *,
    profile: Profile = Profile.DEMO,
    env: str = "glyph",
    seed: int = 0,
    world_seed: int = 0,
    store: str | None = None,
    arms: list[str] | None = None,
    targets: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    machine: Literal["local", "vast"] = "local",
    budget: float | None = None,
    max_price: float | None = None,
    vast_url: str | None = None,
) -> dict[str, Any]:
    """Train all arms to their last step.

    Args:
        run: Run id; the same one again resumes. None names it after the flow run.
        profile: How much is spent.
        env: The world.
        seed: Draws everything that happens in the world.
        world_seed: Draws the world.
        store: Where runs are kept, any fsspec URL; None for the default of the settings.
        arms: What is trained; None for the profile's.
        targets: What stage 2 shall evaluate on; None for all of the world's.
        overrides: Of the run's configuration, nested as it is.
        machine: `local` trains in processes here, `vast` on one rented machine at a time.
        budget: Dollars that the whole run may cost; None for that of the settings.
        max_price: Dollars an hour that a machine may cost; None for that of the settings.
        vast_url: A simulator of the service; None for that of the settings.

    Returns:
        Where the checkpoints are: `run`, `store`, `targets`, `checkpoint` (URL, self-play's),
        `step`, `checkpoints` by arm, and `attempts` by arm: how many workers it took; a rented
        machine that never came to train is none.
    """
    settings = load_settings()
    run = run or _run_id()
    where = canonical_url(store or settings.default_store)
    workers = Workers(settings, where, run, env)
    chosen = parse_arms(arms, profile)
    check_targets(targets, env, world_seed)
    configs = arm_configs(
        chosen, profile=profile, env=env, world_seed=world_seed, seed=seed, overrides=overrides
    )
    key = write_configs(workers, configs)
    names = [arm.value for arm in chosen]
    listener().note(f"stage 1: run {run}, {', '.join(names)}, in {where}")
    refs: dict[str, dict[str, Any]] = {}
    if machine == "vast":
        refs = rented.train_rented(
            settings,
            run=run,
            key=key,
            store=where,
            arms=names,
            env=env,
            budget=budget,
            max_price=max_price,
            vast_url=vast_url,
        )
    else:
        tasks.resilient(tasks.build_models, settings)(run, key, where, env)
        for index in range(configs[Arm.SELFPLAY].segments):
            refs = tasks.resilient(tasks.segment, settings)(run, key, where, names, index, env)
    main = CheckpointRef(**refs[Arm.SELFPLAY.value])
    _announce(main, run=run, store=where, targets=targets, env=env)
    return {
        "run": run,
        "store": where,
        "targets": targets,
        "checkpoint": main.url,
        "step": main.step,
        "checkpoints": refs,
        "attempts": {arm.value: workers.attempts(arm) for arm in chosen},
    }


def _announce(
    checkpoint: CheckpointRef, *, run: str, store: str, targets: Sequence[str] | None, env: str
) -> None:
    """Emit the event that starts stage 2 where both are deployed; repeated, it has the same id."""
    emit_event(
        event=CHECKPOINT_READY,
        id=uuid5(NAMESPACE_URL, f"{checkpoint.url}#{checkpoint.sha256}"),
        resource={"prefect.resource.id": f"tsgb.run.{run}", "prefect.resource.name": run},
        payload={
            "run": run,
            "store": store,
            "checkpoint": checkpoint.url,
            "targets": targets,
            "env": env,
        },
    )
