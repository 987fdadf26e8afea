"""A study of coverage: what self-play gains over a frozen attacker, by what the attackers knew.

It is read from ordinary evaluations, one for each world and level, and from nothing else. Any set
of them makes a study: of one world, of other levels, or of a part, and what is lacking is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tsgb.errors import UsageError
from tsgb.eval.evidence import TARGET_METRICS
from tsgb.eval.records import Item, Setup, Summary
from tsgb.eval.stored import StoredEvaluation
from tsgb.eval.study_claims import MIN_UNITS, read_study_claims
from tsgb.eval.study_discovery import level_discovery, read_discovery
from tsgb.eval.study_evidence import (
    ALONE,
    LevelEvidence,
    StudyEvidence,
    WorldKey,
    level_of,
    resamplers,
)
from tsgb.eval.study_records import (
    Gain,
    LevelDiscovery,
    StudyFigure,
    StudyGap,
    StudyPlan,
    StudySource,
    StudySummary,
    StudyWorld,
    UnitDiscovery,
)
from tsgb.eval.study_views import plain_sentence
from tsgb.eval.table import NO_GUARD
from tsgb.eval.verdict import FROZEN, SELF_PLAY
from tsgb.eval.wording import no_protection, not_converged, too_many_failed

STUDY_DRAWS = 2000
"""Draws of scenarios: they give the error between scenarios to within 2 %, of an interval that
training seeds dominate."""
PARTS = ("no_novelty", "no_pool", "reinit")
"""Arms of self-play that differ in one part of what may find techniques."""
PART_METRICS = ("adaptive_asr", "asr", "scripted_tpr", "pauroc")
"""Figures in which such arms are compared; those of attacks on the surrogate."""


@dataclass(frozen=True, slots=True)
class StudyInput:
    """One evaluation, whose items are read when they are needed."""

    summary: Summary
    """Its summary."""
    items: Callable[[], Iterable[Item]]
    """Reads its items."""
    url: str = ""
    """Address of its directory; empty where it is not from a store."""


def summarise_study(
    evaluations: Sequence[StoredEvaluation],
    *,
    plan: StudyPlan | None = None,
    num_draws: int = STUDY_DRAWS,
) -> StudySummary:
    """Read stored evaluations as one study.

    Args:
        evaluations: Evaluations in any order.
        plan: Trainings that the study is to have; without it, all levels and seeds of each world.
        num_draws: Draws of scenarios of the bootstrap.

    Raises:
        UsageError: There is none, or two have the same training.
    """
    inputs = [StudyInput(one.summary(), one.items, one.url) for one in evaluations]
    return study_of(inputs, plan=plan, num_draws=num_draws)


def study_of(
    inputs: Sequence[StudyInput],
    *,
    plan: StudyPlan | None = None,
    num_draws: int = STUDY_DRAWS,
    min_units: int = MIN_UNITS,
) -> StudySummary:
    """Count everything and read the claims.

    An evaluation that is not valid is left out and named.

    Args:
        inputs: Evaluations in any order.
        plan: Trainings that the study is to have.
        num_draws: Draws of scenarios of the bootstrap.
        min_units: Trainings that a claim needs.

    Raises:
        UsageError: There is none that is valid, or two have the same training.
    """
    ordered = sorted(inputs, key=_order)
    names = _names(WorldKey.of(one.summary) for one in ordered)
    draws = resamplers(names, num_draws)
    left_out: list[StudyGap] = []
    parts: list[LevelEvidence] = []
    sources: list[StudySource] = []
    discovered: list[UnitDiscovery] = []
    for one in ordered:
        key = WorldKey.of(one.summary)
        if one.summary.invalid:
            reason = f"{one.summary.eval_id} is not valid: {too_many_failed(one.summary.invalid)}"
            left_out.append(_gap(one.summary, names[key], reason))
            continue
        parts.append(LevelEvidence.of(one.summary, one.items(), draws[key]))
        sources.append(_source(one, names[key]))
        discovered += [
            read_discovery(found, names[key], level_of(one.summary))
            for found in one.summary.discovery
        ]
    if not parts:
        raise UsageError("no evaluation that is valid was given: a study needs at least one")
    evidence = StudyEvidence(parts, names)
    first = evidence.parts[0].setup
    left_out += _left_out(evidence)
    study = StudySummary(
        env=", ".join(dict.fromkeys(part.setup.env for part in evidence.parts)),
        limits=" ".join(dict.fromkeys(part.setup.limits for part in evidence.parts)),
        threshold_rule=first.threshold_rule,
        worlds=_worlds(evidence),
        levels=evidence.levels,
        targets=evidence.targets,
        guards=evidence.guards,
        sources=sources,
        missing=list(_missing_trainings(evidence, plan)),
        left_out=left_out,
        claims=read_study_claims(evidence, discovered, min_units=min_units),
        figures=list(_figures(evidence)),
        gains=list(_gains(evidence)),
        parts=list(_parts(evidence)),
        discovery=_discovery(discovered),
        discovered=discovered,
    )
    return study.model_copy(update={"sentence": plain_sentence(study)})


def _order(one: StudyInput) -> tuple[float, WorldKey, list[int], str]:
    summary = one.summary
    return level_of(summary), WorldKey.of(summary), summary.seeds, summary.eval_id


def _names(keys: Iterable[WorldKey]) -> dict[WorldKey, str]:
    """Name worlds by what tells them apart."""
    found = sorted(set(keys))
    envs, sizes = {key.env for key in found}, {key.symbols for key in found}
    names: dict[WorldKey, str] = {}
    for key in found:
        seed = "world" if key.world_seed < 0 else f"world {key.world_seed}"
        size = f" of {key.symbols or 'its own'} symbols" if len(sizes) > 1 else ""
        names[key] = f"{key.env} {seed}{size}" if len(envs) > 1 else f"{seed}{size}"
    return names


def _gap(setup: Setup, world: str, reason: str) -> StudyGap:
    return StudyGap(coverage=level_of(setup), world=world, reason=reason)


def _source(one: StudyInput, world: str) -> StudySource:
    summary = one.summary
    return StudySource(
        eval_id=summary.eval_id,
        url=one.url,
        world=world,
        coverage=level_of(summary),
        seeds=summary.seeds,
        commit=summary.provenance.commit,
        config_sha256=summary.provenance.config_sha256,
        matched=summary.matched,
    )


def _worlds(evidence: StudyEvidence) -> list[StudyWorld]:
    return [
        StudyWorld(
            name=evidence.names[key],
            env=key.env,
            world_seed=None if key.world_seed < 0 else key.world_seed,
            symbols=key.symbols or None,
            seeds=_seeds_of(evidence, key),
        )
        for key in evidence.worlds
    ]


def _seeds_of(evidence: StudyEvidence, world: WorldKey) -> list[int]:
    return sorted({s for part in evidence.parts if part.world == world for s in part.setup.seeds})


def _missing_trainings(evidence: StudyEvidence, plan: StudyPlan | None) -> Iterator[StudyGap]:
    """Yield what each level of each world lacks, of the plan or of what other levels have."""
    levels = set(evidence.levels) | {round(level, 6) for level in (plan.levels if plan else ())}
    known = {key.world_seed for key in evidence.worlds}
    for seed in sorted(set(plan.world_seeds) - known) if plan else ():
        yield from (
            StudyGap(coverage=level, world=f"world {seed}", reason="no evaluation")
            for level in sorted(levels)
        )
    for level in sorted(levels):
        for world in evidence.worlds:
            name = evidence.names[world]
            wanted = set(_seeds_of(evidence, world))
            if plan is not None and world.world_seed in plan.world_seeds:
                wanted |= set(plan.seeds)
            parts = evidence.at(level, world)
            if not parts:
                yield StudyGap(coverage=level, world=name, reason="no evaluation")
                continue
            lacking = sorted(wanted - {seed for part in parts for seed in part.setup.seeds})
            if lacking:
                yield StudyGap(
                    coverage=level, world=name, reason=f"seeds {', '.join(map(str, lacking))}"
                )
            yield from (
                StudyGap(coverage=level, world=name, reason=reason)
                for part in parts
                for reason in _missing_arms(part, _arms_at(evidence, level))
            )


def _arms_at(evidence: StudyEvidence, level: float) -> list[str]:
    """Return the guards that a level should have in every world: those that it has in any."""
    guards = [guard for part in evidence.at(level) for guard in part.setup.guards]
    return [arm for arm in dict.fromkeys((SELF_PLAY, FROZEN, *guards)) if arm != NO_GUARD]


def _missing_arms(part: LevelEvidence, arms: Sequence[str]) -> Iterator[str]:
    """Yield the arms that some seeds lack, those together that lack the same seeds."""
    lacking: dict[tuple[int, ...], list[str]] = {}
    for arm in arms:
        listed = arm in part.setup.guards
        have = part.evidence.attempted("scripted_tpr", arm) if listed else ()
        gone = tuple(seed for seed in part.setup.seeds if seed not in have)
        if gone:
            lacking.setdefault(gone, []).append(arm)
    for seeds, names in lacking.items():
        yield f"{', '.join(names)} of seeds {', '.join(map(str, seeds))}"


def _left_out(evidence: StudyEvidence) -> Iterator[StudyGap]:
    """Yield the targets on which nothing can be compared, and why."""
    for part in evidence.parts:
        name = evidence.names[part.world]
        for target in part.setup.targets:
            found = [part.evidence.unguarded(metric, target.name) for metric in TARGET_METRICS]
            obstacle = no_protection(*found)
            if obstacle is not None:
                yield _gap(part.setup, name, obstacle)
            doubts = [
                doubt
                for guard in part.setup.guards
                if (doubt := part.evidence.unconverged(guard, target.name)) is not None
            ]
            bare = [doubt for doubt in doubts if doubt.guard == NO_GUARD]
            guarded = [doubt for doubt in doubts if doubt.guard != NO_GUARD]
            if guarded:
                yield _gap(part.setup, name, not_converged(guarded))
            if bare:
                told = f"{not_converged(bare)}; only the figure without a guard is a lower bound"
                yield _gap(part.setup, name, told)


def _figures(evidence: StudyEvidence) -> Iterator[StudyFigure]:
    """Yield every guard's figures, by level: over all worlds, then of each."""
    several = len(evidence.worlds) > 1
    for level in evidence.levels:
        for world in (None, *evidence.worlds) if several else (None,):
            for guard in evidence.guards:
                for metric, target in _asked(evidence):
                    found = evidence.figure(guard, metric, target, level, world)
                    if found is not None:
                        yield found


def _gains(evidence: StudyEvidence) -> Iterator[Gain]:
    several = len(evidence.worlds) > 1
    for level in evidence.levels:
        for world in (None, *evidence.worlds) if several else (None,):
            for metric, target in _asked(evidence):
                found = evidence.gain(metric, target, level, world=world)
                if found is not None:
                    yield found


def _asked(evidence: StudyEvidence) -> list[tuple[str, str | None]]:
    """Return every figure with its target."""
    on_targets = [(metric, t.name) for metric in TARGET_METRICS for t in evidence.targets]
    return [*on_targets, *((metric, None) for metric in ALONE)]


def _parts(evidence: StudyEvidence) -> Iterator[Gain]:
    """Yield what each part of self-play is worth, at the lowest level that has the arm."""
    surrogate = next((t.name for t in evidence.targets if t.role == "surrogate"), None)
    pairs = [(SELF_PLAY, arm) for arm in PARTS]
    pairs += [(FROZEN, "frozen_no_quota"), (SELF_PLAY, "frozen_no_quota"), (SELF_PLAY, "sft")]
    for guard, versus in pairs:
        for level in evidence.levels:
            found = [
                evidence.gain(
                    metric,
                    surrogate if metric in TARGET_METRICS else None,
                    level,
                    guard=guard,
                    versus=versus,
                )
                for metric in PART_METRICS
            ]
            known = [gain for gain in found if gain is not None]
            if known:
                yield from known
                break


def _discovery(discovered: Sequence[UnitDiscovery]) -> list[LevelDiscovery]:
    """Return a row for each level and arm, levels in order."""
    rows: dict[tuple[float, str], list[UnitDiscovery]] = {}
    for unit in discovered:
        rows.setdefault((unit.coverage, unit.arm), []).append(unit)
    return [level_discovery(rows[key]) for key in sorted(rows)]
