"""Computes the published summary from item records; reads no file and asks no model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from tsgb.errors import UsageError
from tsgb.eval.bootstrap import NUM_DRAWS, Difference, Resampler
from tsgb.eval.claims import read_claims, unread_claims
from tsgb.eval.data_results import data_answers, data_results, failed_data
from tsgb.eval.evidence import GUARD_METRICS, TARGET_METRICS, Evidence
from tsgb.eval.intervals import holm, too_many_errors
from tsgb.eval.judge_error import read_judge
from tsgb.eval.metrics import Floats, roc_points
from tsgb.eval.records import (
    Claim,
    Comparison,
    FailedClass,
    Item,
    ItemSource,
    Result,
    Roc,
    Setup,
    Slice,
    Summary,
)
from tsgb.eval.table import NO_GUARD, Names, Table
from tsgb.eval.verdict import FROZEN, MIN_SEEDS, SELF_PLAY, SFT, read_verdict
from tsgb.eval.wording import failed_class, no_protection, too_many_failed

ROC_GRID: Floats = np.append(0.0, np.geomspace(1e-3, 1.0, 49))
SIGNIFICANCE = 0.05
NUM_REASONS = 5
"""Reasons for missing outcomes that a summary names, of each class."""
_Class = tuple[str, str | None, bool, str]
"""Target, guard that attacks were made against, label and file."""


def summarise(
    items: Iterable[Item],
    setup: Setup,
    *,
    min_seeds: int = MIN_SEEDS,
    num_draws: int = NUM_DRAWS,
    bootstrap_seed: int = 0,
) -> Summary:
    """Count everything, compare the arms and read the pre-registered conditions.

    Where more than `setup.max_error_rate` of a class of items have no outcome, the summary says so
    in `invalid`, nothing is shown, and its intervals hold both readings of what is missing.

    Raises:
        UsageError: items name a guard, a target or a seed that the setup does not.
    """
    reasons = _Reasons()
    streams: list[Item] = []
    data: list[Item] = []
    for item in reasons.counted(_known(items, setup)):
        (data if item.source is ItemSource.DATA else streams).append(item)
    table = Table.from_items(streams, setup.guards)
    calibrated = {(t.guard, t.seed): t.temperature for t in setup.thresholds}
    resampler = Resampler(num_draws=num_draws, seed=bootstrap_seed)
    evidence = Evidence(
        table, setup.seeds, calibrated, resampler, setup.targets, reserved=setup.reserved
    )
    failed = [*evidence.failed_classes(0.0), *failed_data(data, setup, 0.0)]
    missing = [reasons.explain(one) for one in failed]
    invalid = [
        one for one in missing if too_many_errors(one.errors, one.total, setup.max_error_rate)
    ]
    claims = (
        unread_claims("the evaluation is not valid")
        if invalid
        else read_claims(evidence, setup, min_seeds=min_seeds)
    )
    verdict = read_verdict(evidence, setup, min_seeds=min_seeds)
    comparisons = _comparisons(evidence, setup)
    if invalid:
        comparisons = [c.model_copy(update={"shown": False}) for c in comparisons]
        verdict = verdict.model_copy(
            update={
                "shown": False,
                "sentence": f"Not valid: {too_many_failed(invalid)}.",
                "reasons": [failed_class(failed) for failed in invalid],
            }
        )
    facts = {name: getattr(setup, name) for name in Setup.model_fields}
    not_measured = [*setup.provenance.not_measured, *_not_measured(evidence, setup, claims)]
    if setup.judge is not None:
        facts["judge"] = read_judge(setup.judge, streams, evidence, setup, seed=bootstrap_seed)
    facts["provenance"] = setup.provenance.model_copy(
        update={"not_measured": list(dict.fromkeys(not_measured))}
    )
    return Summary(
        **facts,
        results=_results(evidence, setup),
        unguarded=[evidence.unguarded(m, t.name) for t in setup.targets for m in TARGET_METRICS],
        unconverged=[
            found
            for t in setup.targets
            for guard in setup.guards
            if (found := evidence.unconverged(guard, t.name)) is not None
        ],
        thoughts={t.name: n for t in setup.targets if (n := table.thoughts.get(t.name, 0))},
        comparisons=comparisons,
        claims=claims,
        verdict=verdict,
        invalid=invalid,
        missing=missing,
        uneven=list(evidence.uneven_errors()),
        slices=_slices(evidence, setup),
        data_results=data_results(data, setup, resampler),
        data_answers=data_answers(data, setup, resampler),
        roc=list(_rocs(evidence, setup)),
    )


class _Reasons:
    """Counts why items have no outcome, by what was asked."""

    def __init__(self) -> None:
        self._counts: dict[_Class, Counter[str]] = defaultdict(Counter)
        self._attempts: Counter[_Class] = Counter()

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items on."""
        for item in items:
            if item.error is not None and item.target is not None:
                key = (item.target, item.against, item.harmful, item.file)
                self._counts[key][item.error] += 1
                self._attempts[key] += item.attempts
            yield item

    def explain(self, failed: FailedClass) -> FailedClass:
        """Add the most common reasons to a class, and the calls that were made in vain."""
        key = (str(failed.target), failed.against, failed.harmful, failed.file)
        counts = self._counts.get(key, Counter())
        common = dict(counts.most_common(NUM_REASONS))
        return failed.model_copy(update={"common": common, "attempts": self._attempts[key]})


def _known(items: Iterable[Item], setup: Setup) -> Iterator[Item]:
    """Refuse items that would otherwise be left out of every table."""
    guards, targets = set(setup.guards), {t.name for t in setup.targets}
    seeds = set(setup.seeds)
    for item in items:
        named = item.scores.keys() | item.blocked.keys() | ({item.against} - {None})
        strange = [repr(g) for g in named - guards]
        if item.target is not None and item.target not in targets:
            strange.append(repr(item.target))
        if item.seed not in seeds:
            strange.append(f"seed {item.seed}")
        if strange:
            raise UsageError(
                f"item {item.item_id!r} names {', '.join(sorted(strange))}, which the evaluation "
                f"does not list: add it to the setup's guards, targets or seeds"
            )
        yield item


def _results(evidence: Evidence, setup: Setup) -> list[Result]:
    """Pooled rows first, then one row a seed."""
    out: list[Result] = []
    for seed in (None, *setup.seeds):
        for guard in setup.guards:
            alone = {metric: evidence.record(metric, guard, None, seed) for metric in GUARD_METRICS}
            out.extend(
                Result(
                    guard=guard,
                    target=target.name,
                    seed=seed,
                    threshold_rule=setup.threshold_rule,
                    asr=evidence.record("asr", guard, target.name, seed),
                    asr_no_guard=evidence.record("asr_no_guard", guard, target.name, seed),
                    over_refusal=evidence.record("over_refusal", guard, target.name, seed),
                    over_refusal_no_guard=evidence.record(
                        "over_refusal_no_guard", guard, target.name, seed
                    ),
                    adaptive_asr=evidence.record("adaptive_asr", guard, target.name, seed),
                    adaptive_trained=evidence.record("adaptive_trained", guard, target.name, seed),
                    adaptive_scripted=evidence.record(
                        "adaptive_scripted", guard, target.name, seed
                    ),
                    adaptive_mean=evidence.record("adaptive_mean", guard, target.name, seed),
                    **alone,
                )
                for target in setup.targets
            )
    return out


def _comparisons(evidence: Evidence, setup: Setup) -> list[Comparison]:
    """Self-play against every other arm, frozen against SFT, every guard against none."""
    arms = [g for g in setup.guards if g != SELF_PLAY]
    pairs = [(SELF_PLAY, other) for other in arms] + [(FROZEN, SFT)]
    against_none = [(g, NO_GUARD) for g in arms if g != NO_GUARD]
    out: list[Comparison] = []
    for metric in (*TARGET_METRICS, *GUARD_METRICS):
        targets = [t.name for t in setup.targets] if metric in TARGET_METRICS else [None]
        family: list[tuple[str, str, str | None, Difference, int]] = []
        for guard, versus in pairs + (against_none if metric == "asr" else []):
            for target in targets:
                found = evidence.compare(metric, guard, versus, target)
                if found is not None:
                    family.append((guard, versus, target, *found))
        adjusted = holm([difference.p for _, _, _, difference, _ in family])
        out.extend(
            Comparison(
                metric=metric,
                guard=guard,
                versus=versus,
                target=target,
                difference=difference.value,
                low=difference.low,
                high=difference.high,
                n=num,
                p=difference.p,
                p_holm=p_holm,
                shown=not difference.low <= 0 <= difference.high and p_holm <= SIGNIFICANCE,
            )
            for (guard, versus, target, difference, num), p_holm in zip(
                family, adjusted, strict=True
            )
        )
    return out


def _slices(evidence: Evidence, setup: Setup) -> list[Slice]:
    """Share blocked by stream, technique and family, over all seeds."""
    prompts = evidence.table.prompts
    kinds: tuple[tuple[str, Names], ...] = (
        ("stream", prompts.stream),
        ("technique", prompts.technique),
        ("family", prompts.family),
    )
    out: list[Slice] = []
    for kind, names in kinds:
        for name in np.unique(names[prompts.harmful]):
            group = prompts.harmful & (names == name)
            for guard in setup.guards:
                found = evidence.blocked_share(guard, group) if name else None
                if found is not None:
                    out.append(
                        Slice.model_validate(
                            {
                                "guard": guard,
                                "slice": str(name),
                                "kind": kind,
                                "tpr": found,
                                "n": found.n,
                            }
                        )
                    )
    return out


def _rocs(evidence: Evidence, setup: Setup) -> Iterator[Roc]:
    """Reserved techniques against all benign streams, as a step function on a grid."""
    prompts = evidence.table.prompts
    for guard in setup.guards:
        curves: dict[int | None, Floats] = {}
        for seed in evidence.measured("auroc", guard):
            here = evidence.population("auroc") & (prompts.seed == seed)
            here &= ~np.isnan(prompts.scores[guard])
            curve = roc_points(prompts.scores[guard][here], prompts.harmful[here])
            curves[seed] = curve.tpr[np.searchsorted(curve.fpr, ROC_GRID, side="right") - 1]
        if curves:
            curves[None] = np.mean(list(curves.values()), axis=0)
        for seed, hits in curves.items():
            operating_fpr = evidence.record("fpr_all", guard, None, seed)
            operating_tpr = evidence.record("scripted_tpr", guard, None, seed)
            if operating_fpr is not None and operating_tpr is not None:
                yield Roc(
                    guard=guard,
                    seed=seed,
                    fpr=[round(float(x), 6) for x in ROC_GRID],
                    tpr=[round(float(x), 6) for x in hits],
                    operating_fpr=operating_fpr,
                    operating_tpr=operating_tpr,
                )


def _not_measured(evidence: Evidence, setup: Setup, claims: list[Claim]) -> Iterator[str]:
    for guard in setup.guards:
        missing = [
            t.name for t in setup.targets if not evidence.attempted("adaptive_asr", guard, t.name)
        ]
        if missing:
            yield f"adaptive attacks on {guard} before {', '.join(missing)}"
    for target in setup.targets:
        found = [evidence.unguarded(metric, target.name) for metric in TARGET_METRICS]
        obstacle = no_protection(*found)
        if obstacle is not None:
            yield obstacle
    for claim in claims:
        if claim.verdict == "not measured":
            yield f"{claim.id}: {claim.note}"
