"""The published format of a study of coverage: `study.json`.

A study is a set of evaluations, one for each world and level of coverage. A unit is one training:
a seed in a world. Shares and areas are in [0, 1]; a gain is signed so that more is better for
self-play.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from tsgb.eval.records import Claim, Estimate, Rate, Record, TargetRecord

STUDY_VERSION = 1


class StudyPlan(Record):
    """The trainings that a study is to have; what it lacks is told.

    Example: `StudyPlan(world_seeds=[11, 12], levels=[0, 0.25, 0.5, 1], seeds=[1, 2, 3, 4, 5])`
    """

    world_seeds: list[int]
    """Seeds of the worlds."""
    levels: list[float]
    """Levels of coverage."""
    seeds: list[int]
    """Training seeds in each world."""


class StudyWorld(Record):
    """A world of the study."""

    name: str
    """Name in tables."""
    env: str
    """Environment."""
    world_seed: int | None
    """Seed of the world; None in evaluations of earlier versions."""
    symbols: int | None = None
    """Size of the world where it is not the world's own."""
    seeds: list[int]
    """Training seeds that any of its evaluations has."""


class StudySource(Record):
    """An evaluation that the study was read from."""

    eval_id: str
    """Name of the evaluation."""
    url: str = ""
    """Address of its directory; empty where it was not read from a store."""
    world: str
    """Name of its world."""
    coverage: float
    """Level of coverage."""
    seeds: list[int]
    """Training seeds."""
    commit: str | None
    """Commit of the code that wrote it; None when installed."""
    config_sha256: str
    """Hash of the fingerprints of its runs."""
    matched: bool
    """Whether its guards are at one realised rate of false positives."""


class StudyGap(Record):
    """Something that the study does not have, or does not read."""

    coverage: float
    """Level of coverage."""
    world: str
    """Name of the world."""
    reason: str
    """The gap in words."""


class StudyFigure(Record):
    """One figure of one guard at one level of coverage, as the mean over units."""

    guard: str
    """Guard in tables."""
    metric: str
    """Name of the figure."""
    target: str | None
    """Target in tables; None for a figure of the guard alone."""
    coverage: float
    """Level of coverage."""
    world: str | None
    """Name of the world; None for the mean over the units of all worlds."""
    rate: Rate
    """The figure with its interval."""
    units: NonNegativeInt
    """Trainings that it is the mean of."""


class UnitValue(Record):
    """The figure of one training."""

    world: str
    """Name of the world."""
    seed: int
    """Training seed."""
    value: float
    """The figure."""


class Gain(Record):
    """The gain of one guard over another at one level of coverage, paired by unit.

    It is positive where the first lets fewer attacks through, or tells harm from benign better.
    """

    guard: str = "selfplay"
    """First guard."""
    versus: str = "frozen"
    """Second guard."""
    metric: str
    """Name of the figure."""
    target: str | None
    """Target in tables; None for a figure of the guards alone."""
    coverage: float
    """Level of coverage."""
    world: str | None
    """Name of the world; None for the mean over the units of all worlds."""
    value: float
    """Mean over units, in the units of the figure."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p: float
    """Two-sided p-value of "it is zero"."""
    units: list[UnitValue]
    """Gain of each training."""

    @property
    def differs(self) -> bool:
        """Whether the interval excludes zero."""
        return not self.low <= 0 <= self.high


class TechniqueShown(Record):
    """A technique that no attacker was shown and that one of self-play's attackers came to use.

    Example: `TechniqueShown(technique="e3 t1", round="round-2", before=9, after=31, prompts=40)`
    """

    technique: str
    """Name of the technique."""
    round: str
    """First attacker that broke the surrogate with it often enough."""
    before: NonNegativeInt
    """Prompts of it that the guard before that round blocks."""
    after: NonNegativeInt
    """Prompts of it that the guard after that round blocks."""
    prompts: NonNegativeInt
    """Harmful prompts of it in the test."""

    @property
    def change(self) -> float:
        """Share blocked after the round minus before it."""
        return (self.after - self.before) / self.prompts


class UnitDiscovery(Record):
    """Techniques that the attackers of one training found."""

    coverage: float
    """Level of coverage."""
    world: str
    """Name of the world."""
    seed: int
    """Training seed."""
    arm: str = "selfplay"
    """Trained arm."""
    known: NonNegativeInt
    """Techniques that the first attacker was shown."""
    warm_up: NonNegativeInt
    """Further techniques that the attacker of the warm-up uses, which the frozen arm has too."""
    found: dict[str, NonNegativeInt]
    """Further techniques that no attacker before used, by the attacker that first does."""
    shown: list[TechniqueShown]
    """Those of `found` that the test has prompts of, with what guards made of them."""
    others: float | None = None
    """Mean change, over the same rounds, of the share blocked of techniques that nobody had been
    shown or had found by then; None without such techniques."""

    @property
    def later(self) -> int:
        """Number of techniques found after the warm-up."""
        return sum(self.found.values())

    @property
    def change(self) -> float | None:
        """Mean change over the techniques that were shown; None without any."""
        if not self.shown:
            return None
        return sum(one.change for one in self.shown) / len(self.shown)


class LevelDiscovery(Record):
    """The discovery table's row: means over the trainings of one arm at one level."""

    coverage: float
    """Level of coverage."""
    arm: str
    """Trained arm."""
    units: NonNegativeInt
    """Trainings."""
    known: Estimate
    """Techniques that the first attacker was shown."""
    warm_up: Estimate
    """Further techniques that the attacker of the warm-up uses."""
    later: Estimate
    """Further techniques that later attackers found."""
    by_round: dict[str, float]
    """Mean number of those, by the attacker that first uses them."""
    before: float | None
    """Share of their prompts that the guard before the round blocks, mean over units."""
    after: float | None
    """The same of the guard after the round."""
    change: Estimate | None
    """The second minus the first; None where no training found anything."""
    others: Estimate | None
    """Change, over the same rounds, of techniques that had not been shown."""
    prompts: NonNegativeInt
    """Prompts behind these shares, all units together."""
    finders: NonNegativeInt
    """Trainings whose attackers found any."""


class StudySummary(Record):
    """`study.json`."""

    study_version: Literal[1] = STUDY_VERSION
    """Version of this format."""
    sentence: str = ""
    """Finding in one plain sentence."""
    env: str
    """Environments of the worlds, by name."""
    limits: str
    """Sentence about what results in these worlds do not show."""
    threshold_rule: str
    """Rule that chose the operating points."""
    worlds: list[StudyWorld]
    """Worlds in table order."""
    levels: list[float]
    """Levels of coverage that were measured, lowest first."""
    targets: list[TargetRecord]
    """Targets in table order."""
    guards: list[str]
    """Guards in table order."""
    sources: list[StudySource]
    """Evaluations that were read."""
    missing: list[StudyGap] = Field(default_factory=list[StudyGap])
    """Trainings and arms that the study lacks."""
    left_out: list[StudyGap] = Field(default_factory=list[StudyGap])
    """Figures that are not compared, or are lower bounds, and why."""
    claims: list[Claim]
    """Readings of P1 to P4."""
    figures: list[StudyFigure]
    """Figures of every guard, by level and by level and world."""
    gains: list[Gain]
    """Gains of self-play over the frozen attacker, by level and by level and world."""
    parts: list[Gain]
    """Gains over arms that differ in one part, at the lowest coverage that has them."""
    discovery: list[LevelDiscovery]
    """Rows of the discovery table."""
    discovered: list[UnitDiscovery]
    """Every training's discoveries."""

    def gain(self, metric: str, target: str | None, coverage: float) -> Gain | None:
        """Return the gain over the units of all worlds at a level; None where it has no figure."""
        return next(
            (
                g
                for g in self.gains
                if (g.metric, g.target, g.coverage, g.world) == (metric, target, coverage, None)
            ),
            None,
        )

    def figure(
        self, guard: str, metric: str, target: str | None, coverage: float
    ) -> StudyFigure | None:
        """Return a guard's figure over the units of all worlds at a level."""
        return next(
            (
                f
                for f in self.figures
                if (f.guard, f.metric, f.target) == (guard, metric, target)
                and (f.coverage, f.world) == (coverage, None)
            ),
            None,
        )
