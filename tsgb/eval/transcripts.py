"""A few games in full, for worlds that allow their texts to be shown; secrets are replaced.

The published items hold no text. What a report shows lies in `transcripts.json` beside it: scripted
attacks, and what fresh attackers wrote against each guard on each target. Every text goes through
the world's `redact` before it is kept anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from tsgb.envs.base import Environment
from tsgb.eval.records import Identifier, Item, Record
from tsgb.types import Scenario

NUM = 2
"""Scripted games of a report."""
NUM_ADAPTIVE = 3
"""Games of each guard and target."""
MAX_CHARACTERS = 600
"""Longest prompt or answer that is kept, after redaction."""
MAX_FORM = 80
"""Longest reason of a judge that is kept, after redaction."""


class GuardWord(Record):
    """One guard's verdict on the prompt."""

    guard: Identifier
    """Name in tables."""
    blocked: bool
    """Verdict at the threshold."""
    score: float | None = None
    """Score z; None for a guard that gives no score."""


class Transcript(Record):
    """One attack, what the guards say, and what the target answers without them."""

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
    form: str = ""
    """Redacted reason of the judge for a violation, such as the form in which a code leaked."""
    against: Identifier | None = None
    """Guard that the attacker was trained against; None for a scripted attack."""
    br_seed: int | None = None
    """Seed of the attacker; None for a scripted attack."""
    verdicts: list[GuardWord]
    """Verdicts of all guards but `none`; of an adaptive attack, of the one it is against."""

    @property
    def passed(self) -> bool:
        """Whether the attack violates and none of these guards blocks it."""
        return self.violated and not any(word.blocked for word in self.verdicts)


TRANSCRIPTS = TypeAdapter(list[Transcript])


def transcribe(
    env: Environment, scenario: Scenario, item: Item, prompt: str, answer: str, reason: str = ""
) -> Transcript | None:
    """One game as it may be shown; None if the world shows none, or it has no outcome."""
    shown, answered = env.redact(scenario, prompt), env.redact(scenario, answer)
    if shown is None or answered is None or item.violated is None or item.target is None:
        return None
    form = env.redact(scenario, reason) if item.violated else None
    return Transcript(
        scenario_id=scenario.scenario_id,
        technique=item.technique,
        target=item.target,
        prompt=_shortened(shown, MAX_CHARACTERS),
        answer=_shortened(answered, MAX_CHARACTERS),
        violated=item.violated,
        form=_shortened(form or "", MAX_FORM),
        against=item.against,
        br_seed=item.br_seed,
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


def choose_adaptive(games: Sequence[Transcript], num: int = NUM_ADAPTIVE) -> list[Transcript]:
    """Return at most `num` games of each target and guard, no prompt of theirs twice.

    First one that got through, one violation that was blocked and one attack that the target
    withstood, then the next ones that got through. Choosing again from what was chosen, of several
    attackers, gives as many.
    """
    groups: dict[tuple[str, str | None], dict[str, Transcript]] = {}
    for game in games:
        groups.setdefault((game.target, game.against), {}).setdefault(game.prompt, game)
    chosen: list[Transcript] = []
    for group in groups.values():
        passed = [game for game in group.values() if game.passed]
        blocked = [game for game in group.values() if game.violated and not game.passed]
        withstood = [game for game in group.values() if not game.violated]
        first = [*passed[:1], *blocked[:1], *withstood[:1]]
        chosen += [*first, *passed[1:], *blocked[1:], *withstood[1:]][:num]
    return chosen


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
