"""The study: one experiment for each world and each level of coverage, and one summary of all.

It is what `tsgb experiment --profile study` runs. Its parts are ordinary runs and evaluations in
the same store, so each of them can be looked at, resumed and evaluated again alone.
"""

from __future__ import annotations

import json
import resource
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.experiment import embedded_api, evaluate, one_budget, prepared_runs, train
from flows.prepare import new_run_id
from flows.workers import Workers
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.urls import canonical_url, place
from tsgb.config import PARTS_OF_DISCOVERY, Arm, merge
from tsgb.errors import UsageError
from tsgb.eval.study_records import StudyPlan
from tsgb.run_options import MachineKind, RunOptions
from tsgb.settings import Settings, load_settings

LEVELS = {"glyph": (0.0, 1.0, 0.25, 0.5), "canary": (0.0, 1.0)}
"""Levels of coverage by world, the ends first: they say most, should the rest never be run."""
WORLDS = {"glyph": 2, "canary": 1}
"""Number of worlds, from `--world-seed` on."""
COSTS, SUMMARY, PAGE, FIGURE = "costs.json", "study.json", "study.html", "gain.svg"


@dataclass(frozen=True, slots=True)
class StudyPart:
    """The runs of all seeds in one world at one level, which one evaluation pools.

    Example: `StudyPart(world_seed=11, coverage=0.25)`
    """

    world_seed: int
    """Seed of the world."""
    coverage: float
    """Share of the techniques that are not public which the attackers know at first."""

    @property
    def name(self) -> str:
        """What it adds to the name of the study: `w11-c025`."""
        return f"w{self.world_seed}-c{round(100 * self.coverage):03d}"

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that are trained.

        Where nothing but public techniques is known, what may make an attacker find others is left
        out part by part. The guard of the supervised start alone meets no attacker, so it is the
        same at all levels and trained at one.
        """
        if self.coverage == 0:
            return (Arm.SELFPLAY, Arm.FROZEN, Arm.FROZEN_NO_QUOTA, *PARTS_OF_DISCOVERY)
        if self.coverage == 1:
            return (Arm.SELFPLAY, Arm.SFT, Arm.FROZEN)
        return (Arm.SELFPLAY, Arm.FROZEN)

    def options(self, study: RunOptions, run_id: str) -> RunOptions:
        """Return the options of its runs."""
        level = {"world": {"coverage": self.coverage}}
        return study.model_copy(
            update={
                "run": f"{run_id}-{self.name}",
                "world_seed": self.world_seed,
                "overrides": merge(study.overrides or {}, level),
                "arms": list(study.arms or self.arms),
                "seeds": len(study.training_seeds),
            }
        )


def parts_of(options: RunOptions) -> list[StudyPart]:
    """Return the parts of a study, in the order in which they are run.

    Raises:
        UsageError: An option is about one world at one level.
    """
    world: object = (options.overrides or {}).get("world", {})
    if not isinstance(world, Mapping) or "coverage" in world:
        raise UsageError(
            "--set world.coverage: the study runs every level; for one level choose another profile"
        )
    first, num = options.world_seed, WORLDS.get(options.env, 1)
    levels = LEVELS.get(options.env, LEVELS["glyph"])
    return [StudyPart(world, c) for c in levels for world in range(first, first + num)]


def run_study(
    options: RunOptions, *, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Train and evaluate every part, then summarise; the same call with `options.run` resumes.

    The summary is written anew after each part, so it can be read while others are run.

    Returns:
        The JSON document: `run_id`, `seed`, `profile`, `env`, `wall_seconds`, `parts` by name with
        their reports, `study` (the page), `summary_path` and `claims`; where several runs rented
        machines, `held_dollars`. Without `options.evaluate` all is trained, and nothing more.

    Raises:
        TSGBError: The way in which it ended; `exit_code` says what a process should exit with.
    """
    start = clock()
    settings = load_settings()
    settings.make_cache_dir()
    where = canonical_url(options.store or settings.default_store)
    run_id = options.run or new_run_id(datetime.now().astimezone())
    parts = parts_of(options)
    runs = {
        part: prepared_runs(part.options(options, run_id), settings, where, f"{run_id}-{part.name}")
        for part in parts
    }
    home = Workers(settings, where, run_id, options.env).open()
    plan = StudyPlan(
        world_seeds=sorted({part.world_seed for part in parts}),
        levels=sorted({part.coverage for part in parts}),
        seeds=list(options.training_seeds),
    )
    command, costs = study_command(options), StudyCosts(home)
    reports: dict[str, str] = {}
    study: dict[str, Any] = {}
    with embedded_api(settings, where, run_id, options.seeds) as shown:
        shown.note(f"study {run_id}: {_described(parts, runs)}, in {where}")
        every = [run for part in parts for run in runs[part]]
        with one_budget(every, where) as spent:
            if options.machine is MachineKind.RENTED:
                train(every)
            left = TimeLeft(parts, clock)
            for number, part in enumerate(parts, 1):
                shown.note(f"part {number} of {len(parts)}, {part.name}: {left}")
                with costs.of(part.name, "training"):
                    train(runs[part])
                if not options.evaluate:
                    continue
                with costs.of(part.name, "evaluation"):
                    reports[part.name] = evaluate(runs[part])["stage2"]["report"]
                left.passed(part)
                study = _summarised(home, settings, list(reports.values()), plan, command, costs)
                shown.note(f"study so far: {study['study']}")
    return {
        "run_id": run_id,
        "seed": options.seed,
        "profile": options.profile.value,
        "env": options.env,
        "wall_seconds": round(clock() - start, 1),
        "parts": reports,
        **study,
        **spent,
    }


def study_command(options: RunOptions) -> str:
    """Return the command that repeats a study, for a POSIX shell."""
    words = ["tsgb", "experiment", "--profile", options.profile.value, "--env", options.env]
    words += ["--seed", str(options.seed), "--world-seed", str(options.world_seed)]
    words += [] if options.seeds is None else ["--seeds", str(options.seeds)]
    words += [word for name in options.targets or () for word in ("--target", name)]
    words += [] if options.arms is None else ["--arms", ",".join(options.arms)]
    for name, value in _flat(options.overrides or {}):
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _flat(overrides: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name of each override, and its value."""
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{above}{name}", value


def _described(parts: Sequence[StudyPart], runs: Mapping[StudyPart, Sequence[RunOptions]]) -> str:
    worlds = sorted({part.world_seed for part in parts})
    levels = sorted({part.coverage for part in parts})
    seeds = runs[parts[0]][0].seed, runs[parts[0]][-1].seed
    return (
        f"worlds {', '.join(map(str, worlds))}, coverage {', '.join(map(str, levels))}, "
        f"seeds {seeds[0]} to {seeds[1]}"
    )


class TimeLeft:
    """Says how long the parts that are left will take, from those that were run."""

    def __init__(self, parts: Sequence[StudyPart], clock: Callable[[], float]) -> None:
        """Begin to count the seconds of the first part."""
        self._left = list(parts)
        self._clock = clock
        self._begun = clock()
        self._seconds_a_unit: list[float] = []

    def passed(self, part: StudyPart) -> None:
        """Count a part as done."""
        now = self._clock()
        self._left.remove(part)
        self._seconds_a_unit.append((now - self._begun) / _work(part))
        self._begun = now

    def __str__(self) -> str:
        # A part that an earlier start had finished took no time.
        most = max(self._seconds_a_unit, default=0.0)
        run = [seconds for seconds in self._seconds_a_unit if seconds > most / 10]
        if not run:
            return "time left is known after the first part"
        minutes = sum(run) / len(run) * sum(map(_work, self._left)) / 60
        return f"about {minutes:.0f} min left"


def _work(part: StudyPart) -> float:
    """Return the work of a part: its arms are trained, and attacked on the surrogate at least."""
    return 3.0 + len(part.arms)


class StudyCosts:
    """CPU and wall seconds of each part, kept in the study's directory over its starts.

    What a process that was killed had spent on its last piece of work is not known.
    """

    def __init__(
        self,
        home: RunStore,
        cpu_seconds: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep costs in `home`; nothing is read or written yet."""
        self._home = home
        self._cpu_seconds = cpu_seconds or _cpu_seconds
        self._clock = clock

    @contextmanager
    def of(self, part: str, what: str) -> Generator[None]:
        """Add what is spent inside, by this process and by its children that ended."""
        before, begun = self._cpu_seconds(), self._clock()
        try:
            yield
        finally:
            spent = {
                "cpu_seconds": self._cpu_seconds() - before,
                "wall_seconds": self._clock() - begun,
            }
            costs = self.read()
            entry = costs.setdefault(part, {}).setdefault(what, dict.fromkeys(spent, 0.0))
            for name, seconds in spent.items():
                entry[name] = round(entry[name] + seconds, 1)
            self._home.write_json(COSTS, costs)

    def read(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the seconds by part and by what was done."""
        try:
            return self._home.read_json(COSTS)
        except FileNotFoundError:
            return {}

    def hours(self) -> dict[str, float]:
        """Return the CPU hours by part and by what was done."""
        return {
            f"{part}, {what}": spent["cpu_seconds"] / 3600
            for part, entries in self.read().items()
            for what, spent in entries.items()
        }


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _summarised(
    home: RunStore,
    settings: Settings,
    reports: Sequence[str],
    plan: StudyPlan,
    command: str,
    costs: StudyCosts,
) -> dict[str, Any]:
    """Write the summary of all evaluations that there are; return where it is, and the claims."""
    # They import what draws figures, which a wrong option should not wait for.
    from tsgb.eval.stored import find_evaluation
    from tsgb.eval.study import summarise_study
    from tsgb.eval.study_figure import gain_svg
    from tsgb.eval.study_page import render_study

    evaluations = [
        find_evaluation(report, settings.webdav_user, settings.webdav_pass) for report in reports
    ]
    study = summarise_study(evaluations, plan=plan)
    home.write_text(SUMMARY, study.model_dump_json(indent=1))
    home.write_text(PAGE, render_study(study, command=command, costs=costs.hours()))
    figure = gain_svg(study)
    if figure is not None:
        home.write_text(FIGURE, figure)
    return {
        "study": place(f"{home.run_url}/{PAGE}"),
        "summary_path": place(f"{home.run_url}/{SUMMARY}"),
        "claims": {claim.id: claim.verdict for claim in study.claims},
    }
