"""The first sentence of a report: what self-play changed, for readers who know none of its words.

It is made from the figures of a summary alone: those of the verdict, whichever way they point.
Where there is no effect, or none can be told, it says so as plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tsgb.config import Profile
from tsgb.eval.box import main_guard
from tsgb.eval.records import Comparison, Rate, Result, Summary, TargetRecord
from tsgb.eval.table import NO_GUARD
from tsgb.eval.verdict import FPR_MARGIN, FROZEN, MIN_SEEDS, SELF_PLAY, SFT
from tsgb.eval.views import pooled, unguarded
from tsgb.eval.wording import title, too_many_failed

_MANY = 100
"""Items from which on a share is told as so many of a hundred; of fewer it is told as counted."""
_NAMES = {
    SELF_PLAY: "the self-play guard",
    FROZEN: "the guard that was trained against a fixed attacker",
    SFT: "the guard that was trained on fixed examples",
}
_Metric = Literal["adaptive_asr", "asr"]


class _EffectReading(StrEnum):
    """How far the numbers of two guards may be compared."""

    BETTER = "better"
    """The interval of their difference excludes zero, in favour of the guard."""
    WORSE = "worse"
    """It does so to its disadvantage."""
    CHANCE = "chance"
    """It holds zero."""
    NONE = "none"
    """There is no such interval."""


@dataclass(frozen=True, slots=True)
class _EffectPart:
    """One part of the sentence.

    Example: `_EffectPart("on B_far, attackers that learn were not tried", _EffectReading.NONE)`
    """

    text: str
    """Words, without a full stop."""
    reading: _EffectReading
    """How far its numbers may be compared."""
    more: str = ""
    """Words that follow what is said of chance."""

    def __str__(self) -> str:
        """Return the words, and what numbers alone do not tell."""
        found = {
            _EffectReading.WORSE: ", so the first did worse here",
            _EffectReading.CHANCE: ", a difference that chance alone may explain",
        }
        return f"{self.text}{found.get(self.reading, '')}{self.more}"


def effect_sentence(summary: Summary) -> str:
    """Return what gets past the guard, and past the one that it is to beat, and what to make of it.

    Example: `"The self-play guard stopped 42 of 100 attacks of kinds that training never showed,
    and the guard that was trained against a fixed attacker stopped 4 of 100; on B_far, a model that
    training never saw, the strongest attacker found got past the first in 13 of 100 tries and past
    the second in 29 of 100; one seed, so this is a direction and not a result."`
    """
    if summary.invalid:
        return f"Nothing can be read from this evaluation: {too_many_failed(summary.invalid)}."
    guard = main_guard(summary)
    if guard is None:
        return "No trained guard was evaluated, so there is no effect to tell."
    versus = next((n for n in (FROZEN, SFT, NO_GUARD) if n != guard and n in summary.guards), None)
    if versus is None:
        return "One guard was evaluated and nothing beside it, so there is no effect to tell."
    stopped = _stopped(summary, guard, versus)
    attacked = _attacked(summary, guard, versus, named=stopped is not None)
    parts = [part for part in (stopped, attacked) if part is not None]
    if not parts:
        return "No attacks were made, so no effect was measured."
    told = "; ".join([*map(str, parts), _conclusion(summary, parts)])
    return f"{told[0].upper()}{told[1:]}."


# -- what is told ------------------------------------------------------------------------------


def _stopped(summary: Summary, guard: str, versus: str) -> _EffectPart | None:
    """Return what the guards block of reserved techniques; None where there are none."""
    mine, theirs = (pooled(summary, name, summary.targets[0].name) for name in (guard, versus))
    own, other = mine.scripted_tpr, theirs.scripted_tpr
    if own is None:
        return None
    kinds = "attacks of kinds that training never showed"
    if other is None:
        [count] = _counts(own)
        return _EffectPart(f"{_named(summary, guard)} stopped {count} {kinds}", _EffectReading.NONE)
    count, count_of_other = _counts(own, other)
    found = _comparison(summary, "scripted_tpr", guard, versus, None)
    text = (
        f"{_named(summary, guard)} stopped {count} {kinds}, and {_named(summary, versus)} stopped "
        f"{count_of_other}"
    )
    return _EffectPart(text, _read(found), _price(mine, theirs))


def _price(own: Result, other: Result) -> str:
    """Say that the guard blocks more harmless prompts than the other one, where it does."""
    pairs = (
        (own.fpr_hard, other.fpr_hard, "harmless prompts that look like attacks"),
        (own.fpr, other.fpr, "ordinary harmless prompts"),
    )
    for here, there, what in pairs:
        if here and there and here.value - there.value > FPR_MARGIN:
            more, less = _counts(here, there)
            return f", but the first also blocked {more} {what} and the second {less}"
    return ""


def _attacked(summary: Summary, guard: str, versus: str, *, named: bool) -> _EffectPart | None:
    """Return what gets through the guards to a target; learning attackers count before others.

    None where no target was attacked.

    Args:
        summary: Figures of the evaluation.
        guard: Guard that the sentence is about.
        versus: Guard that it is compared with.
        named: Whether the sentence has named both before.
    """
    for metric in ("adaptive_asr", "asr"):
        target = _target(summary, guard, metric)
        if target is not None:
            return _on_target(summary, guard, versus, target, metric, named=named)
    return None


def _target(summary: Summary, guard: str, metric: _Metric) -> TargetRecord | None:
    """Return the attacked target that the sentence is about; None where none was attacked.

    It is the black box that has least in common with the surrogate, one of the user's before those
    of the world. As in the verdict, one of the user's is passed over if too little leaks from it:
    that is known before any guard is in front of it, so no target is chosen for its result.
    """
    bare = {target.name: unguarded(summary, target.name, metric) for target in summary.targets}

    def is_attacked(target: TargetRecord) -> bool:
        found = bare[target.name]
        if found is None:
            return _rate(pooled(summary, guard, target.name), metric) is not None
        return found.asr is not None

    def order(target: TargetRecord) -> tuple[bool, bool, bool, float]:
        found = bare[target.name]
        passed_over = target.added and found is not None and not found.measurable
        return passed_over, target.role == "surrogate", not target.added, target.overlap or 0.0

    return min(filter(is_attacked, summary.targets), key=order, default=None)


def _on_target(
    summary: Summary, guard: str, versus: str, target: TargetRecord, metric: _Metric, *, named: bool
) -> _EffectPart:
    where, bare = f"{target.name}, {_about(target)}", unguarded(summary, target.name, metric)
    if bare is not None and not bare.measurable:
        counted = "none" if bare.asr is None else _counts(bare.asr)[0]
        text = (
            f"on {where}, {counted} attacks succeeded with no guard, too few to show what one stops"
        )
        return _EffectPart(text, _EffectReading.NONE)
    own, other = (_rate(pooled(summary, n, target.name), metric) for n in (guard, versus))
    if own is None or other is None:
        return _EffectPart(f"on {where}, a guard has no figure", _EffectReading.NONE)
    count, count_of_other = _counts(own, other)
    first = "the first" if named else _named(summary, guard)
    second = "the second" if named else _named(summary, versus)
    past = f"past {second}"
    if versus == NO_GUARD:
        first, past = "it" if named else first, "with no guard"
    if metric == "asr":
        text = f"on {where}, {count} fixed attacks got past {first} and {count_of_other} {past}"
    else:
        tries = f"past {first} in {count} tries and {past} in {count_of_other}"
        text = f"on {where}, the strongest attacker found got {tries}"
    if summary.judge is not None and summary.is_as_judged:
        text += f", as counted by the judge {summary.judge.name}, who may err"
    if metric == "asr":
        text += ", and attackers that learn were not tried"
    elif any(
        one.target == target.name and one.guard in {guard, versus} for one in summary.unconverged
    ):
        return _EffectPart(f"{text}, and had not learned all that it could", _EffectReading.NONE)
    return _EffectPart(text, _read(_comparison(summary, metric, guard, versus, target.name)))


def _conclusion(summary: Summary, parts: Sequence[_EffectPart]) -> str:
    """Return the last part of the sentence: what may be made of the others."""
    if summary.profile == Profile.SMOKE:
        return "the profile smoke shows that every step works, and its numbers mean nothing"
    num = len(summary.seeds)
    seeds = "one seed" if num == 1 else f"{num} seeds"
    readings = {part.reading for part in parts}
    if readings.isdisjoint({_EffectReading.BETTER, _EffectReading.WORSE}):
        return f"so no effect is shown ({seeds})"
    if num < MIN_SEEDS:
        return f"{seeds}, so this is a direction and not a result"
    return f"{seeds} bear {'out the other' if _EffectReading.CHANCE in readings else 'this out'}"


# -- words -------------------------------------------------------------------------------------


def _rate(row: Result, metric: _Metric) -> Rate | None:
    if metric == "adaptive_asr":
        return row.adaptive_asr
    return row.asr_no_guard if row.guard == NO_GUARD else row.asr


def _about(target: TargetRecord) -> str:
    if target.role == "surrogate":
        return "the model that answered during training"
    return "your model" if target.added else "a model that training never saw"


def _named(summary: Summary, guard: str) -> str:
    """Return what a guard is in words; a fixed attacker also by what it knew, if that is little."""
    name = _NAMES.get(guard, f"the guard {title(guard)}")
    if guard == FROZEN and not summary.coverage:
        return f"{name} who knew public techniques only"
    return name


def _counts(*rates: Rate) -> list[str]:
    """Return shares in words, all of a hundred; if all are of few items, as they were counted.

    Example: `["40 of 100", "fewer than 1 of 100"]`, or `["3 of 24", "none of 24"]`
    """
    if max(rate.n for rate in rates) < _MANY:
        return [f"{rate.events or 'none'} of {rate.n}" for rate in rates]
    return [f"{_of_a_hundred(100 * rate.value)} of 100" for rate in rates]


def _of_a_hundred(share: float) -> str:
    if not share:
        return "none"
    if share < 0.5:
        return "fewer than 1"
    return "more than 99" if 99.5 <= share < 100 else f"{share:.0f}"


def _comparison(
    summary: Summary, metric: str, guard: str, versus: str, target: str | None
) -> Comparison | None:
    key = (metric, guard, versus, target)
    return next(
        (c for c in summary.comparisons if (c.metric, c.guard, c.versus, c.target) == key), None
    )


def _read(found: Comparison | None) -> _EffectReading:
    if found is None:
        return _EffectReading.NONE
    if found.low <= 0 <= found.high:
        return _EffectReading.CHANCE
    rises = found.difference > 0
    return (
        _EffectReading.BETTER if rises == (found.metric == "scripted_tpr") else _EffectReading.WORSE
    )
