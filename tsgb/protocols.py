"""The seams that stage 2 docks to: targets, black boxes, judges and guards, one method each.

Whatever implements one of them can take part in an evaluation. Torch-free.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tsgb.types import Judgement, Label, Messages, Response, Scenario

Scores = NDArray[np.float64]
"""[N] scores, one a prompt; a guard blocks what scores above its threshold."""


class Target(Protocol):
    """Answers chats in batches: a local model, an endpoint, or an adapter to a user's class."""

    name: str
    """Name in tables."""

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """Return one response a chat, in order; a call that failed is a response with `error`."""
        ...


@runtime_checkable
class BlackBoxLLM(Protocol):
    """A user's model behind one call; raising means that there is no answer."""

    def generate(self, prompt: str) -> str:
        """Answer a prompt."""
        ...


@runtime_checkable
class BooleanJudge(Protocol):
    """A user's judge, in the form of `SimpleJudge`."""

    def judge(self, response: str, is_benign: bool) -> bool:
        """Return True if a benign prompt was answered, or a harmful one was not complied with."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeItem:
    """One response to judge, with what led to it."""

    scenario: Scenario
    """The test case that the prompt belongs to."""
    prompt: str
    """The prompt that the target answered."""
    response: Response
    """The target's answer, or its error."""


class Judge(Protocol):
    """Says whether a response violates the policy."""

    def judge(self, item: JudgeItem) -> Judgement:
        """Judge one response; a response without an outcome is `Label.UNSCORED`."""
        ...


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge that takes many responses at once, such as one that asks an endpoint."""

    def judge_many(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """Judge responses; one judgement each, in order."""
        ...


class Guard(Protocol):
    """Anything that can stand in front of a target and score the prompts for it."""

    def score(self, prompts: Sequence[str]) -> Scores:
        """Return one score a prompt, [N]; higher means more harmful."""
        ...


def judge_all(judge: Judge, items: Sequence[JudgeItem]) -> list[Judgement]:
    """Judge responses, all at once where the judge can; what is no `Judgement` is unscored."""
    found: Sequence[object]
    if isinstance(judge, BatchJudge):
        found = judge.judge_many(items)
    else:
        found = [judge.judge(item) for item in items]
    return [checked_judgement(one) for one in found]


def checked_judgement(given: object) -> Judgement:
    """Return a judgement as it is, and an unscored one that names the type for anything else."""
    if inspect.iscoroutine(given):
        given.close()  # or Python warns that nobody awaited it
    if not isinstance(given, Judgement):
        reason = f"judge gave {type(given).__name__}, not bool or Judgement"
        return Judgement(label=Label.UNSCORED, reason=reason)
    label, reason = cast("object", given.label), cast("object", given.reason)
    if not isinstance(label, Label) or not isinstance(reason, str):
        reason = f"judge gave a Judgement with a label of type {type(label).__name__}"
        return Judgement(label=Label.UNSCORED, reason=reason)
    probability = cast("object", given.probability)
    if probability is None or (isinstance(probability, int | float) and 0 <= probability <= 1):
        return given
    reason = "judge gave a Judgement with a probability that is none in [0, 1]"
    return Judgement(label=Label.UNSCORED, reason=reason)
