"""Documents of a run, written before anything starts: ids, configurations, evaluation requests.

It knows the layout of a run in the store. It starts nothing and knows no Prefect.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from flows.workers import Workers
from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.reject import names_of_rejected
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.urls import check_run_id
from tsgb.config import (
    Arm,
    RunConfig,
    WorldConfig,
    arm_overrides,
    make_config,
    parse_config,
)
from tsgb.data.readable import check_reads_text
from tsgb.data.training import OPTION as TRAIN_DATA
from tsgb.data.training import TrainingData, write_training_data
from tsgb.envs import Environment, make_environment
from tsgb.errors import CheckpointError, ConfigError, StoreError, StoreUnreachable, UsageError
from tsgb.eval import request as requests
from tsgb.eval.additions import (
    OWN_NAMES,
    Additions,
    choose_targets,
    named_targets,
    split_targets,
)
from tsgb.eval.human_labels import HumanLabels
from tsgb.eval.judge_costs import judge_costs
from tsgb.eval.ration import guards_before, share_of_run
from tsgb.eval.streams import estimate_costs, evaluated_prompts
from tsgb.guards.choice import GuardChoice, checked_guards, read_choices
from tsgb.judges.choice import checked_judge
from tsgb.plugins import Trust
from tsgb.run_options import RunOptions, flag_of
from tsgb.settings import Settings, endpoint_key
from tsgb.targets.spending import CostEstimate
from tsgb.types import CheckpointRef

CONFIG = "config.json"
IDENTITY = "flow.json"
_OPTIONS = {
    **{name: name for name in ("profile", "env", "seed", "world_seed")},
    "model.pretrained": "model",
    "model.target": "target_model",
    "model.black_boxes": "black_boxes",
}
"""Options of a run by the value of its configuration that they decide; --set decides the others."""


def new_run_id(now: datetime) -> str:
    """A run id that nobody has used.

    >>> new_run_id(datetime(2026, 11, 24, 8, 0, 0))  # doctest: +SKIP
    '20261124-080000-9f3c'
    """
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_targets(options: RunOptions, runs: int = 1) -> None:
    """Check the named targets, the black boxes, the user's classes, and the endpoints' keys.

    Args:
        options: Options whose models are named by what does not change.
        runs: Runs of the evaluation, one a seed.

    Raises:
        UsageError: The world lacks one or has one of a class's name, or a class cannot be loaded.
    """
    targets, added = additions_of(options, options.black_boxes or ())
    config = arm_configs(options)[Arm.SELFPLAY]
    choose_targets(added.extend(world_of(options)), named_targets(targets, config))
    added.identities(fresh=options.fresh)
    added.check_endpoints(endpoint_key)
    share_of_run(config, options.adaptive, fought_guards(options.trained_arms, options), runs)


def fought_guards(arms: Iterable[Arm], options: RunOptions) -> int:
    """Return how many guards fresh attackers learn against on an endpoint."""
    own = [GuardChoice.parse(text) for text in options.guards or ()]
    return guards_before(arms, sum(not choice.kind.is_remote for choice in own))


def additions_of(
    options: RunOptions, black_boxes: Sequence[str]
) -> tuple[list[str] | None, Additions]:
    """Return the names of the chosen targets, and what the options add to the world.

    Args:
        options: Options of a run.
        black_boxes: Names of its pretrained black boxes, as its configuration stores them.

    Raises:
        UsageError: An endpoint or the file that declares endpoints breaks a rule.
    """
    targets, endpoints = split_targets(options.targets, options.targets_file)
    return targets, Additions(
        black_boxes=black_boxes,
        target_class=options.target_class or (),
        judge_class=options.judge_class,
        judge=options.judge,
        endpoints=endpoints,
        adaptive=options.adaptive,
        max_requests=options.max_requests,
        max_cost=options.max_cost,
    )


def with_checked_names(options: RunOptions, settings: Settings) -> RunOptions:
    """Return the options with guards, judge and labels of the user's named by what stays the same.

    Those are full paths and pinned commits.

    Raises:
        UsageError: One has no such form, does not exist, or has the name of another one.
    """
    changes: dict[str, Any] = {}
    if options.guards:
        checked = checked_guards(options.guards, settings, settings.cache_dir / "models")
        read_choices(checked, OWN_NAMES)
        changes["guards"] = checked
    if options.judge is not None:
        changes["judge"] = checked_judge(options.judge, settings, settings.cache_dir / "models")
    if options.train_data:
        changes["train_data"] = [str(Path(path).absolute()) for path in options.train_data]
    if options.human_labels is not None:
        path = Path(options.human_labels).absolute()
        HumanLabels.read(path)
        changes["human_labels"] = str(path)
    return options.model_copy(update=changes)


def labels_of(options: RunOptions) -> HumanLabels | None:
    """Return the labels that people gave to answers; None without any.

    Raises:
        UsageError: Their file cannot be read, or breaks a rule.
    """
    given = options.human_labels
    return None if given is None else HumanLabels.read(Path(given))


def costs_of(options: RunOptions) -> list[CostEstimate]:
    """Estimate what asking the endpoints of an experiment costs; nothing is asked.

    Raises:
        UsageError: An option breaks its rule.
    """
    named, added = additions_of(options, options.black_boxes or ())
    configs = [
        arm_configs(options.model_copy(update={"seed": seed}))[Arm.SELFPLAY]
        for seed in options.training_seeds
    ]
    named = named_targets(named, configs[0])
    fought = fought_guards(options.trained_arms, options)
    world = added.extend(world_of(options))
    targets = choose_targets(world, named and [*named, *added.target_names])
    return [
        *estimate_costs(
            world, configs, added.endpoints, adaptive=added.adaptive, num_guards=fought
        ),
        # Ablations are attacked before the targets of this machine alone.
        *judge_costs(world, configs, added, targets, fought + len(options.trained_arms)),
    ]


def training_data_of(options: RunOptions) -> TrainingData | None:
    """Read the user's prompts that join the guard's training; None without any.

    Raises:
        UsageError: The guards of the world read no text, or a file cannot be used.
    """
    if not options.train_data:
        if options.train_map:
            raise UsageError(f"--map names columns of files: add {TRAIN_DATA} FILE")
        return None
    env = world_of(options)
    check_reads_text(env, TRAIN_DATA)
    asked = evaluated_prompts(env, arm_configs(options)[Arm.SELFPLAY])
    return TrainingData.read(list(map(Path, options.train_data)), options.train_map or [], asked)


def arm_configs(options: RunOptions, data: TrainingData | None = None) -> dict[Arm, RunConfig]:
    """Return the configuration of each arm: world, user, then arm.

    Args:
        options: Options of a run.
        data: The user's prompts that the guards of all arms learn from too.

    Raises:
        ConfigError: A value breaks its rule.
        UsageError: An override names what another option decides.
    """
    sizes = world_of(options).profile(options.profile)
    named = options.model_dump(mode="json", include={"profile", "env", "world_seed", "seed"})
    if data is not None:
        named["train_data"] = data.config.model_dump(mode="json")
    overrides = options.overrides or {}
    if "train_data" in overrides:
        raise UsageError(f"--set train_data: use the option {TRAIN_DATA} instead")
    return {
        arm: make_config(sizes, overrides, options.model_overrides(), named, arm_overrides(arm))
        for arm in options.trained_arms
    }


def world_of(options: RunOptions) -> Environment:
    """Return the world that the options name, whose module may be imported: the user named it.

    Raises:
        ConfigError: There is none, or an override breaks its rule.
    """
    make = partial(
        make_environment,
        options.env,
        world_seed=options.world_seed,
        trust=Trust.of(options.env),
    )
    plain = make()
    layers = (plain.profile(options.profile), options.overrides or {})
    chosen = make_config(*({"world": layer.get("world", {})} for layer in layers)).world
    return plain if chosen == WorldConfig() else make(world=chosen)


def write_configs(
    workers: Workers, configs: Mapping[Arm, RunConfig], data: TrainingData | None = None
) -> str:
    """Write each arm's `config.json`, unless it is there already, and the user's prompts.

    Args:
        workers: Workers of the run.
        configs: Configuration of each arm.
        data: The user's prompts that the configurations name.

    Returns:
        A key that names this run with these configurations in this store, and changes when the
        run is deleted and begun anew, or when one of its checkpoints is taken out: results that
        Prefect keeps are kept under it.

    Raises:
        ConfigError: The run exists with another configuration.
    """
    check_run_id(workers.run)
    for arm, config in configs.items():
        _write_config(workers, arm, config, data)
    main = workers.open(next(iter(configs)))
    try:
        identity = main.read_json(IDENTITY)
    except FileNotFoundError:
        identity = {"identity": secrets.token_hex(8)}
        main.write_json(IDENTITY, identity)
    prints = {arm.value: config.fingerprint for arm, config in configs.items()}
    rejected = {arm.value: names_of_rejected(workers.open(arm)) for arm in configs}
    out = {arm: list(names) for arm, names in rejected.items() if names}
    return _short_hash(
        {"url": main.run_url, **identity, **prints, **({"rejected": out} if out else {})}
    )


def _write_config(workers: Workers, arm: Arm, config: RunConfig, data: TrainingData | None) -> None:
    run = workers.open(arm)
    origin = f"{run.run_url}/{CONFIG}"
    try:
        text = run.read_text(CONFIG)
    except FileNotFoundError:
        if data is not None:
            write_training_data(run, data)  # the configuration comes last: a run has both
        run.write_text(CONFIG, config.canonical())
        return
    there = parse_config(text, origin)
    _check_training_data(run.run_id, there, config)
    differences = list(there.differences(config))
    if not differences:
        if data is not None:
            write_training_data(run, data)
        return
    values = ", ".join(
        f"{name} is {there!r} there, {here!r} here" for name, there, here in differences
    )
    raise ConfigError(
        f"run {run.run_id!r} exists with another configuration ({values}): it was begun with "
        "other options, or by a version of tsgb whose profile "
        f"{config.profile.value!r} had other values. To resume it {_way_back(differences)}, or "
        "choose another --run-id"
    )


def _check_training_data(run_id: str, there: RunConfig, here: RunConfig) -> None:
    """Refuse to go on with other prompts of the user's than a run was begun with.

    Raises:
        ConfigError: They are others, or there are none here or there.
    """
    before, now = there.train_data, here.train_data
    if before == now:
        return
    begun = "without any" if before is None else f"with {before.names}"
    if before is None:
        way = f"leave {TRAIN_DATA} away"
    elif now is not None and now.sha256 == before.sha256:
        way = "give the same files in the same order, with the same names and --map"
    else:
        way = f"give {TRAIN_DATA} as at its start"
    given = "none are given" if now is None else f"{now.names} are given"
    raise ConfigError(
        f"run {run_id!r} was begun {begun} as training data, and {given} now, while all of a run "
        f"learns from the same prompts: {way}, or choose another --run-id"
    )


def _way_back(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """Return what to change in a command so that it describes the run that exists."""
    changes = [
        _change(flag_of(_OPTIONS[name]).name, there)
        for name, there, _ in differences
        if name in _OPTIONS
    ]
    if {"profile", "env"}.isdisjoint(name for name, _, _ in differences):
        pairs = [
            f"{name}={json.dumps(there)}" for name, there, _ in differences if name not in _OPTIONS
        ]
        added = " ".join(f"--set {shlex.quote(pair)}" for pair in pairs)
        changes += [f"add {added}"] if added else []
    # Otherwise the sizes follow from the profile of that world.
    return " and ".join(changes)


def _change(option: str, value: Any) -> str:
    if not value and not isinstance(value, int):
        return f"leave {option} away"
    values = cast("Sequence[object]", value) if isinstance(value, tuple) else [value]
    return "give " + " ".join(f"{option} {shlex.quote(str(one))}" for one in values)


def trained_arms(workers: Workers) -> dict[Arm, CheckpointRef]:
    """Return the arms of a run whose training is complete, with their newest checkpoints."""
    found: dict[Arm, CheckpointRef] = {}
    for arm in Arm:
        try:
            config = workers.config(arm)
        except FileNotFoundError:
            continue
        ref = CheckpointReader(workers.open(arm)).newest()
        if ref is not None and ref.step >= config.total_steps:
            found[arm] = ref
    return found


def guards_of(workers: Workers, checkpoint: str | None) -> dict[Arm, CheckpointRef]:
    """Return the guards of an evaluation: self-play's and every other finished arm's.

    Raises:
        CheckpointError: There is no such checkpoint, or none that is finished.
    """
    guards = trained_arms(workers)
    if checkpoint is not None and not checkpoint.endswith("/latest"):
        name = checkpoint.rstrip("/").rpartition("/")[2]
        guards = {**guards, Arm.SELFPLAY: CheckpointReader(workers.open()).ref(name)}
    if Arm.SELFPLAY not in guards:
        raise CheckpointError(
            f"run {workers.run!r} in {workers.store} has no finished self-play guard: run stage 1 "
            "to its end first, or name a checkpoint"
        )
    return {arm: guards[arm] for arm in Arm if arm in guards}


def evaluation_id(
    guards: Mapping[str, Mapping[Arm, CheckpointRef]],
    configs: Mapping[str, RunConfig],
    targets: Sequence[str] | None,
    own: Mapping[str, Any] | None = None,
) -> str:
    """One id for one question: equal guards, configuration and targets are evaluated once.

    Args:
        guards: Of each run (one a seed), by arm.
        configs: Of each run.
        targets: Their names; None for all of the environment's.
        own: The user's black boxes and judge, as `Additions.identities` gives them.
    """
    shas = {
        run: {arm.value: ref.sha256 for arm, ref in refs.items()} for run, refs in guards.items()
    }
    prints = {run: config.fingerprint for run, config in configs.items()}
    wanted = None if targets is None else sorted(targets)
    question = {"guards": shas, "configs": prints, "targets": wanted}
    return _short_hash({**question, **({"own": own} if own else {})})


def write_request(
    workers: Workers,
    eval_id: str,
    guards: Mapping[Arm, CheckpointRef],
    targets: Sequence[str] | None,
    added: Additions,
    *,
    fresh: bool = False,
    labels: HumanLabels | None = None,
) -> None:
    """Write the request that tells the worker what to evaluate, and whether all is asked anew."""
    wanted = None if targets is None else sorted({*targets, *added.target_names})
    by_name = {arm.value: ref for arm, ref in guards.items()}
    requests.write_request(
        workers.open(),
        eval_id,
        by_name,
        wanted,
        target_class=added.target_class,
        judge_class=added.judge_class,
        judge=added.judge,
        human_labels=None if labels is None else labels.document(),
        endpoints=added.endpoints,
        adaptive=added.adaptive,
        fresh=fresh,
        own_guards=added.guards,
    )


def _short_hash(content: Mapping[str, Any]) -> str:
    return sha256_hex(canonical_json(content))[:12]


def valid_summary(run: RunStore, directory: str) -> dict[str, Any] | None:
    """Return the summary of an evaluation that is there; None if it is to be made again.

    One that is half, is none, or says that it is not valid is made again. Where there is a key, one
    that is not signed with it is none: a host may have written it.

    Args:
        run: The run that the report is kept in.
        directory: Directory of the evaluation in it.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    from tsgb.eval.records import Summary

    try:
        summary = run.read_signed_json(f"{directory}/summary.json")
        is_valid = not Summary.model_validate(summary).invalid
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError, ValidationError):
        return None
    return summary if is_valid else None
