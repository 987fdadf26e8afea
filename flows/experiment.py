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
from flows.progress import Listener, listener, watching
from flows.seeds import sharing, train_all
from flows.workers import Workers
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.urls import canonical_url
from tsgb.cloud.pricing import MICRO, in_dollars
from tsgb.config import Arm, ModelConfig, arm_run_id
from tsgb.errors import Interrupted, UsageError
from tsgb.run_options import MachineKind, RunOptions
from tsgb.settings import Settings, child_environment, load_settings

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
    runs = prepared_runs(options, settings, where, run_id)
    names = names_of(runs)
    with embedded_api(settings, where, run_id, options.seeds) as shown:
        shown.note(
            f"experiment {run_id}: profile {options.profile}, world {options.env}, "
            f"{len(runs)} seed(s)"
        )
        with one_budget(runs, where) as spent:
            trained = train(runs)
        evaluated = evaluate(runs) if options.evaluate else {}
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


def names_of(runs: Sequence[RunOptions]) -> list[str]:
    """Return the ids of runs, as `prepared_runs` chose them."""
    return [str(run.run) for run in runs]


def prepared_runs(
    options: RunOptions, settings: Settings, where: str, run_id: str
) -> list[RunOptions]:
    """Check the options of an experiment, and write the configurations of its runs.

    Args:
        options: Options of the experiment.
        settings: Settings of this process.
        where: URL of the store.
        run_id: Name of the experiment.

    Returns:
        The options of the run of each seed, which names itself and its store.

    Raises:
        UsageError: An option breaks its rule.
        ConfigError: A run exists with another configuration.
    """
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
    return runs


@contextmanager
def embedded_api(
    settings: Settings, where: str, run_id: str, seeds: int | None
) -> Generator[Listener]:
    """Run what is inside on an embedded Prefect API of its own, with progress on stderr.

    Raises:
        Interrupted: A signal came; says how the same command goes on.
    """
    name = f"{run_id}-{sha256_hex(where.encode())[:8]}"
    with (
        interruptible(),
        _resumable(run_id, seeds),
        embedded.start(settings.prefect_home, name, child_environment()) as api,
        watching() as shown,
        embedded.connected(api),
    ):
        yield shown


def train(runs: Sequence[RunOptions]) -> list[dict[str, Any]]:
    """Train runs to their last step: one after the other, or on several rented machines at once.

    Returns:
        Stage 1 of each run, for the JSON document.
    """
    from flows.stage1 import stage1

    machines = runs[0].machines
    if machines > len(runs):
        _train_apart(runs, machines)
    jobs = {str(run.run): partial(_train, stage1, run) for run in runs}
    return train_all(jobs, min(machines, len(runs)))


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
    for arm in Arm:
        for run in runs:
            if arm in run.trained_arms:
                name = arm_run_id(str(run.run), arm)
                jobs[name] = partial(_result, train_arm, arm=arm.value, **run.parameters())
    train_all(jobs, machines)


def _result(flow: Flow[..., dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    return _run(flow, **parameters).result()


@contextmanager
def one_budget(runs: Sequence[RunOptions], store: str) -> Generator[dict[str, float]]:
    """Let all runs on rented machines spend of one budget; say what they spent.

    Yields:
        What the document says of it, once the context is left.
    """
    said: dict[str, float] = {}
    options = runs[0]
    if options.machine is not MachineKind.RENTED:
        yield said
        return
    settings = options.applied_to(load_settings())
    from flows.homes import homes_of
    from flows.rented import budget_of

    apart = options.machines > len(runs)
    homes = [
        home
        for run in runs
        for home in homes_of(Workers(settings, store, str(run.run)), run.trained_arms, apart=apart)
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


def evaluate(runs: Sequence[RunOptions]) -> dict[str, Any]:
    """Evaluate the guards of runs together, once.

    Returns:
        `stage2` and `results` of the JSON document.
    """
    from flows.artifacts import key_figures
    from flows.stage1 import STAGE_2
    from flows.stage2 import stage2

    state = _run(
        stage2,
        more_runs=names_of(runs[1:]),
        **runs[0].model_dump(mode="json", include=STAGE_2),
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
