"""Both stages in one process on an embedded Prefect API: what `tsgb experiment` runs.

Prefect is imported only while its server starts, so that a wrong option is said at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows import embedded
from flows.interrupts import interruptible
from flows.plan import arm_configs, check_targets, new_run_id, parse_arms, write_configs
from flows.progress import watching
from flows.workers import Workers
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import SEEDS, Arm, Profile
from tsgb.errors import Interrupted
from tsgb.eval.request import identities
from tsgb.settings import Settings, child_environment, load_settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def run_experiment(
    *,
    run_id: str | None = None,
    profile: Profile = Profile.DEMO,
    env: str = "glyph",
    seed: int = 0,
    world_seed: int = 0,
    store: str | None = None,
    arms: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    rented: Mapping[str, Any] | None = None,
    evaluates: bool = True,
    target_class: Sequence[str] = (),
    judge_class: str | None = None,
    fresh: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Train, then evaluate; the same call with the same `run_id` goes on where it was stopped.

    Progress goes to stderr. The arguments are those of `stage1`, with `machine`, `budget` and the
    like in `rented`; the profile `paper` trains five seeds from `seed` on, each a run of its own,
    and pools them in one report. Without `evaluates` stage 2 is left out. `target_class`,
    `judge_class` and `fresh` are those of `stage2`.

    Returns:
        The JSON document: `run_id`, `seed`, `profile`, `env`, `wall_seconds`, `stage1`, `stage2`,
        `results` over all seeds; with several seeds also `runs`, stage 1 of each.

    Raises:
        TSGBError: The way in which it ended; `exit_code` says what a process should exit with.
    """
    start = clock()
    settings = load_settings()
    settings.make_cache_dir()
    where = canonical_url(store or settings.default_store)
    run_id = run_id or new_run_id(datetime.now().astimezone())
    chosen = parse_arms(arms, profile)
    seeds = range(seed, seed + SEEDS[profile])
    runs = {run_id if len(seeds) == 1 else f"{run_id}-s{one}": one for one in seeds}
    parameters = {
        run: {
            "run": run,
            "profile": profile,
            "env": env,
            "seed": one,
            "world_seed": world_seed,
            "store": where,
            "arms": [arm.value for arm in chosen],
            "targets": None if targets is None else list(targets),
            "overrides": None if overrides is None else dict(overrides),
            **(rented or {}),
        }
        for run, one in runs.items()
    }
    own = {
        "env": env,
        "target_class": list(target_class),
        "judge_class": judge_class,
        "fresh": fresh,
    }
    check_targets(targets, env, world_seed, target_class)
    identities(target_class, judge_class, fresh=fresh)  # before anything is trained
    _check(settings, where, parameters, chosen)
    name = f"{run_id}-{sha256_hex(where.encode())[:8]}"
    with (
        interruptible(),
        _resumable(run_id),
        embedded.start(settings.prefect_home, name, child_environment()) as api,
        watching() as listener,
    ):
        listener.note(f"experiment {run_id}: profile {profile}, world {env}, {len(runs)} seed(s)")
        with embedded.connected(api):
            from flows.stage1 import stage1

            trained = {
                run: _stage1(stage1(**p, return_state=True)) for run, p in parameters.items()
            }
            evaluated = _stage2(runs, targets, where, own) if evaluates else {}
        if evaluates:
            listener.note(f"report: {evaluated['stage2']['report']}")
    return {
        "run_id": run_id,
        "seed": seed,
        "profile": profile.value,
        "env": env,
        "wall_seconds": round(clock() - start, 1),
        "stage1": next(iter(trained.values())),
        **({"runs": trained} if len(runs) > 1 else {}),
        **evaluated,
    }


def _stage2(
    runs: Mapping[str, int],
    targets: Sequence[str] | None,
    store: str,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    from flows.stage2 import key_figures, stage2

    state = stage2(
        run=next(iter(runs)),
        targets=None if targets is None else list(targets),
        store=store,
        more_runs=list(runs)[1:],
        **own,
        return_state=True,
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


def _check(
    settings: Settings, store: str, parameters: Mapping[str, Mapping[str, Any]], arms: Sequence[Arm]
) -> None:
    """Say now what is wrong with the options; stage 1 would say it only once Prefect runs."""
    for run, given in parameters.items():
        named = {
            name: given[name] for name in ("profile", "env", "world_seed", "seed", "overrides")
        }
        write_configs(Workers(settings, store, run), arm_configs(arms, **named))


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
def _resumable(run_id: str) -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped; all that was trained is saved: go on with --run-id {run_id}"
        ) from error
