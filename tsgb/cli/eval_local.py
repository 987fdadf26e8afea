"""`tsgb eval-local`: what a checkpoint's guard is worth, measured in this very process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.options import JsonOption, SetOption, TargetOption, parse_overrides, read_places
from tsgb.errors import InvalidResult, UsageError

if TYPE_CHECKING:
    from tsgb.checkpoint.run import RunStore
    from tsgb.config import RunConfig
    from tsgb.envs.base import Environment
    from tsgb.eval.records import Summary
    from tsgb.protocols import BlackBoxLLM, BooleanJudge
    from tsgb.types import CheckpointRef

CAPS = {
    "best_responses": 1,
    "warmup_steps": 10,
    "attack_steps": 10,
    "prompts": 128,
    "scripted": 200,
    "bootstrap": 1000,
}
"""The most that this command spends; `tsgb experiment` spends what the configuration says."""


def eval_local(
    checkpoint_path: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="A checkpoint, a run or a store; /latest at the end is the newest one below.",
        ),
    ] = "./checkpoints/latest",
    target: TargetOption = None,
    target_class: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:CLASS",
            help="A black box of yours, with generate(prompt) -> str; may be repeated.",
        ),
    ] = None,
    judge_class: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:CLASS",
            help="A judge of yours, with judge(response, is_benign) -> bool.",
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the guard of a checkpoint in this process: a reduced stage 2.

    Fixed streams of prompts, and one short best response a target; a few minutes at most.
    """
    from tsgb.cli import display, output
    from tsgb.targets.plugins import load_black_box, load_judge

    given = parse_overrides(overrides)
    loaded = [(path, *load_black_box(path)) for path in target_class or []]
    summary, directory = _answer(
        _Question(
            checkpoint_path=checkpoint_path,
            targets=target or None,
            own={name: llm for _, name, llm in loaded},
            own_paths={name: path for path, name, _ in loaded},
            judge=None if judge_class is None else load_judge(judge_class),
            judge_path=judge_class or "",
            overrides=given,
            command=shlex.join(["tsgb", *sys.argv[1:]]),
        )
    )
    files = {
        name: output.place(f"{directory}/{name}")
        for name in ("report.html", "summary.json", "results.jsonl")
    }
    if not as_json:
        display.print_evaluation(summary, files["report.html"])
        return
    output.print_json(
        {
            "eval_id": summary.eval_id,
            "run_id": summary.run_ids[0],
            "checkpoint": checkpoint_path,
            "report": files["report.html"],
            "summary": files["summary.json"],
            "results_jsonl": files["results.jsonl"],
            "verdict": summary.verdict.model_dump(mode="json"),
            "results": [r.model_dump(mode="json") for r in summary.results if r.seed is None],
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked for."""

    checkpoint_path: str
    targets: Sequence[str] | None
    own: Mapping[str, BlackBoxLLM]
    own_paths: Mapping[str, str]
    """Where each of the user's black boxes was found."""
    judge: BooleanJudge | None
    judge_path: str
    overrides: Mapping[str, Any]
    command: str
    """What to type to do it again."""

    def environment(self, config: RunConfig) -> Environment:
        """The run's world, with what the user adds to it."""
        from tsgb.envs import make_environment
        from tsgb.targets.plugins import customise, target_spec

        env = make_environment(config.env, world_seed=config.world_seed)
        if not self.own and self.judge is None:
            return env
        specs = {name: target_spec(name, path) for name, path in self.own_paths.items()}
        return customise(env, specs, self.judge)

    def wanted(self, env: Environment) -> list[str]:
        """Names of the targets, in table order; the user's own are always among them."""
        known = env.targets()
        unknown = [name for name in self.targets or [] if name not in known]
        if unknown:
            raise UsageError(
                f"--target {unknown[0]!r} is not in the world {env.name!r}: choose of "
                f"{', '.join(known)}"
            )
        chosen = {*(self.targets or known), *self.own}
        return [name for name in known if name in chosen]

    def identity(self, ref: CheckpointRef, config: RunConfig, wanted: Sequence[str]) -> str:
        """The evaluation's id: an equal question is answered once."""
        from tsgb.checkpoint.manifest import canonical_json, sha256_hex
        from tsgb.targets.plugins import source_sha256

        mine = [*self.own_paths.values(), *([self.judge_path] if self.judge else [])]
        content = {
            "guard": ref.sha256,
            "config": config.fingerprint,
            "targets": list(wanted),
            "judge": self.judge_path,
            "sources": {path: source_sha256(path) for path in mine},
        }
        return sha256_hex(canonical_json(content))[:12]


def _answer(question: _Question) -> tuple[Summary, str]:
    """The summary, and the URL of the directory in which it lies."""
    from flows.progress import Bar, watching
    from tsgb.checkpoint.resolve import load
    from tsgb.eval.request import write_request
    from tsgb.worker.places import read_config

    places = read_places()
    with watching() as listener:
        ref, _ = load(
            question.checkpoint_path,
            places.user,
            places.password,
            manifest_key=places.manifest_key,
            cache=places.files,
            on_skip=listener.note,
        )
        run = places.open(ref.run_url)
        config = reduced(read_config(run), question.overrides)
        env = question.environment(config)
        wanted = question.wanted(env)
        eval_id = question.identity(ref, config, wanted)
        directory = f"reports/{eval_id}"
        summary = _earlier(run, directory)
        if summary is not None:
            listener.note("evaluated already")
            return summary, f"{run.run_url}/{directory}"
        listener.note(f"eval-local: {ref.name} of {ref.run_url}, on {', '.join(wanted)}")
        write_request(run, eval_id, {config.arm.value: ref}, wanted)

        def show(stage: str, key: str, done: int, total: int, text: str) -> None:
            listener.bars(stage, [Bar(key=key, done=done, total=total, text=text)])

        summary = _measure(run, config, env, eval_id, question, show)
    return summary, f"{run.run_url}/{directory}"


def reduced(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The run's configuration with at most `CAPS` to spend, unless the user says more.

    Raises:
        UsageError: The user would change what the guard was trained with.
    """
    from tsgb.config import make_config

    fixed = [name for name in overrides if name != "evaluation"]
    if fixed:
        raise UsageError(
            f"--set {fixed[0]}: a trained guard's configuration is fixed; here only evaluation.* "
            "can be set"
        )
    full = config.model_dump(mode="json")
    reduced = {name: min(cap, full["evaluation"][name]) for name, cap in CAPS.items()}
    return make_config(full, {"evaluation": reduced}, overrides)


def _earlier(run: RunStore, directory: str) -> Summary | None:
    from tsgb.eval.records import Summary

    try:
        return Summary.model_validate_json(run.read_bytes(f"{directory}/summary.json"))
    except FileNotFoundError:
        return None


def _measure(
    run: RunStore,
    config: RunConfig,
    env: Environment,
    eval_id: str,
    question: _Question,
    show: Callable[[str, str, int, int, str], None],
) -> Summary:
    from tsgb.eval.merge import Part, merge
    from tsgb.eval.runner import Evaluation
    from tsgb.targets.plugins import CustomTarget
    from tsgb.worker.models import make_registry, setup_torch
    from tsgb.worker.signals import Signals

    setup_torch()
    signals = Signals.installed()
    places = read_places()

    def built(model: str, done: int, total: int) -> None:
        signals.check()
        show("build", model, done, total, "once; kept in the cache")

    own = {name: CustomTarget(name, llm, signals.check) for name, llm in question.own.items()}
    registry = make_registry(config, places, built)
    evaluation = Evaluation(run, config, env, registry, eval_id, places.open, own)
    evaluation.fill(
        0, 1, lambda done, total, text: show("evaluate", "cells", done, total, text), signals.check
    )
    try:
        return merge([Part(run, config)], env, eval_id, question.command)
    except InvalidResult:
        # A cell keeps its errors; the same command shall ask again.
        run.filesystem.delete_dir(f"reports/{eval_id}/cells")
        raise
