"""Both stages in one process on an embedded Prefect API: what `tsgb experiment` runs.

Prefect is imported only while its server starts, so that a wrong option is refused at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flows import embedded
from flows.interrupts import interruptible
from flows.model_choice import choose_models, stored_models
from flows.prepare import (
    arm_configs,
    check_targets,
    new_run_id,
    training_data_of,
    with_checked_names,
    write_configs,
)
from flows.progress import listener, watching
from flows.seeds import sharing, train_all
from flows.workers import Workers
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.urls import canonical_url
from tsgb.cloud.pricing import MICRO, in_dollars
from tsgb.config import Arm, ModelConfig, arm_run_id
from tsgb.errors import Interrupted, UsageError
from tsgb.run_options import MachineKind, RunOptions
from tsgb.settings import child_environment, load_settings

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State


def run_experiment(
    options: RunOptions, *, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Train, then evaluate; the same call with the same `options.run` resumes.

    Progress goes to stderr. Several seeds are trained one after the other, or on several rented
    machines at once, each in a run of its own, and one report pools them. With more machines than
    seeds, each arm of a seed has machines to itself.

    Returns:
        The JSON document: `run_id`, `seed`, `profile`, `env`, `wall_seconds`, `stage1`, `stage2`,
        `results` over all seeds; with several seeds also `runs`, stage 1 of each; where several
        runs rented machines, `held_dollars`, what these have cost. Without `options.evaluate` there
        are no `stage2` and `results`.

    Raises:
        TSGBError: The way in which it ended; `exit_code` says what a process should exit with.
    """
    start = clock()
    settings = load_settings()
    settings.make_cache_dir()
    where = canonical_url(options.store or settings.default_store)
    run_id = options.run or new_run_id(datetime.now().astimezone())
    seeds = options.training_seeds
    names = [run_id if len(seeds) == 1 else f"{run_id}-s{seed}" for seed in seeds]
    arms = options.trained_arms
    if options.machines > len(seeds) * len(arms):
        raise UsageError(
            f"--machines {options.machines}: an arm has one machine at a time, and the seeds have "
            f"{len(seeds) * len(arms)} arms in all: give more --seeds or --arms, or fewer machines"
        )

    def stored(name: str) -> ModelConfig | None:
        return stored_models(Workers(settings, where, name))

    _check_seeds(run_id, seeds, lambda name: stored(name) is not None)
    options = choose_models(options, settings, stored(names[0]), evaluates=True)
    options = with_checked_names(options, settings)
    check_targets(options, len(seeds))
    runs = [
        options.model_copy(update={"run": name, "seed": seed, "store": where})
        for name, seed in zip(names, seeds, strict=True)
    ]
    for run, name in zip(runs, names, strict=True):  # stage 1 would refuse it once Prefect runs
        data = training_data_of(run)
        write_configs(Workers(settings, where, name, run.env), arm_configs(run, data), data)
    name = f"{run_id}-{sha256_hex(where.encode())[:8]}"
    with (
        interruptible(),
        _resumable(run_id, options.seeds),
        embedded.start(settings.prefect_home, name, child_environment()) as api,
        watching() as shown,
    ):
        shown.note(
            f"experiment {run_id}: profile {options.profile}, world {options.env}, "
            f"{len(runs)} seed(s)"
        )
        with embedded.connected(api):
            from flows.stage1 import stage1

            jobs = {
                name: partial(_train, stage1, run) for name, run in zip(names, runs, strict=True)
            }
            with _one_budget(options, where, names) as spent:
                if options.machines > len(seeds):
                    _train_apart(runs, options.machines)
                trained = train_all(jobs, min(options.machines, len(seeds)))
            evaluated = _stage2(names, options, where) if options.evaluate else {}
        if options.evaluate:
            shown.note(f"report: {evaluated['stage2']['report']}")
    return {
        "run_id": run_id,
        "seed": options.seed,
        "profile": options.profile.value,
        "env": options.env,
        "wall_seconds": round(clock() - start, 1),
        "stage1": trained[0],
        **({"runs": dict(zip(names, trained, strict=True))} if len(runs) > 1 else {}),
        **spent,
        **evaluated,
    }


def _run(flow: Flow[..., dict[str, Any]], **parameters: Any) -> State[dict[str, Any]]:
    """Run a flow to its final state, in this process."""
    return cast("State[dict[str, Any]]", flow(**parameters, return_state=True))


def _train(stage1: Flow[..., dict[str, Any]], run: RunOptions) -> dict[str, Any]:
    return _stage1(_run(stage1, **run.parameters()))


def _train_apart(runs: Sequence[RunOptions], machines: int) -> None:
    """Train each arm of each run on machines of its own, self-play first.

    Afterwards all is trained, and stage 1 of each run finds it done.
    """
    from flows.arm import train_arm
    from flows.homes import settle

    jobs: dict[str, Callable[[], object]] = {}
    for run in runs:
        settings = run.applied_to(load_settings())
        workers = Workers(settings, str(run.store), str(run.run), run.env)
        settle(workers, arm_configs(run, training_data_of(run)), apart=True)
    for arm in runs[0].trained_arms:
        for run in runs:
            name = arm_run_id(str(run.run), arm)
            jobs[name] = partial(_result, train_arm, arm=arm.value, **run.parameters())
    train_all(jobs, machines)


def _result(flow: Flow[..., dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    return _run(flow, **parameters).result()


@contextmanager
def _one_budget(
    options: RunOptions, store: str, names: Sequence[str]
) -> Generator[dict[str, float]]:
    """Let all runs on rented machines spend of one budget; say what they spent.

    Yields:
        What the document says of it, once the context is left.
    """
    said: dict[str, float] = {}
    if options.machine is not MachineKind.RENTED:
        yield said
        return
    settings = options.applied_to(load_settings())
    from flows.homes import homes_of
    from flows.rented import budget_of

    arms, apart = options.trained_arms, options.machines > len(names)
    homes = [
        home
        for name in names
        for home in homes_of(Workers(settings, store, name), arms, apart=apart)
    ]
    if len(homes) == 1:
        yield said
        return
    shared = budget_of(settings, store, homes)
    try:
        with sharing(shared):
            yield said
    finally:
        said["held_dollars"] = shared.held / MICRO
        listener().note(
            f"all {len(homes)} runs: {in_dollars(shared.held)} of ${settings.budget:.2f}"
        )


def _stage2(runs: Sequence[str], options: RunOptions, store: str) -> dict[str, Any]:
    from flows.artifacts import key_figures
    from flows.stage1 import STAGE_2
    from flows.stage2 import stage2

    state = _run(
        stage2,
        more_runs=list(runs[1:]),
        **{**options.model_dump(mode="json", include=STAGE_2), "run": runs[0], "store": store},
    )
    evaluated = state.result()
    return {
        "stage2": {
            "state": state.type.value,
            "flow_run_id": str(state.state_details.flow_run_id),
            "report": evaluated["report"],
            "summary": evaluated["summary_path"],
        },
        "results": key_figures(evaluated["summary"]),
    }


def _stage1(state: State[dict[str, Any]]) -> dict[str, Any]:
    trained = state.result()
    return {
        "state": state.type.value,
        "flow_run_id": str(state.state_details.flow_run_id),
        "checkpoint": trained["checkpoint"],
        "step": trained["step"],
        "attempts": trained["attempts"][Arm.SELFPLAY.value],
        "attempts_by_arm": trained["attempts"],
    }


@contextmanager
def _resumable(run_id: str, seeds: int | None) -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        again = f"--run-id {run_id}" + (f" --seeds {seeds}" if seeds else "")
        raise Interrupted(f"stopped; all that was trained is saved: go on with {again}") from error


def _check_seeds(run_id: str, seeds: range, is_begun: Callable[[str], bool]) -> None:
    """Refuse to begin anew what was begun with one seed, or with several.

    Raises:
        UsageError: One seed is asked for and there are runs of several, or the other way round.
    """
    several = f"{run_id}-s{seeds[0]}"
    if len(seeds) == 1 and is_begun(several) and not is_begun(run_id):
        raise UsageError(
            f"{run_id} was begun with several seeds, the first of them in {several}: give --seeds "
            "too, or choose another --run-id"
        )
    if len(seeds) > 1 and is_begun(run_id):
        raise UsageError(
            f"{run_id} was begun with one seed, and several would be trained in {several} and so "
            "on: leave --seeds away, or choose another --run-id"
        )
