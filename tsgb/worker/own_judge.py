"""The judge of an evaluation, loaded: models are opened here, and endpoints get their keys.

What each name means is `tsgb.judges.choice`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tsgb.envs import customise
from tsgb.envs.base import Environment
from tsgb.errors import StoreError
from tsgb.eval.additions import Additions
from tsgb.eval.logged_target import LoggedTargets
from tsgb.judges.choice import OPTION, JudgeChoice, JudgeKind
from tsgb.judges.classifier import ClassifierJudge
from tsgb.judges.exact import ExactJudge
from tsgb.judges.facts import JudgeFacts
from tsgb.judges.llm import KEY_BYTES, LlmJudge, keyed_nonces
from tsgb.judges.phrases import RefusalPhrasesJudge
from tsgb.judges.plugins import StrictJudge, judge_of, load_either, load_judge
from tsgb.judges.simple import SimpleJudge
from tsgb.models.fetch import fetch_classifier
from tsgb.models.registry import ModelRegistry
from tsgb.models.sequence_classifier import SequenceClassifier
from tsgb.protocols import Judge, Target
from tsgb.targets.local import LoadedTarget
from tsgb.worker.context import WorkerContext

_KEY = "judge.key"
REPLY_TOKENS = 128
"""Tokens of a reply of a chat model on this machine, at most; a longer one is unscored."""


class LoadedJudge(NamedTuple):
    """A judge, and where it judges."""

    judge: Judge
    """Judges what figures count."""
    env: Environment
    """The world whose judge attackers learn from: this one, or the world's own."""
    is_apart: bool
    """Whether that is the world's own, so that attacks have to be judged again in the end."""


def load_own_judge(
    added: Additions,
    env: Environment,
    context: WorkerContext,
    logged: LoggedTargets,
    check: Callable[[], None],
    ledger: Path,
    registry: ModelRegistry,
) -> LoadedJudge:
    """Load the judge that the user names, or else the world's.

    Args:
        added: What the user adds; its `judge_class` is a part of `env` already.
        env: The world.
        context: Settings of this process.
        logged: Keeps what an endpoint that judges answers.
        check: Called while an endpoint is asked; raises to stop.
        ledger: File that keeps what endpoints were sent and what it cost.
        registry: Loads a chat model that judges.

    Raises:
        UsageError: It cannot be loaded, or lacks its key.
        StoreError: The key of its nonces cannot be kept.
    """
    if added.judge is None:
        facts = None
        if added.judge_class is not None:
            facts = judge_of(load_judge(added.judge_class)).facts
        return LoadedJudge(ExactJudge(env, facts), env, is_apart=False)
    choice = JudgeChoice.parse(added.judge)
    if choice.kind is JudgeKind.EXACT:
        return LoadedJudge(ExactJudge(env), env, is_apart=False)
    if choice.kind is JudgeKind.ENDPOINT:
        target, structured = added.load_judge_targets(check, context.keys, ledger)
        nonces = keyed_nonces(secret_key(context.worker.cache_dir / _KEY))
        judge = LlmJudge(
            _with_log(logged, target),
            nonces,
            name=choice.name,
            policy=env.guard_template().system,
            structured=None if structured is None else _with_log(logged, structured),
        )
        return LoadedJudge(judge, env, is_apart=True)
    if choice.kind is JudgeKind.LOCAL:
        # A reply takes seconds where a model is large: attackers learn from the world's judge.
        load = partial(registry.black_box, choice.value)
        judge = LlmJudge(
            LoadedTarget(choice.name, load, REPLY_TOKENS),
            keyed_nonces(secret_key(context.worker.cache_dir / _KEY)),
            name=choice.name,
            policy=env.guard_template().system,
            model=choice.content_hash(),
        )
        return LoadedJudge(judge, env, is_apart=True)
    judge = _local(choice, context)
    return LoadedJudge(judge, customise(env, {}, judge), is_apart=False)


def _local(choice: JudgeChoice, context: WorkerContext) -> Judge:
    match choice.kind:
        case JudgeKind.CLASSIFIER:
            directory = fetch_classifier(choice.value, context.hub)
            load = partial(SequenceClassifier, directory, choice.label)
            return ClassifierJudge(load, choice.name, version=choice.content_hash()[:12])
        case JudgeKind.SIMPLE:
            facts = JudgeFacts(name=choice.name, version=SimpleJudge.version, weak=True)
            return StrictJudge(SimpleJudge(), facts)
        case JudgeKind.OWN:
            return judge_of(load_either(choice.value, OPTION), choice.threshold)
        case _:
            return RefusalPhrasesJudge()


def _with_log(logged: LoggedTargets, target: Target) -> Target:
    return logged.wrap([target], "judge")[target.name]


def secret_key(path: Path) -> bytes:
    """Return the key of this machine from a file that only its owner reads; made if it is missing.

    Raises:
        StoreError: The file cannot be made or read, or holds something else.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be made or read ({error.strerror})") from error
    if len(key) != KEY_BYTES:
        raise StoreError(f"{path} is no key of a judge: delete it, and a new one is made")
    return key


def _make_key(path: Path) -> None:
    """Make it whole or not at all: of two processes one wins, and both read that one."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(part, path)
    finally:
        os.close(file)
        part.unlink()
