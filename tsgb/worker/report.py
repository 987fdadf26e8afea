"""`tsgb worker report`: merges the cells of an evaluation into a report. Torch-free."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsgb.checkpoint.documents import parse_json
from tsgb.checkpoint.replays import read_replays, share_replayed
from tsgb.checkpoint.urls import join_run
from tsgb.config import (
    SEEDS,
    Arm,
    RunConfig,
    TrainingDataConfig,
    arm_overrides,
    arm_run_id,
    default_arms,
    make_config,
)
from tsgb.envs import make_environment
from tsgb.envs.base import Environment
from tsgb.errors import InvalidResult
from tsgb.eval.additions import Additions
from tsgb.eval.merge import Part, merge
from tsgb.eval.records import ReplayShare
from tsgb.eval.request import read_request
from tsgb.eval.wording import invalid_evaluation
from tsgb.logging import get_logger
from tsgb.targets.endpoint import EndpointSpec, parse_endpoint
from tsgb.worker.context import WorkerContext, find_run, read_config


def report(context: WorkerContext, resume_paths: Sequence[str], eval_id: str) -> str:
    """Merge the cells of one or several runs into a report; return its result in one sentence.

    Args:
        context: Settings of this process.
        resume_paths: URLs of the runs, one for each seed; the report is written into the first.
        eval_id: Name of the evaluation.

    Raises:
        InvalidResult: Too many items have no outcome. The report is written, with bounds.
    """
    runs = [find_run(context, path) for path in resume_paths]
    parts = [Part(run, read_config(run)) for run in runs]
    first = parts[0].config
    requests = [read_request(run, eval_id) for run in runs]
    world = make_environment(
        first.env, world_seed=first.world_seed, world=first.world, trust=context.trust
    )
    env = Additions.of(first, requests[0]).extend(world)
    get_logger().info("merging the cells", evaluation=eval_id, runs=len(runs))
    done = command([part.config for part in parts], env, requests)
    replays = dict(_replays(context, parts, requests))
    summary = merge(parts, env, eval_id, done, replays)
    if summary.invalid:
        place = f"{runs[0].run_url}/reports/{eval_id}/report.html"
        raise InvalidResult(invalid_evaluation(summary.invalid, place))
    return summary.verdict.sentence


def _replays(
    context: WorkerContext, parts: Sequence[Part], requests: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, ReplayShare]]:
    """Yield what replays of guards came to, for those that have been replayed."""
    for part, request in zip(parts, requests, strict=True):
        store, _, run_id = part.run.run_url.rpartition("/")
        for arm in Arm:
            if arm.value in request["guards"]:
                url = join_run(store, arm_run_id(run_id, arm))
                found = read_replays(context.open(url))
                if found:
                    share = share_replayed(found, found[0].total_steps)
                    deviating = sum(not one.agrees for one in found)
                    yield f"{run_id}/{arm}", ReplayShare(share=share, deviating=deviating)


def command(
    configs: Sequence[RunConfig], env: Environment, requests: Sequence[Mapping[str, Any]]
) -> str:
    """Return the command that repeats the runs and their evaluation, for a POSIX shell.

    It names no store and no run id, because with them it would resume these runs. A comment follows
    if the seeds or the guard of the report are not those that such an experiment would have.

    Args:
        configs: Configuration of the self-play run of each seed; equal apart from the seed.
        env: The world of the runs.
        requests: Request of the evaluation in each run.
    """
    config, seeds = configs[0], sorted(one.seed for one in configs)
    arguments = ["tsgb", "experiment", "--profile", config.profile.value, "--env", config.env]
    arguments += ["--seed", str(seeds[0])]
    if len(seeds) != SEEDS[config.profile]:
        arguments += ["--seeds", str(len(seeds))]
    if config.world_seed:
        arguments += ["--world-seed", str(config.world_seed)]
    guards = {name for request in requests for name in request["guards"]}
    arms = [arm for arm in Arm if arm is Arm.SELFPLAY or arm.value in guards]
    if set(arms) != set(default_arms(config.profile)):
        arguments += ["--arms", ",".join(arms)]
    targets: Sequence[str] = requests[0].get("targets") or []
    added = Additions.of(config, requests[0])
    for target in targets:
        if target not in added.target_names:
            arguments += ["--target", target]
    for path in added.target_class:
        arguments += ["--target-class", path]
    by_hand = [e for e in added.endpoints if e != parse_endpoint(e.form)]
    attacks = added.adaptive * len(requests)
    arguments += _endpoint_arguments(added.endpoints, by_hand, attacks, chosen=bool(targets))
    for option, judge in (("--judge-class", added.judge_class), ("--judge", added.judge)):
        arguments += [] if judge is None else [option, judge]
    for text in requests[0].get("own_guards") or ():
        arguments += ["--guard", text]
    arguments += _training_data_arguments(config.train_data)
    for name, value in _changed(config, env):
        arguments += ["--set", f"{name}={_text(value)}"]
    notes = [*_scattered(seeds), *_other_steps(config, requests)]
    notes += [f"FILE declares {', '.join(e.name for e in by_hand)}"] if by_hand else []
    return shlex.join(arguments) + (f"  # reported here: {'; '.join(notes)}" if notes else "")


def _training_data_arguments(data: TrainingDataConfig | None) -> list[str]:
    """Return the arguments that bring the user's prompts; folders of files are not known."""
    if data is None:
        return []
    files = [word for file in data.files for word in ("--train-data", file.name)]
    return [*files, *(["--map", data.mapping] if data.mapping else [])]


def _endpoint_arguments(
    endpoints: Sequence[EndpointSpec],
    by_hand: Sequence[EndpointSpec],
    attacks: int,
    *,
    chosen: bool,
) -> list[str]:
    """Return the arguments that name endpoints; those that only a file can declare by their names.

    Args:
        endpoints: All of them.
        by_hand: Those that need a file.
        attacks: Attacks that fresh attackers may send to each.
        chosen: Whether targets were chosen; else the file's are asked without being named.
    """
    named = [e.name if e in by_hand else e.form for e in endpoints if chosen or e not in by_hand]
    file = ["--targets-file", "FILE"] if by_hand else []
    adaptive = ["--adaptive", str(attacks)] if attacks else []
    return [*(word for name in named for word in ("--target", name)), *file, *adaptive]


def _changed(config: RunConfig, env: Environment) -> Iterator[tuple[str, Any]]:
    """Yield the values that differ from the profile's configuration of this arm in this world."""
    own = {name: getattr(config, name) for name in ("profile", "env", "world_seed", "seed")}
    usual = make_config(env.profile(config.profile.value), own, arm_overrides(config.arm))
    found = ((name, value) for name, value, _ in config.differences(usual))
    return ((name, value) for name, value in found if name != "train_data")


def _text(value: Any) -> str:
    """Return a value as `--set` takes it: JSON, or text that is no JSON as it is."""
    if isinstance(value, str):
        try:
            parse_json(value)
        except ValueError:
            return value
    return json.dumps(value)


def _scattered(seeds: Sequence[int]) -> Iterator[str]:
    """Yield a note on seeds with gaps between them: one experiment has none."""
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        yield f"seeds {', '.join(map(str, seeds))}"


def _other_steps(config: RunConfig, requests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a note on an older guard of self-play; other arms are always evaluated at their end."""
    steps = {request["guards"].get(config.arm.value, {}).get("step") for request in requests}
    for step in sorted(steps - {None, config.total_steps}):
        yield f"{config.arm} at step {step} of {config.total_steps}"
