"""`tsgb worker report`: torch-free, since everything was measured when the cells were filled."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsgb.config import SEEDS, Arm, RunConfig, arm_overrides, default_arms, make_config
from tsgb.envs import customise, make_environment
from tsgb.envs.base import Environment
from tsgb.eval.merge import Part, merge
from tsgb.eval.request import read_request
from tsgb.targets.plugins import target_specs
from tsgb.worker.places import Places, find_run, read_config


def report(places: Places, resume_paths: Sequence[str], eval_id: str) -> str:
    """`tsgb worker report`: merge the cells of one or several runs; returns the verdict."""
    runs = [find_run(places, path) for path in resume_paths]
    parts = [Part(run, read_config(run)) for run in runs]
    first = parts[0].config
    requests = [read_request(run, eval_id) for run in runs]
    world = make_environment(first.env, world_seed=first.world_seed, trust=places.trust)
    # Of the user's own classes only the names count here: nothing that the store names is imported.
    env = customise(world, target_specs(requests[0].get("target_class") or []), None)
    done = command([part.config for part in parts], env, requests)
    return merge(parts, env, eval_id, done).verdict.sentence


def command(
    configs: Sequence[RunConfig], env: Environment, requests: Sequence[Mapping[str, Any]]
) -> str:
    """What to type for the runs and their evaluation: `tsgb experiment ...`, for a POSIX shell.

    Store and run id are left out: with them the command would resume these runs. Where the report
    is of other seeds, or of an older guard, than an experiment's would be, a comment says so.

    Args:
        configs: Of self-play's run of each seed; equal otherwise.
        env: Their world.
        requests: What was evaluated, of each run.
    """
    config, seeds = configs[0], sorted(one.seed for one in configs)
    words = ["tsgb", "experiment", "--profile", config.profile.value, "--env", config.env]
    words += ["--seed", str(seeds[0])]
    if config.world_seed:
        words += ["--world-seed", str(config.world_seed)]
    guards = {name for request in requests for name in request["guards"]}
    arms = [arm for arm in Arm if arm is Arm.SELFPLAY or arm.value in guards]
    if set(arms) != set(default_arms(config.profile)):
        words += ["--arms", ",".join(arms)]
    targets: Sequence[str] = requests[0].get("targets") or []
    own: Sequence[str] = requests[0].get("target_class") or []
    for target in targets:
        if target not in target_specs(own):
            words += ["--target", target]
    for path in own:
        words += ["--target-class", path]
    if requests[0].get("judge_class"):
        words += ["--judge-class", requests[0]["judge_class"]]
    for name, value in _changed(config, env):
        words += ["--set", f"{name}={_text(value)}"]
    notes = [*_other_seeds(config, seeds), *_other_steps(config, requests)]
    return shlex.join(words) + (f"  # reported here: {'; '.join(notes)}" if notes else "")


def _changed(config: RunConfig, env: Environment) -> Iterator[tuple[str, Any]]:
    """What differs from the profile's configuration of this arm in this world."""
    own = {name: getattr(config, name) for name in ("profile", "env", "world_seed", "seed")}
    usual = make_config(env.profile(config.profile.value), own, arm_overrides(config.arm))
    yield from _differing(usual.model_dump(mode="json"), config.model_dump(mode="json"))


def _differing(
    usual: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _differing(usual[name], value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        elif value != usual[name]:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    """As `--set` takes it: JSON; text that is no JSON stands for itself."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _other_seeds(config: RunConfig, seeds: Sequence[int]) -> Iterator[str]:
    usual = list(range(seeds[0], seeds[0] + SEEDS[config.profile]))
    if list(seeds) != usual:
        yield f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _other_steps(config: RunConfig, requests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Only self-play's guard may be an older one: the others are always evaluated at their end."""
    steps = {request["guards"].get(config.arm.value, {}).get("step") for request in requests}
    for step in sorted(steps - {None, config.total_steps}):
        yield f"{config.arm} at step {step} of {config.total_steps}"
