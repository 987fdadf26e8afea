"""Figures of a study: means over units, each of which is a training seed in a world.

The units of all worlds count alike. Within a world they share the test's scenarios, so that the
error between scenarios stays however many seeds there are: each world's draws of scenarios are one
set for all levels and guards, and the sets of two worlds are independent. A pooled figure has the
units of all worlds side by side and the mean of their draws; from there on intervals are those of
`bootstrap.py`, Student's with U - 1 degrees of freedom for U units. Worlds are not drawn again: two
of them say little about a third.

A ratio of two means has Fieller's interval (Fieller 1954, JRSS B 16:175): the ratios r for which
the interval of `a - r b` holds zero. It is bounded if and only if the interval of b excludes zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.special import stdtrit

from tsgb.errors import UsageError
from tsgb.eval.bootstrap import (
    NUM_DRAWS,
    Difference,
    Replicates,
    Resampler,
    Sample,
    contrast,
    difference,
)
from tsgb.eval.evidence import ADAPTIVE, AREAS, Evidence
from tsgb.eval.intervals import LEVEL, Interval
from tsgb.eval.metrics import Floats
from tsgb.eval.records import Item, ItemSource, Setup, TargetRecord
from tsgb.eval.study_records import Gain, StudyFigure, UnitValue
from tsgb.eval.table import Table
from tsgb.eval.verdict import FROZEN, SELF_PLAY

_Shared = TypeVar("_Shared")
HIGHER = frozenset({"scripted_tpr", *AREAS})
"""Figures that are better when they are higher."""
ALONE = ("scripted_tpr", "auroc", "pauroc", "fpr", "fpr_hard", "fpr_twins")
"""Figures of a guard alone, in table order."""


class WorldKey(NamedTuple):
    """Identity of a world."""

    env: str
    """Environment."""
    symbols: int
    """Size of the world; 0 for its own."""
    world_seed: int
    """Seed of the world; -1 where it is unknown."""

    @classmethod
    def of(cls, setup: Setup) -> WorldKey:
        """Return the world of an evaluation."""
        seed = -1 if setup.world_seed is None else setup.world_seed
        return cls(setup.env, setup.symbols or 0, seed)

    @property
    def draw_seed(self) -> int:
        """Seed of the draws of its scenarios: another one in each world, whatever stands beside."""
        return int.from_bytes(hashlib.sha256(repr(tuple(self)).encode()).digest()[:6])


@dataclass(frozen=True, slots=True)
class LevelEvidence:
    """One evaluation of the study."""

    world: WorldKey
    """Its world."""
    coverage: float
    """Level of coverage."""
    setup: Setup
    """Facts of the evaluation."""
    evidence: Evidence
    """Figures by guard, target and seed."""

    @classmethod
    def of(cls, setup: Setup, items: Iterable[Item], resampler: Resampler) -> LevelEvidence:
        """Count the items of an evaluation.

        Args:
            setup: Facts of the evaluation.
            items: Its items; prompts of a user's files are left out.
            resampler: Draws of its world.
        """
        streams = [item for item in items if item.source is not ItemSource.DATA]
        evidence = Evidence(
            Table.from_items(streams, setup.guards),
            setup.seeds,
            {(t.guard, t.seed): t.temperature for t in setup.thresholds},
            resampler,
            setup.targets,
            reserved=setup.reserved,
        )
        return cls(WorldKey.of(setup), level_of(setup), setup, evidence)

    def measured(self, metric: str, guard: str, target: str | None) -> tuple[int, ...]:
        """Return the seeds whose figure can be compared with another guard's."""
        if guard not in self.setup.guards or (
            target is not None and all(t.name != target for t in self.setup.targets)
        ):
            return ()
        seeds = self.evidence.measured(metric, guard, target)
        doubt = metric in ADAPTIVE and target is not None and seeds
        if doubt and self.evidence.unconverged(guard, str(target)) is not None:
            return ()
        return seeds


def level_of(setup: Setup) -> float:
    """Return the level of coverage as tables name it."""
    return round(setup.coverage, 6)


class UnitKey(NamedTuple):
    """Identity of a unit."""

    world: WorldKey
    """World of the training."""
    seed: int
    """Training seed."""


@dataclass(frozen=True, slots=True)
class PooledSample:
    """A figure over units."""

    sample: Sample
    """The figure and its draws."""
    units: tuple[UnitKey, ...]
    """[U] units, in the order of the sample's."""


class StudyEvidence:
    """Figures of a study, by guard, target, level and world, with their draws."""

    def __init__(self, parts: Sequence[LevelEvidence], names: Mapping[WorldKey, str]) -> None:
        """Take the evaluations.

        Args:
            parts: Evaluations, in any order.
            names: Names of the worlds in tables.

        Raises:
            UsageError: Two evaluations have the same seed at one level of one world.
        """
        self.parts = sorted(
            parts, key=lambda p: (p.coverage, p.world, tuple(p.setup.seeds), p.setup.eval_id)
        )
        self.names = names
        self.worlds = sorted({part.world for part in parts})
        self.levels = sorted({part.coverage for part in parts})
        _check_seeds(self.parts, names)

    @property
    def targets(self) -> list[TargetRecord]:
        """Targets of any evaluation, each name once."""
        found: dict[str, TargetRecord] = {}
        for part in self.parts:
            for target in part.setup.targets:
                found.setdefault(target.name, target)
        return list(found.values())

    @property
    def guards(self) -> list[str]:
        """Guards of any evaluation, in the order of the longest list."""
        lists = sorted((part.setup.guards for part in self.parts), key=len, reverse=True)
        return list(dict.fromkeys(guard for guards in lists for guard in guards))

    def at(self, coverage: float, world: WorldKey | None = None) -> list[LevelEvidence]:
        """Return the evaluations at a level, of one world or of all."""
        return [
            part for part in self.parts if part.coverage == coverage and world in {None, part.world}
        ]

    def figure(
        self,
        guard: str,
        metric: str,
        target: str | None,
        coverage: float,
        world: WorldKey | None = None,
    ) -> StudyFigure | None:
        """Return the mean over units with its interval; a lower bound is a figure here too."""
        found: list[PooledSample] = []
        for part in self.at(coverage, world):
            if guard in part.setup.guards:
                seeds = part.evidence.measured(metric, guard, target)
                sample = part.evidence.sample(metric, guard, target, seeds)
                if sample is not None:
                    found.append(PooledSample(sample, _keys(part, seeds)))
        if not found:
            return None
        both = pool(found)
        return StudyFigure(
            guard=guard,
            metric=metric,
            target=target,
            coverage=coverage,
            world=None if world is None else self.names[world],
            rate=both.sample.record(),
            units=len(both.units),
        )

    def gain(
        self,
        metric: str,
        target: str | None,
        coverage: float,
        *,
        world: WorldKey | None = None,
        guard: str = SELF_PLAY,
        versus: str = FROZEN,
    ) -> Gain | None:
        """Return what `guard` gains over `versus` on the units that have both; None without any."""
        ours: list[PooledSample] = []
        theirs: list[PooledSample] = []
        for part in self.at(coverage, world):
            other = part.measured(metric, versus, target)
            seeds = tuple(s for s in part.measured(metric, guard, target) if s in other)
            samples = [part.evidence.sample(metric, arm, target, seeds) for arm in (guard, versus)]
            if samples[0] is not None and samples[1] is not None:
                ours.append(PooledSample(samples[0], _keys(part, seeds)))
                theirs.append(PooledSample(samples[1], _keys(part, seeds)))
        if not ours:
            return None
        first, second = pool(ours), pool(theirs)
        better, worse = (first, second) if metric in HIGHER else (second, first)
        found = difference(better.sample, worse.sample)
        if math.isnan(found.value):
            return None
        each = better.sample.dropped.units - worse.sample.dropped.units
        return Gain(
            guard=guard,
            versus=versus,
            metric=metric,
            target=target,
            coverage=coverage,
            world=None if world is None else self.names[world],
            value=found.value,
            low=found.low,
            high=found.high,
            p=found.p,
            units=[
                UnitValue(world=self.names[unit.world], seed=unit.seed, value=float(value))
                for unit, value in zip(first.units, each, strict=True)
                if not math.isnan(value)
            ],
        )

    def combination(
        self, terms: Sequence[Term], metric: str, targets: Sequence[str]
    ) -> Combination | None:
        """Return a weighted sum of figures, each a mean over targets, unit by unit.

        Only units that have every figure count; None without any.

        Args:
            terms: Guards, levels and weights.
            metric: Name of the figure.
            targets: Names of the targets.
        """
        units: list[Floats] = []
        draws: list[Floats] = []
        keys: list[UnitKey] = []
        clusters: list[int] = []
        for world in self.worlds:
            seeds = self._seeds(world, terms, metric, targets)
            if not seeds:
                continue
            total = Replicates(np.zeros(len(seeds)), np.zeros(1))
            for term in terms:
                for target in targets:
                    sample = self._sample(world, term, metric, target, seeds)
                    one, weight = sample.dropped, term.weight / len(targets)
                    total = Replicates(
                        total.units + weight * one.units, total.draws + weight * one.draws
                    )
                    clusters.append(sample.num_clusters)
            units.append(total.units)
            draws.append(len(seeds) * total.draws)
            keys += [UnitKey(world, seed) for seed in seeds]
        if not keys:
            return None
        figure = Replicates(np.concatenate(units), np.sum(draws, axis=0) / len(keys))
        return Combination(figure, tuple(keys), min(clusters))

    def _seeds(
        self, world: WorldKey, terms: Sequence[Term], metric: str, targets: Sequence[str]
    ) -> tuple[int, ...]:
        """Return the seeds of a world that have every figure."""
        every = [
            {
                seed
                for part in self.at(term.coverage, world)
                for seed in part.measured(metric, term.guard, target)
            }
            for term in terms
            for target in targets
        ]
        return tuple(sorted(_common(every)))

    def _sample(
        self, world: WorldKey, term: Term, metric: str, target: str, seeds: tuple[int, ...]
    ) -> Sample:
        """Return a figure of a world, its units in the order of the seeds."""
        found: list[PooledSample] = []
        for part in self.at(term.coverage, world):
            own = tuple(seed for seed in seeds if seed in part.setup.seeds)
            sample = part.evidence.sample(metric, term.guard, target, own)
            if sample is not None:
                found.append(PooledSample(sample, _keys(part, own)))
        both = pool(found)
        order = [both.units.index(UnitKey(world, seed)) for seed in seeds]
        sample = both.sample
        return Sample(
            dropped=Replicates(sample.dropped.units[order], sample.dropped.draws),
            low=Replicates(sample.low.units[order], sample.low.draws),
            high=Replicates(sample.high.units[order], sample.high.draws),
            n=sample.n,
            errors=sample.errors,
            num_clusters=sample.num_clusters,
        )

    def shared_targets(self, terms: Sequence[Term], metric: str) -> list[str]:
        """Return the targets that have every figure, for at least one unit in each world.

        A world none of whose targets has every figure has no say.
        """
        by_world = {
            world: {t.name for t in self.targets if self._seeds(world, terms, metric, [t.name])}
            for world in self.worlds
        }
        shared = _common([names for names in by_world.values() if names])
        return [t.name for t in self.targets if t.name in shared]


class Term(NamedTuple):
    """One figure of a weighted sum."""

    guard: str
    """Guard in tables."""
    coverage: float
    """Level of coverage."""
    weight: float
    """Factor."""


@dataclass(frozen=True, slots=True)
class Combination:
    """A weighted sum of figures over units."""

    figure: Replicates
    """The sum, unit by unit and draw by draw."""
    units: tuple[UnitKey, ...]
    """[U] units, in the order of the figure's."""
    num_clusters: int
    """Clusters of the smallest population."""

    def contrast(self) -> Difference:
        """Return the sum with its interval."""
        return contrast(self.figure, num_clusters=self.num_clusters)


def slope_weights(levels: Sequence[float]) -> list[float]:
    """Return the weights that make of figures at these levels their least-squares slope.

    Args:
        levels: At least two different levels.
    """
    x = np.array(levels, dtype=np.float64)
    centred = x - x.mean()
    return (centred / (centred @ centred)).tolist()


def gain_terms(levels: Sequence[float], weights: Sequence[float]) -> list[Term]:
    """Return the terms of a weighted sum of gains in ASR: frozen minus self-play at each level.

    Args:
        levels: Levels of coverage.
        weights: One for each level.
    """
    signs = ((FROZEN, 1.0), (SELF_PLAY, -1.0))
    return [
        Term(guard, level, sign * weight)
        for level, weight in zip(levels, weights, strict=True)
        for guard, sign in signs
    ]


def fieller(numerator: Combination, denominator: Combination) -> Interval | None:
    """Return the interval of the ratio of two means over the same units.

    Args:
        numerator: Dividend.
        denominator: Divisor.

    Returns:
        None where the divisor's interval holds zero, and the ratio's has no bounds.
    """
    rows = [denominator.figure, numerator.figure]
    num_units, clusters = rows[0].units.size, min(numerator.num_clusters, denominator.num_clusters)
    if num_units < 2 and clusters < 2:
        return None
    covariance = np.zeros((2, 2))
    if clusters > 1:
        draws = np.stack([row.draws for row in rows])
        draws = draws[:, ~np.isnan(draws).any(axis=0)]
        covariance += np.cov(draws, bias=True) * clusters / (clusters - 1)
    if num_units > 1:
        units = np.stack([row.units for row in rows])
        covariance += np.cov(units[:, ~np.isnan(units).any(axis=0)]) / num_units
    t = float(stdtrit((num_units if num_units > 1 else clusters) - 1, 0.5 + LEVEL / 2))
    b, a = (row.mean for row in rows)
    (v_bb, v_ab), (_, v_aa) = (t * t * covariance).tolist()
    # The ratio r is in the set if (a - r b)^2 <= v_aa - 2 r v_ab + r^2 v_bb.
    square, linear, constant = b * b - v_bb, a * b - v_ab, a * a - v_aa
    if square <= 0:
        return None
    half = math.sqrt(max(0.0, linear * linear - square * constant))
    return Interval((linear - half) / square, (linear + half) / square)


def pool(samples: Sequence[PooledSample]) -> PooledSample:
    """Put the units of several samples side by side; each unit counts alike.

    Args:
        samples: At least one; those of one world have draws in common, others' are independent.
    """
    sizes = [len(one.units) for one in samples]
    parts = [one.sample for one in samples]

    def joined(rows: Sequence[Replicates]) -> Replicates:
        draws = np.average(np.stack([row.draws for row in rows]), axis=0, weights=sizes)
        return Replicates(np.concatenate([row.units for row in rows]), draws)

    sample = Sample(
        dropped=joined([part.dropped for part in parts]),
        low=joined([part.low for part in parts]),
        high=joined([part.high for part in parts]),
        n=sum(part.n for part in parts),
        errors=sum(part.errors for part in parts),
        num_clusters=min(part.num_clusters for part in parts),
    )
    return PooledSample(sample, tuple(unit for one in samples for unit in one.units))


def resamplers(keys: Iterable[WorldKey], num_draws: int = NUM_DRAWS) -> dict[WorldKey, Resampler]:
    """Return the draws of each world, which depend on nothing but the world.

    Args:
        keys: Worlds.
        num_draws: Draws of scenarios.
    """
    return {key: Resampler(num_draws=num_draws, seed=key.draw_seed) for key in set(keys)}


def _common(sets: Sequence[set[_Shared]]) -> set[_Shared]:
    """Return what all sets have; nothing if there are none."""
    return {one for one in sets[0] if all(one in other for other in sets)} if sets else set()


def _keys(part: LevelEvidence, seeds: Sequence[int]) -> tuple[UnitKey, ...]:
    return tuple(UnitKey(part.world, seed) for seed in seeds)


def _check_seeds(parts: Sequence[LevelEvidence], names: Mapping[WorldKey, str]) -> None:
    known: dict[tuple[float, UnitKey], str] = {}
    for part in parts:
        for unit in _keys(part, part.setup.seeds):
            other = known.setdefault((part.coverage, unit), part.setup.eval_id)
            if other != part.setup.eval_id:
                raise UsageError(
                    f"seed {unit.seed} of {names[part.world]} at coverage {part.coverage:g} is in "
                    f"the evaluations {other} and {part.setup.eval_id}: name one of them"
                )
