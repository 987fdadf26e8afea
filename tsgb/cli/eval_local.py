"""`tsgb eval-local`: evaluates the guard of a checkpoint in this process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.data import MapOption
from tsgb.cli.options import (
    DryRunOption,
    JsonOption,
    OwnEnvOption,
    TrustOption,
    read_context,
    show_estimate,
    takes,
)
from tsgb.config import SHORT_SCRIPTED
from tsgb.errors import InvalidResult, UsageError
from tsgb.plugins import Trust
from tsgb.run_options import RunOptions

if TYPE_CHECKING:
    from pathlib import Path

    from tsgb.checkpoint.run import RunStore
    from tsgb.config import RunConfig
    from tsgb.envs.base import Environment
    from tsgb.eval.additions import Additions
    from tsgb.eval.human_labels import HumanLabels
    from tsgb.eval.own_data import OwnData
    from tsgb.eval.records import Summary
    from tsgb.targets.spending import CostEstimate
    from tsgb.types import CheckpointRef
    from tsgb.worker.context import WorkerContext

CAPS = {
    "best_responses": 1,
    "warmup_steps": 10,
    "attack_steps": 10,
    "prompts": 128,
    "scripted": SHORT_SCRIPTED,
    "bootstrap": 1000,
}
"""Upper bounds of this command; `tsgb experiment` uses the values of the configuration."""
DATA_LIMIT = 500
"""Prompts of each of the user's files that are scored without another wish: minutes on a CPU."""


@takes(
    *("targets", "targets_file", "adaptive", "max_requests", "max_cost", "black_boxes"),
    *("target_class", "judge_class", "judge", "human_labels", "guards", "fresh", "overrides"),
)
def eval_local(
    *,
    checkpoint_path: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="A checkpoint, a run or a store; /latest at the end is the newest one below.",
        ),
    ] = "./checkpoints/latest",
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Labelled prompts of yours that the guards score beside, services (--guard "
            "moderation:URL) too; with --judge the black boxes that you add are asked about them; "
            "may be repeated.",
        ),
    ] = None,
    mapping: MapOption = None,
    data_limit: Annotated[
        int,
        typer.Option(
            "--data-limit", min=0, help="Prompts of each file that are scored at most; 0: all."
        ),
    ] = DATA_LIMIT,
    dry_run: DryRunOption = False,
    options: RunOptions,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the guard of a checkpoint in this process: a reduced stage 2.

    Fixed streams of prompts, and one short best response a target; a few minutes at most.
    """
    from flows.prepare import additions_of, labels_of, with_checked_names
    from tsgb.checkpoint.urls import place
    from tsgb.cli import display, output
    from tsgb.eval.wording import invalid_evaluation
    from tsgb.settings import endpoint_key, load_settings

    if mapping and not data:
        raise UsageError("--map names columns of files: add --data FILE")
    options = with_checked_names(options, load_settings())
    targets, added = additions_of(options, ())
    added = replace(added, guards=options.guards or ())
    arguments = _Arguments(
        checkpoint_path=checkpoint_path,
        targets=targets,
        black_boxes=options.black_boxes or [],
        added=added,
        identities=added.identities(fresh=options.fresh),
        trust=Trust.of(env, trust_config=trust_config),
        overrides=options.overrides or {},
        command=shlex.join(["tsgb", *sys.argv[1:]]),
        data=_read_data(data, mapping or [], data_limit) if data else None,
        data_map=shlex.join(mapping or []),
        labels=labels_of(options),
    )
    if dry_run:
        show_estimate(_estimate(arguments), as_json=as_json)
        return
    added.check_endpoints(endpoint_key)
    summary, directory = _evaluate(arguments)
    files = {
        name: place(f"{directory}/{name}")
        for name in ("report.html", "summary.json", "results.jsonl")
    }
    if as_json:
        output.print_json(_document(summary, checkpoint_path, files))
    else:
        display.print_evaluation(summary, files["report.html"])
    if summary.invalid:
        raise InvalidResult(invalid_evaluation(summary.invalid, files["report.html"]))


def _document(summary: Summary, checkpoint_path: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Return what `--json` prints."""
    found, answers = summary.data_results, summary.data_answers
    return {
        "eval_id": summary.eval_id,
        "run_id": summary.run_ids[0],
        "checkpoint": checkpoint_path,
        "report": files["report.html"],
        "summary": files["summary.json"],
        "results_jsonl": files["results.jsonl"],
        "valid": not summary.invalid,
        "verdict": summary.verdict.model_dump(mode="json"),
        "results": [r.model_dump(mode="json") for r in summary.results if r.seed is None],
        **({"data": [r.model_dump(mode="json") for r in found]} if found else {}),
        **({"data_answers": [r.model_dump(mode="json") for r in answers]} if answers else {}),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """Arguments of the command."""

    checkpoint_path: str
    """A checkpoint, a run or a store."""
    targets: Sequence[str] | None
    """Names of the world's targets; None for all."""
    black_boxes: Sequence[str]
    """Pretrained models in place of the black boxes of the run; none keeps those."""
    added: Additions
    """The user's classes."""
    identities: Mapping[str, Any]
    """Identity of each of the user's classes; see `Additions.identities`."""
    trust: Trust
    """Modules that may be imported although the run's configuration names them."""
    overrides: Mapping[str, Any]
    """Nested overrides of the run's configuration."""
    command: str
    """Command line that repeats it."""
    data: OwnData | None = None
    """Prompts of the user's files; None without any."""
    labels: HumanLabels | None = None
    """Labels that people gave to answers; None without any."""
    data_targets: Sequence[str] = ()
    """Names of the targets that are asked about their prompts."""
    data_map: str = ""
    """Columns that the user names, which tell categories too."""

    def asking(self, added: Additions) -> _Arguments:
        """Return the arguments with the targets that are asked about prompts of files.

        Args:
            added: Everything that is added to the world, the run's black boxes too.

        Raises:
            UsageError: Nobody can judge their answers.
        """
        from tsgb.eval.data_answers import targets_of_data

        if self.data is None:
            return self
        named = bool(self.black_boxes or self.added.target_class or self.added.endpoints)
        return replace(self, data_targets=targets_of_data(added, named=named))

    def with_models(self, config: RunConfig) -> RunConfig:
        """Return the configuration with the black boxes that the user names."""
        from flows.model_choice import choose_black_boxes
        from tsgb.settings import load_settings

        if not self.black_boxes:
            return config
        before = config.model.black_boxes
        chosen = choose_black_boxes(self.black_boxes, self.world(config), load_settings(), before)
        model = config.model.model_copy(update={"black_boxes": tuple(chosen)})
        return config.model_copy(update={"model": model})

    def world(self, config: RunConfig) -> Environment:
        """Return the world of the run."""
        from tsgb.envs import make_environment

        return make_environment(
            config.env,
            world_seed=config.world_seed,
            world=config.world,
            trust=self.trust,
        )

    @property
    def data_records(self) -> list[dict[str, Any]]:
        """What the request says of the user's files."""
        return [] if self.data is None else [r.model_dump(mode="json") for r in self.data.records]

    def question(
        self, ref: CheckpointRef, config: RunConfig, wanted: Sequence[str]
    ) -> dict[str, Any]:
        """Return what is evaluated, without the identities of the user's classes."""
        return {
            "guard": ref.sha256,
            "config": config.fingerprint,
            "targets": list(wanted),
            "judge": self.added.judge or self.added.judge_class or "",
            **({"data": [self.data_map, self.data_records]} if self.data else {}),
            **({"data_targets": list(self.data_targets)} if self.data_targets else {}),
        }


def _eval_id(
    question: Mapping[str, Any], identities: Mapping[str, Any], config: RunConfig, cache_dir: Path
) -> str:
    """Return the id of an evaluation, by which an equal one is found again."""
    from tsgb.checkpoint.documents import canonical_json
    from tsgb.checkpoint.manifest import sha256_hex
    from tsgb.models.hash_cache import HashCache
    from tsgb.targets.pretrained import file_hashes

    hashes = file_hashes(config.model.black_boxes, HashCache(cache_dir / "models").sha256_of)
    content = {**question, "sources": {**identities, **hashes}}
    return sha256_hex(canonical_json(content))[:12]


def _read_data(paths: Sequence[Path], mapping: Sequence[str], limit: int) -> OwnData:
    from tsgb.eval.own_data import OwnData

    return OwnData.read(paths, mapping, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A checkpoint's run, as it is evaluated."""

    ref: CheckpointRef
    """The checkpoint."""
    run: RunStore
    """Its run."""
    config: RunConfig
    """The run's configuration, reduced, with the user's overrides and black boxes."""
    added: Additions
    """Everything that is added to the world."""
    env: Environment
    """The world with all that."""
    wanted: Sequence[str]
    """Names of the targets."""

    @property
    def num_fought(self) -> int:
        """Number of guards that fresh attackers learn against on an endpoint."""
        from tsgb.eval.ration import guards_before

        own = [guard for guard in self.added.guard_choices if not guard.kind.is_remote]
        return guards_before([self.config.arm], len(own))


def _open(arguments: _Arguments, context: WorkerContext, note: Callable[[str], None]) -> _Opened:
    from tsgb.checkpoint.resolve import load
    from tsgb.eval.additions import choose_targets, named_targets
    from tsgb.worker.context import read_config

    ref, _ = load(
        arguments.checkpoint_path,
        context.store.webdav_user,
        context.store.webdav_pass,
        manifest_key=context.store.manifest_key,
        cache=context.file_cache,
        on_skip=note,
    )
    run = context.open(ref.run_url)
    config = arguments.with_models(reduced(read_config(run), arguments.overrides))
    added = replace(arguments.added, black_boxes=config.model.black_boxes)
    env = added.load_into(arguments.world(config))
    named = named_targets(arguments.targets, config)
    wanted = choose_targets(env, named and [*named, *added.target_names])
    return _Opened(ref=ref, run=run, config=config, added=added, env=env, wanted=wanted)


def _estimate(arguments: _Arguments) -> list[CostEstimate]:
    """Return the cost of asking the endpoints; nothing is asked."""
    from flows.progress import watching
    from tsgb.eval.data_answers import chat_of
    from tsgb.eval.judge_costs import judge_costs
    from tsgb.eval.streams import estimate_costs

    with watching() as listener:
        opened = _open(arguments, read_context(arguments.trust), listener.note)
    env, added, fought = opened.env, opened.added, opened.num_fought
    names = arguments.asking(added).data_targets
    texts = arguments.data.texts if arguments.data is not None and names else []
    return [
        *estimate_costs(
            env,
            [opened.config],
            added.endpoints,
            adaptive=added.adaptive,
            num_guards=fought,
            own_chats=[chat_of(text) for text in texts],
        ),
        *judge_costs(env, [opened.config], added, opened.wanted, fought, (texts, names)),
    ]


def _evaluate(arguments: _Arguments) -> tuple[Summary, str]:
    """Return the summary and the URL of its directory."""
    from flows.progress import Bar, watching
    from tsgb.data.readable import check_reads_text
    from tsgb.data.training import read_training_data
    from tsgb.eval.ration import share_of_run
    from tsgb.eval.request import write_request
    from tsgb.eval.responses import DIRECTORY
    from tsgb.eval.unfinished import FRESH, UnfinishedEvaluation

    context = read_context(arguments.trust)
    with watching() as listener:
        opened = _open(arguments, context, listener.note)
        ref, run, config = opened.ref, opened.run, opened.config
        added, env, wanted = opened.added, opened.env, opened.wanted
        share_of_run(config, added.adaptive, opened.num_fought)
        arguments = arguments.asking(added)
        if arguments.data is not None:
            check_reads_text(env, "--data")
            if config.train_data is not None:
                trained = read_training_data(run, config.train_data)
                arguments = replace(arguments, data=arguments.data.apart_from(trained))
        question = arguments.question(ref, config, wanted)
        cache_dir = context.worker.cache_dir
        unfinished = UnfinishedEvaluation(cache_dir / DIRECTORY, question, arguments.identities)
        identities = unfinished.join()
        eval_id = _eval_id(question, identities, config, cache_dir)
        directory = f"reports/{eval_id}"
        summary = _earlier(run, directory, arguments.labels)
        if summary is not None:
            unfinished.finish()
            listener.note("evaluated already")
            return summary, f"{run.run_url}/{directory}"
        listener.note(f"eval-local: {ref.name} of {ref.run_url}, on {', '.join(wanted)}")
        if arguments.data is not None:
            for line in arguments.data.sent_to(
                added.guard_choices, arguments.data_targets, added.judge or added.judge_class
            ):
                listener.note(line)
        write_request(
            run,
            eval_id,
            {config.arm.value: ref},
            wanted,
            target_class=added.target_class,
            judge_class=added.judge_class,
            judge=added.judge,
            human_labels=None if arguments.labels is None else arguments.labels.document(),
            endpoints=added.endpoints,
            adaptive=added.adaptive,
            fresh=FRESH in identities,
            data=arguments.data_records,
            data_targets=arguments.data_targets,
            own_guards=added.guards,
        )

        def show(stage: str, key: str, done: int, total: int, text: str) -> None:
            listener.bars(stage, [Bar(key=key, done=done, total=total, text=text)])

        summary = _measure(run, config, env, eval_id, arguments, show)
        if not summary.invalid:
            unfinished.finish()
    return summary, f"{run.run_url}/{directory}"


def reduced(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return the run's configuration, bounded by `CAPS` unless the user overrides them.

    Raises:
        UsageError: An override would change what the guard was trained with.
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


def _earlier(run: RunStore, directory: str, labels: HumanLabels | None) -> Summary | None:
    """Return the summary of an evaluation that was made before, with these labels.

    None if there is no valid one: then its cells are merged again, and what is missing is made.
    """
    from pydantic import ValidationError

    from tsgb.checkpoint.documents import MAX_JSON_BYTES
    from tsgb.eval.records import Summary

    try:
        data = run.read_signed(f"{directory}/summary.json", MAX_JSON_BYTES)
        summary = Summary.model_validate_json(data)
    except (FileNotFoundError, ValidationError):
        return None  # half written, or of another version: its cells are merged again
    judge = None if summary.judge is None else summary.judge.model_dump()
    if labels is not None and not labels.are_in(judge):
        return None
    return None if summary.invalid else summary


def _measure(
    run: RunStore,
    config: RunConfig,
    env: Environment,
    eval_id: str,
    arguments: _Arguments,
    show: Callable[[str, str, int, int, str], None],
) -> Summary:
    from tsgb.eval.data_answers import DataTargets, judge_of_data
    from tsgb.eval.merge import Part, merge
    from tsgb.eval.own_data import fill_data
    from tsgb.worker.build import make_registry, setup_torch
    from tsgb.worker.context import StopSignals
    from tsgb.worker.evaluate import opened_evaluation

    setup_torch()
    signals = StopSignals.installed()
    context = read_context(arguments.trust)

    def built(model: str, done: int, total: int) -> None:
        signals.check()
        show("build", model, done, total, "once; kept in the cache")

    registry = make_registry(config, context, built, evaluates=True)
    with opened_evaluation(
        run, config, env, registry, eval_id, context, arguments.added, signals.check
    ) as evaluation:
        evaluation.fill(
            0,
            1,
            lambda done, total, text: show("evaluate", "cells", done, total, text),
            signals.check,
        )
        if arguments.data is not None:
            names = arguments.data_targets
            targets = [evaluation.target(name) for name in evaluation.specs if name in names]
            fill_data(
                evaluation,
                arguments.data,
                lambda done, total, text: show("evaluate", "data", done, total, text),
                signals.check,
                DataTargets(targets, judge_of_data(evaluation.judge)) if targets else None,
            )
    return merge([Part(run, config)], env, eval_id, arguments.command)
