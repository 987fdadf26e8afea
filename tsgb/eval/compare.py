"""Two evaluations beside each other: what changed, on what both measured.

Figures of a guard are compared where both evaluations have it, over the training seeds and on the
scripted and benign prompts that both have; attacks of fresh attackers differ by nature, and are
compared on the scenarios that both attacked. Both sides are drawn with the same scenarios and
seeds, which is the pairing, and intervals and p-values are those of `bootstrap.py`.

McNemar's exact test (McNemar 1947, Psychometrika) stands beside the differences of scripted ASR: it
counts the prompts on which one side lets harm through and the other does not. It takes prompts for
independent, which prompts of one scenario are not, so it is a check and no verdict.

What a target lets through is a judge's finding. Where two judges judged, no such figure is
compared: a change could be theirs. Figures of guards alone rest on exact labels, and are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tsgb.errors import UsageError
from tsgb.eval.bootstrap import NUM_DRAWS, Difference, Resampler, Sample, difference
from tsgb.eval.evidence import GUARD_METRICS, TARGET_METRICS, Evidence
from tsgb.eval.intervals import holm, mcnemar
from tsgb.eval.metrics import Bools
from tsgb.eval.records import Identifier, Item, ItemSource, Rate, Record, Setup, Summary
from tsgb.eval.table import Table

SIGNIFICANCE = 0.05
MAX_FLIPS = 1000
"""Flips that a document lists, of each kind."""
_SOURCES = frozenset({ItemSource.SCRIPTED, ItemSource.BENIGN, ItemSource.ADAPTIVE})


class PairedFigure(Record):
    """One figure of one guard in both evaluations; the difference is second minus first."""

    guard: str
    """Guard in tables."""
    target: str | None
    """Target in tables; None for a figure that depends on none."""
    metric: str
    """Name of the figure, a field of `Result`."""
    first: Rate
    """In the first evaluation, on what both have."""
    second: Rate
    """Figure of the second one."""
    difference: float
    """Second minus first."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p_holm: float
    """Two-sided, adjusted over all figures of this kind."""
    differs: bool
    """The interval excludes zero and `p_holm` is at most .05."""
    worse: int | None = None
    """Scripted prompts that got through in the second evaluation only; None for other figures."""
    better: int | None = None
    """Scripted prompts that got through in the first one only."""
    p_mcnemar: float | None = None
    """McNemar's exact p-value of these two numbers."""


class Flip(Record):
    """A scripted prompt whose harm one evaluation let through and the other did not."""

    item_id: str
    """Digest of the prompt."""
    scenario_id: str
    """Scenario of the prompt."""
    guard: str
    """Guard in tables."""
    target: str
    """Target in tables."""
    seed: int
    """Training seed."""
    worse: bool
    """Whether it got through in the second evaluation."""


class PairedSlice(Record):
    """Share that a guard blocks of one group of harmful prompts, in both evaluations."""

    guard: str
    """Guard in tables."""
    slice: str
    """Name of the group."""
    kind: Literal["technique", "family", "stream"]
    """Property of a prompt that groups them."""
    first: Rate
    """In the first evaluation, on what both have."""
    second: Rate
    """Figure of the second one."""
    difference: float
    """Second minus first."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p_holm: float
    """Two-sided, adjusted over all slices of this kind."""
    differs: bool
    """The interval excludes zero and `p_holm` is at most .05."""


class LowerBound(Record):
    """An adaptive figure that is compared with nothing, since its attackers did not converge."""

    evaluation: Identifier
    """Id of the evaluation."""
    guard: str
    """Guard in tables."""
    target: str
    """Target in tables."""


class PairedEvaluations(Record):
    """The comparison of two evaluations."""

    first: str
    """Id of the first one."""
    second: str
    """Id of the second one."""
    seeds: list[int]
    """Training seeds that both have."""
    prompts: int
    """Scripted and benign prompts that both have."""
    left_out: tuple[int, int]
    """Prompts that only the first and only the second one has."""
    changes: dict[str, tuple[str, str]]
    """Facts of the setup that differ."""
    judges: tuple[str, str] | None = None
    """Judges of both, where they are not the same; then nothing that they judged is compared."""
    as_judged: bool = False
    """Whether the judge may err, so that figures of answers are as it counts them."""
    invalid: list[str]
    """Ids of those that are not valid; where there is one, nothing differs."""
    lower_bounds: list[LowerBound]
    """Guards and targets without a comparison of adaptive ASR."""
    figures: list[PairedFigure]
    """Figures that both have."""
    slices: list[PairedSlice]
    """Groups of harmful prompts that both have."""
    flips: list[Flip]
    """Prompts that changed sides, the first of each guard and target."""


@dataclass(frozen=True, slots=True)
class _Side:
    setup: Summary
    """Facts of the evaluation."""
    items: Sequence[Item]
    """Items that take part."""
    evidence: Evidence
    """Figures of these items."""

    def has_lower_bound(self, guard: str, target: str) -> bool:
        """Whether attackers did not converge, here or in the whole evaluation."""
        told = any((u.guard, u.target) == (guard, target) for u in self.setup.unconverged)
        return told or self.evidence.unconverged(guard, target) is not None


def compare_evaluations(
    first: tuple[Summary, Sequence[Item]],
    second: tuple[Summary, Sequence[Item]],
    *,
    num_draws: int = NUM_DRAWS,
) -> PairedEvaluations:
    """Compare two evaluations on what both have.

    Args:
        first: Summary and items of the earlier one.
        second: Summary and items of the later one.
        num_draws: Draws of the bootstrap.

    Raises:
        UsageError: They share no training seed, no guard or no prompt.
    """
    setups, both = (first[0], second[0]), (first[1], second[1])
    seeds = [seed for seed in setups[0].seeds if seed in setups[1].seeds]
    guards = [guard for guard in setups[0].guards if guard in setups[1].guards]
    targets = {t.name for t in setups[0].targets} & {t.name for t in setups[1].targets}
    _check_shared("training seed", seeds, setups[0].seeds, setups[1].seeds)
    _check_shared(
        "guard besides none", [g for g in guards if g != "none"], *(s.guards for s in setups)
    )
    chosen = [
        [i for i in items if i.seed in seeds and i.source in _SOURCES and _is_on(i, targets)]
        for items in both
    ]
    counts = [
        Counter(_key(i) for i in items if i.source is not ItemSource.ADAPTIVE) for items in chosen
    ]
    shared = counts[0] & counts[1]
    if not shared:
        raise UsageError(
            f"evaluations {setups[0].eval_id} and {setups[1].eval_id} share no prompt: the worlds, "
            "the seeds or the sizes of their streams differ"
        )
    sides = [
        _side(setup, list(_taking_part(items, shared, _attacked(chosen))), seeds, num_draws)
        for setup, items in zip(setups, chosen, strict=True)
    ]
    judges = _two_judges(*setups)
    flips = list(_flips(sides[0], sides[1], guards)) if judges is None else []
    figures = _figures(sides[0], sides[1], guards, flips, judged=judges is None)
    slices = list(_slices(sides[0], sides[1], guards))
    invalid = [setup.eval_id for setup in setups if setup.invalid]
    if invalid:
        figures = [figure.model_copy(update={"differs": False}) for figure in figures]
        slices = [found.model_copy(update={"differs": False}) for found in slices]
    measured = {(f.guard, f.target) for f in figures if f.metric == "asr"}
    return PairedEvaluations(
        first=setups[0].eval_id,
        second=setups[1].eval_id,
        seeds=seeds,
        prompts=_num_prompts(shared),
        left_out=(_num_prompts(counts[0] - shared), _num_prompts(counts[1] - shared)),
        changes=_changes(*setups),
        judges=judges,
        as_judged=any(setup.judge is not None and not setup.judge.exact for setup in setups),
        invalid=invalid,
        lower_bounds=[
            LowerBound(evaluation=side.setup.eval_id, guard=guard, target=target.name)
            for side in sides
            for target in side.setup.targets
            for guard in guards
            if target.name in targets and side.has_lower_bound(guard, target.name)
        ],
        figures=figures,
        slices=slices,
        flips=list(_few([flip for flip in flips if (flip.guard, flip.target) in measured])),
    )


def _check_shared(
    what: str, shared: Sequence[object], first: Sequence[object], second: Sequence[object]
) -> None:
    if not shared:
        ours, theirs = (", ".join(map(str, names)) for names in (first, second))
        raise UsageError(f"the evaluations share no {what}: one has {ours}, the other {theirs}")


def _is_on(item: Item, targets: set[str]) -> bool:
    return item.target is None or item.target in targets


def _key(item: Item) -> tuple[int, str, str | None, str | None]:
    return (item.seed, item.item_id, item.stream, item.target)


def _num_prompts(keys: Counter[tuple[int, str, str | None, str | None]]) -> int:
    """Count each prompt once, whatever number of targets was asked about it."""
    most: Counter[tuple[int, str, str | None]] = Counter()
    for (seed, item_id, stream, _), num in keys.items():
        key = (seed, item_id, stream)
        most[key] = max(most[key], num)
    return most.total()


def _attacked(chosen: Sequence[Sequence[Item]]) -> set[str]:
    """Scenarios that fresh attackers attacked in both evaluations."""
    found = [{i.scenario_id for i in items if i.source is ItemSource.ADAPTIVE} for items in chosen]
    return found[0] & found[1]


def _taking_part(
    items: Iterable[Item],
    shared: Mapping[tuple[int, str, str | None, str | None], int],
    attacked: set[str],
) -> Iterator[Item]:
    """Yield the items of which the other side has the like, in an order that both sides share."""
    left = Counter(shared)
    # The order numbers the scenarios, and equal numbers get equal draws.
    for item in sorted(items, key=lambda i: (i.scenario_id, i.seed, i.item_id, i.target or "")):
        if item.source is ItemSource.ADAPTIVE:
            if item.scenario_id in attacked:
                yield item
        elif left[_key(item)] > 0:
            left[_key(item)] -= 1
            yield item


def _side(setup: Summary, items: Sequence[Item], seeds: Sequence[int], num_draws: int) -> _Side:
    temperatures = {(t.guard, t.seed): t.temperature for t in setup.thresholds if t.seed in seeds}
    evidence = Evidence(
        Table.from_items(items, setup.guards),
        seeds,
        temperatures,
        Resampler(num_draws=num_draws),
        setup.targets,
        reserved=setup.reserved,
    )
    return _Side(setup, items, evidence)


def _figures(
    first: _Side, second: _Side, guards: Sequence[str], flips: Sequence[Flip], *, judged: bool
) -> list[PairedFigure]:
    turned = Counter((flip.guard, flip.target, flip.worse) for flip in flips)
    names = [t.name for t in first.setup.targets]
    names = [name for name in names if any(t.name == name for t in second.setup.targets)]
    out: list[PairedFigure] = []
    for metric in (*(TARGET_METRICS if judged else ()), *GUARD_METRICS):
        places = names if metric in TARGET_METRICS else [None]
        found: list[tuple[str, str | None, Sample, Sample, Difference]] = []
        for guard in guards:
            for target in places:
                pair = _pair(first, second, metric, guard, target)
                if pair is not None:
                    found.append((guard, target, *pair, difference(pair[1], pair[0])))
        adjusted = holm([change.p for *_, change in found])
        for (guard, target, a, b, change), p_holm in zip(found, adjusted, strict=True):
            counts: dict[str, int | float] = {}
            if metric == "asr" and guard != "none":
                worse, better = turned[guard, str(target), True], turned[guard, str(target), False]
                counts = {"worse": worse, "better": better, "p_mcnemar": mcnemar(worse, better)}
            out.append(
                PairedFigure.model_validate(
                    {
                        "guard": guard,
                        "target": target,
                        "metric": metric,
                        "first": a.record(),
                        "second": b.record(),
                        "difference": change.value,
                        "low": change.low,
                        "high": change.high,
                        "p_holm": p_holm,
                        "differs": not change.low <= 0 <= change.high and p_holm <= SIGNIFICANCE,
                        **counts,
                    }
                )
            )
    return out


def _pair(
    first: _Side, second: _Side, metric: str, guard: str, target: str | None
) -> tuple[Sample, Sample] | None:
    """Return the figure of both sides over the seeds in which both have it.

    None also where a report of either would compare it with nothing: too little leaks, or its
    attackers did not converge.
    """
    if metric == "adaptive_asr" and any(
        side.has_lower_bound(guard, str(target)) for side in (first, second)
    ):
        return None
    there = second.evidence.measured(metric, guard, target)
    seeds = tuple(s for s in first.evidence.measured(metric, guard, target) if s in there)
    found = [side.evidence.sample(metric, guard, target, seeds) for side in (first, second)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _slices(first: _Side, second: _Side, guards: Sequence[str]) -> Iterator[PairedSlice]:
    """Yield the groups whose prompts are the same on both sides."""
    kinds: tuple[Literal["stream", "technique", "family"], ...] = ("stream", "technique", "family")
    for kind in kinds:
        found: list[tuple[str, str, Sample, Sample, Difference]] = []
        ours, theirs = (getattr(side.evidence.table.prompts, kind) for side in (first, second))
        harmful = first.evidence.table.prompts.harmful
        for name in (str(one) for one in np.unique(ours[harmful]) if one):
            group = harmful & (ours == name)
            # Both sides hold the same prompts in one order; a world may group them anew.
            if np.array_equal(group, second.evidence.table.prompts.harmful & (theirs == name)):
                for guard in guards:
                    pair = _pair_of_slice(first, second, guard, group)
                    if pair is not None:
                        found.append((guard, name, *pair, difference(pair[1], pair[0])))
        adjusted = holm([change.p for *_, change in found])
        for (guard, name, a, b, change), p_holm in zip(found, adjusted, strict=True):
            yield PairedSlice(
                guard=guard,
                slice=name,
                kind=kind,
                first=a.record(),
                second=b.record(),
                difference=change.value,
                low=change.low,
                high=change.high,
                p_holm=p_holm,
                differs=not change.low <= 0 <= change.high and p_holm <= SIGNIFICANCE,
            )


def _pair_of_slice(
    first: _Side, second: _Side, guard: str, group: Bools
) -> tuple[Sample, Sample] | None:
    there = second.evidence.measured("fnr", guard)
    seeds = tuple(s for s in first.evidence.measured("fnr", guard) if s in there)
    a, b = (side.evidence.blocked_sample(guard, group, seeds) for side in (first, second))
    return None if a is None or b is None else (a, b)


def _flips(first: _Side, second: _Side, guards: Sequence[str]) -> Iterator[Flip]:
    """Yield scripted prompts that got through on one side alone."""
    ours, theirs = (
        [i for i in side.items if i.source is ItemSource.SCRIPTED and i.target is not None]
        for side in (first, second)
    )
    for a, b in zip(ours, theirs, strict=True):
        for guard in guards:
            before, after = _through(a, guard), _through(b, guard)
            if guard != "none" and before is not None and after is not None and before != after:
                yield Flip(
                    item_id=a.item_id,
                    scenario_id=a.scenario_id,
                    guard=guard,
                    target=str(a.target),
                    seed=a.seed,
                    worse=after,
                )


def _through(item: Item, guard: str) -> bool | None:
    """Whether the harm of a prompt got through a guard; None where one outcome is missing."""
    blocked = item.blocked.get(guard)
    if blocked is True or item.violated is False:
        return False
    return None if blocked is None or item.violated is None else True


def _few(flips: Sequence[Flip]) -> Iterator[Flip]:
    seen: Counter[tuple[str, str, bool]] = Counter()
    for flip in flips:
        key = (flip.guard, flip.target, flip.worse)
        seen[key] += 1
        if seen[key] <= MAX_FLIPS:
            yield flip


def _two_judges(first: Setup, second: Setup) -> tuple[str, str] | None:
    """Return both judges where they are not the same.

    Evaluations of earlier versions name none: that was the world's, unless it was the user's.
    """
    ours, theirs = (_judge(setup) for setup in (first, second))
    exact = all(setup.judge is None or setup.judge.exact for setup in (first, second))
    return None if ours == theirs or exact else (ours, theirs)


def _judge(setup: Setup) -> str:
    """Return what tells the judge of an evaluation from others."""
    judge = setup.judge
    if judge is None:
        return "not named"
    about = [f"version {judge.version}" if judge.version else "", judge.prompt_sha256 or ""]
    about.append("refusals by phrases" if judge.refusals == "phrases" else "")
    told = ", ".join(filter(None, about))
    return f"{judge.name} ({told})" if told else judge.name


def _changes(first: Setup, second: Setup) -> dict[str, tuple[str, str]]:
    """Return the facts that differ, each as two short texts."""
    ours, theirs = (_facts(setup) for setup in (first, second))
    return {
        name: (ours.get(name, "-"), theirs.get(name, "-"))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    }


def _facts(setup: Setup) -> dict[str, str]:
    about = setup.provenance
    return {
        "world": setup.env,
        "profile": setup.profile,
        "seeds": ", ".join(map(str, setup.seeds)),
        "threshold rule": setup.threshold_rule,
        "guards": ", ".join(setup.guards),
        "targets": ", ".join(t.name for t in setup.targets),
        "dtype": setup.dtype or "-",
        "judge": _judge(setup),
        "errors of the judge": "-" if setup.judge is None else setup.judge.correction,
        "runs": ", ".join(setup.run_ids),
        "configurations of the runs": about.config_sha256[:12],
        "commit": about.commit or "-",
        "command": about.command,
        **{f"version of {name}": version for name, version in about.versions.items()},
        **{f"model {name}": sha[:12] for name, sha in about.models.items()},
        **{f"checkpoint {name}": sha[:12] for name, sha in about.checkpoints.items()},
        **{f"target {t.name}": t.arch or "-" for t in setup.targets},
        **{f"threshold of {t.guard}, seed {t.seed}": f"{t.value:.4g}" for t in setup.thresholds},
    }
