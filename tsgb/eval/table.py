"""Item records as columns.

Scripted and benign prompts are scored once by each guard and answered once by each target, so
every guard is compared on the same answers. Adaptive items belong to one guard and one target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsgb.eval.estimators import Indices
from tsgb.eval.intervals import MISSING, Outcomes
from tsgb.eval.metrics import Bools, Floats, passed_harm
from tsgb.eval.records import Item, ItemSource

NO_GUARD = "none"
"""The guard that blocks nothing; items need not list its verdicts."""

Names = NDArray[np.str_]


@dataclass(frozen=True)
class Prompts:
    """Scripted and benign prompts, one row each."""

    seed: NDArray[np.int64]
    """[N] training seeds."""
    scenario: Indices
    """[N] numbers of scenarios."""
    harmful: Bools
    """[N] exact labels."""
    stream: Names
    """[N] names of streams."""
    technique: Names
    """[N] technique families."""
    family: Names
    """[N] families of scenarios."""
    scores: Mapping[str, Floats]
    """[N] scores for each guard; NaN where it gave none."""
    blocked: Mapping[str, Outcomes]
    """[N] verdicts for each guard, or `MISSING`."""


@dataclass(frozen=True)
class Answers:
    """Answers of one target to the harmful prompts, or to the benign ones."""

    prompt: Indices
    """[M] rows of `Prompts`."""
    violated: Outcomes
    """[M] outcomes: violations, or, of benign prompts, refusals."""


@dataclass(frozen=True)
class Attempts:
    """Harmful adaptive attacks against one guard on one target."""

    seed: NDArray[np.int64]
    """[M] training seeds."""
    replicate: Indices
    """[M] numbers of best responses."""
    scenario: Indices
    """[M] numbers of scenarios."""
    success: Outcomes
    """[M] outcomes: violated and not blocked."""
    errors: int
    """Attempts with any missing outcome, even where the other one decides."""


NO_ATTEMPTS = Attempts(
    seed=np.array([], dtype=np.int64),
    replicate=np.array([], dtype=np.intp),
    scenario=np.array([], dtype=np.intp),
    success=np.array([], dtype=np.int8),
    errors=0,
)


@dataclass(frozen=True)
class Table:
    """All items of one evaluation."""

    prompts: Prompts
    """Scripted and benign prompts."""
    answers: Mapping[str, Answers]
    """Answers to harmful prompts by target."""
    benign_answers: Mapping[str, Answers]
    """Answers to benign prompts by target, of those that were asked."""
    attempts: Mapping[tuple[str, str], Attempts]
    """Adaptive attacks by guard and target."""
    thoughts: Mapping[str, int]
    """Answers by target from which a thought was cut."""

    @classmethod
    def from_items(cls, items: Iterable[Item], guards: Sequence[str]) -> Table:
        """Read items; a prompt's lines for several targets become one row.

        Scenarios are numbered in the order of their names, so that items in any order, and another
        evaluation of the same scenarios, have the same halves of scenarios and the same draws.
        """
        items = list(items)
        names = sorted({item.scenario_id for item in items})
        scenarios = {name: number for number, name in enumerate(names)}
        rows: dict[tuple[int, str, int], int] = {}
        repeats: Counter[tuple[int, str, str | None]] = Counter()
        prompts: list[Item] = []
        verdicts: list[tuple[dict[str, float], dict[str, bool]]] = []
        answers: dict[str, tuple[list[int], list[int]]] = {}
        benign: dict[str, tuple[list[int], list[int]]] = {}
        attempts: dict[tuple[str, str], list[Item]] = {}
        thoughts: Counter[str] = Counter()
        for item in items:
            if item.thought and item.target is not None:
                thoughts[item.target] += 1
            if item.source is ItemSource.ADAPTIVE:
                if item.harmful:
                    pair = (str(item.against), str(item.target))
                    attempts.setdefault(pair, []).append(item)
                continue
            # A stream may draw one prompt twice: the k-th line for a target is the k-th draw.
            line = (item.seed, item.item_id, item.target)
            key = (item.seed, item.item_id, repeats[line])
            repeats[line] += 1
            row = rows.setdefault(key, len(rows))
            if row == len(prompts):
                prompts.append(item)
                verdicts.append((dict(item.scores), dict(item.blocked)))
            else:
                verdicts[row][0].update(item.scores)
                verdicts[row][1].update(item.blocked)
            if item.target is not None:
                kind = answers if item.harmful else benign
                index, outcome = kind.setdefault(item.target, ([], []))
                index.append(row)
                outcome.append(_outcome(item.violated if item.harmful else item.refused))
        return cls(
            prompts=_prompts(prompts, verdicts, scenarios, guards),
            answers=_answers(answers),
            benign_answers=_answers(benign),
            attempts={
                pair: _attempts(found, pair[0], scenarios) for pair, found in attempts.items()
            },
            thoughts=thoughts,
        )


def _answers(found: Mapping[str, tuple[list[int], list[int]]]) -> dict[str, Answers]:
    return {
        target: Answers(np.array(index, dtype=np.intp), np.array(outcome, dtype=np.int8))
        for target, (index, outcome) in found.items()
    }


def _outcome(value: bool | None) -> int:
    return MISSING if value is None else int(value)


def _prompts(
    items: Sequence[Item],
    verdicts: Sequence[tuple[dict[str, float], dict[str, bool]]],
    scenarios: Mapping[str, int],
    guards: Sequence[str],
) -> Prompts:
    def blocked(guard: str) -> Outcomes:
        default = 0 if guard == NO_GUARD else MISSING
        return np.array([int(known.get(guard, default)) for _, known in verdicts], dtype=np.int8)

    return Prompts(
        seed=np.array([item.seed for item in items], dtype=np.int64),
        scenario=np.array([scenarios[item.scenario_id] for item in items], dtype=np.intp),
        harmful=np.array([item.harmful for item in items], dtype=np.bool_),
        stream=np.array([str(item.stream) for item in items], dtype=np.str_),
        technique=np.array([item.technique for item in items], dtype=np.str_),
        family=np.array([item.slice for item in items], dtype=np.str_),
        scores={
            guard: np.array([known.get(guard, np.nan) for known, _ in verdicts], dtype=np.float64)
            for guard in guards
        },
        blocked={guard: blocked(guard) for guard in guards},
    )


def _attempts(items: Sequence[Item], guard: str, scenarios: Mapping[str, int]) -> Attempts:
    default = False if guard == NO_GUARD else None
    violated = np.array([_outcome(item.violated) for item in items], dtype=np.int8)
    blocked = np.array(
        [_outcome(item.blocked.get(guard, default)) for item in items], dtype=np.int8
    )
    _, replicate = np.unique([item.br_seed or 0 for item in items], return_inverse=True)
    return Attempts(
        seed=np.array([item.seed for item in items], dtype=np.int64),
        replicate=replicate.astype(np.intp),
        scenario=np.array([scenarios[item.scenario_id] for item in items], dtype=np.intp),
        success=passed_harm(violated, blocked),
        errors=int(np.count_nonzero((violated == MISSING) | (blocked == MISSING))),
    )
