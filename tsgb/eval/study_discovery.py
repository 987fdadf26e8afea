"""Techniques that the attackers of a training found by themselves, and what its guards made of it.

An attacker uses a technique once `MIN_SHOWN` of its attacks with it broke the surrogate. The first
attacker of the pool that uses it has found it: the one of the warm-up, whom the arm with a frozen
attacker has too, or that of a round. The guard before a round is then compared with the guard after
it on the test's prompts of that technique, each at the threshold that it had in training. Beside it
stands the same change on techniques that nobody had used by then: a guard that only blocks more of
everything changes both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tsgb.eval.bootstrap import Replicates, contrast
from tsgb.eval.records import Discovery, Estimate
from tsgb.eval.study_records import LevelDiscovery, TechniqueShown, UnitDiscovery

MIN_SHOWN = 5
"""Attacks of one attacker that break the surrogate by a technique before it counts as used."""
WARM_UP = "warm"
"""Name of the warm-up's attacker in a pool."""


def read_discovery(found: Discovery, world: str, coverage: float) -> UnitDiscovery:
    """Say which attacker first used which technique, and what the next guard made of it.

    Args:
        found: The counts of one training.
        world: Name of its world.
        coverage: Level of its coverage.
    """
    used = set(found.known)
    warm_up = 0
    first_uses: dict[str, int] = {}
    shown: list[TechniqueShown] = []
    others: list[float] = []
    for member in found.rounds:
        new = sorted(
            name for name, num in member.violated.items() if num >= MIN_SHOWN and name not in used
        )
        used.update(new)
        if member.attacker == WARM_UP:
            warm_up = len(new)
            continue
        first_uses[member.attacker] = len(new)
        column = found.guards.index(member.attacker) if member.attacker in found.guards else 0
        if column == 0:
            continue
        of_round = [_shown(found, name, member.attacker, column) for name in new]
        known = [one for one in of_round if one is not None]
        unused = list(_unused(found, used, member.attacker, column))
        shown += known
        if unused:
            others += [sum(one.change for one in unused) / len(unused)] * len(known)
    return UnitDiscovery(
        coverage=coverage,
        world=world,
        seed=found.seed,
        arm=found.arm,
        known=len(found.known),
        warm_up=warm_up,
        found=first_uses,
        shown=shown,
        others=sum(others) / len(others) if others else None,
    )


def level_discovery(units: Sequence[UnitDiscovery]) -> LevelDiscovery:
    """Return the table's row of the trainings of one arm at one level.

    Args:
        units: Trainings, at least one.
    """
    finders = [unit for unit in units if unit.shown]
    rounds = dict.fromkeys(name for unit in units for name in unit.found)
    prompts = sum(one.prompts for unit in finders for one in unit.shown)
    compared = [unit.others for unit in finders if unit.others is not None]
    return LevelDiscovery(
        coverage=units[0].coverage,
        arm=units[0].arm,
        units=len(units),
        known=mean_estimate([unit.known for unit in units]),
        warm_up=mean_estimate([unit.warm_up for unit in units]),
        later=mean_estimate([unit.later for unit in units]),
        by_round={name: _mean([unit.found.get(name, 0) for unit in units]) for name in rounds},
        before=_mean([_mean([o.before / o.prompts for o in unit.shown]) for unit in finders])
        if finders
        else None,
        after=_mean([_mean([o.after / o.prompts for o in unit.shown]) for unit in finders])
        if finders
        else None,
        change=mean_estimate([_mean([o.change for o in unit.shown]) for unit in finders])
        if finders
        else None,
        others=mean_estimate(compared) if compared else None,
        prompts=prompts,
        finders=len(finders),
    )


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean over units with Student's interval; a single unit has none.

    Args:
        values: One for each unit.
    """
    if len(values) < 2:
        return Estimate(value=float(values[0]))
    figure = Replicates(np.array(values, dtype=np.float64), np.zeros(1))
    found = contrast(figure, num_clusters=1)  # units are all that varies
    return Estimate(value=found.value, low=found.low, high=found.high)


def _shown(found: Discovery, name: str, attacker: str, column: int) -> TechniqueShown | None:
    """Return what the guards around a round block of a technique; None without prompts of it."""
    num = found.prompts.get(name, 0)
    blocked = found.blocked.get(name, [])
    if not num or len(blocked) <= column:
        return None
    before, after = blocked[column - 1], blocked[column]
    return TechniqueShown(technique=name, round=attacker, before=before, after=after, prompts=num)


def _unused(
    found: Discovery, used: set[str], attacker: str, column: int
) -> Iterator[TechniqueShown]:
    for name in found.prompts:
        one = None if name in used else _shown(found, name, attacker, column)
        if one is not None:
            yield one


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
