"""A few games in full, for worlds that allow their texts to be shown; secrets are replaced.

The published items hold no text. What a report shows lies in `transcripts.json` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from tsgb.envs.base import Environment
from tsgb.eval.records import Identifier, Item, Record
from tsgb.types import Scenario

NUM = 2


class GuardWord(Record):
    """One guard's verdict on the prompt."""

    guard: Identifier
    """Name in tables."""
    blocked: bool
    """Verdict at the threshold."""
    score: float | None = None
    """Score z; None for a guard that gives no score."""


class Transcript(Record):
    """One scripted attack, what the guards say, and what the target answers without them."""

    scenario_id: Identifier
    """Scenario of the prompt."""
    technique: str
    """Technique family."""
    target: Identifier
    """Name in tables."""
    prompt: str
    """Redacted prompt."""
    answer: str
    """Redacted answer to the prompt without a guard."""
    violated: bool
    """Outcome of the judge."""
    verdicts: list[GuardWord]
    """Verdicts of all guards but `none`."""


TRANSCRIPTS = TypeAdapter(list[Transcript])


def transcribe(
    env: Environment, scenario: Scenario, item: Item, prompt: str, answer: str
) -> Transcript | None:
    """One game as it may be shown; None if the world shows none, or it has no outcome."""
    shown, answered = env.redact(scenario, prompt), env.redact(scenario, answer)
    if shown is None or answered is None or item.violated is None or item.target is None:
        return None
    return Transcript(
        scenario_id=scenario.scenario_id,
        technique=item.technique,
        target=item.target,
        prompt=shown,
        answer=answered,
        violated=item.violated,
        verdicts=[
            GuardWord(guard=guard, blocked=blocked, score=item.scores.get(guard))
            for guard, blocked in item.blocked.items()
            if guard != "none"
        ],
    )


def choose(games: Sequence[Transcript], num: int = NUM) -> list[Transcript]:
    """The first violation, then the first games without one; always the same for equal games."""
    violations = [game for game in games if game.violated][:1]
    others = [game for game in games if not game.violated]
    return [*violations, *others][:num]
