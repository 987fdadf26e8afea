"""Rows and cells of a summary, for report and tables, without markup.

It decides which figures stand beside each other; `wording.py` decides how they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tsgb.eval.power import detectable, measured_design_effect
from tsgb.eval.records import (
    Claim,
    Comparison,
    Payoff,
    Rate,
    Result,
    Slice,
    Summary,
    TargetRecord,
    Unguarded,
)
from tsgb.eval.transcripts import Transcript
from tsgb.eval.wording import (
    AS_JUDGED,
    METRICS,
    UNCONVERGED,
    interval,
    leaking,
    no_protection,
    not_converged,
    percent,
    signed_points,
    title,
    uneven_errors,
    zero_events,
)

MIN_SLICE = 30
"""Cells of fewer items are greyed: their interval is wider than most differences."""
MAIN_PAIRS = (("selfplay", "frozen"), ("selfplay", "sft"), ("frozen", "sft"))
JUDGED_CLAIMS = frozenset({"H1", "H2", "H3", "H7"})
"""Claims about attacks that get through."""
MAIN_METRICS = ("adaptive_asr", "scripted_tpr", "fpr_hard")


@dataclass(frozen=True, slots=True)
class TableCell:
    """One figure: the number, what stands small below it, and whether to grey it."""

    figure: str
    """The number as text."""
    detail: str = ""
    """Small line below it."""
    grey: bool = False
    """Whether it says too little to read."""

    def __str__(self) -> str:
        """Return both in one line, for text tables."""
        return f"{self.figure} ({self.detail})" if self.detail else self.figure


ABSENT = TableCell("\u2013", grey=True)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A named row of cells."""

    name: str
    """Key, such as the name of a guard."""
    label: str
    """Text of the first column."""
    cells: Sequence[TableCell]
    """Cells in the order of the columns."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: column heads, each with a line that explains it, and rows."""

    heading: str
    """Title."""
    columns: Sequence[tuple[str, str]]
    """Pairs of a head and a line that explains it."""
    rows: Sequence[TableRow]
    """Rows in table order."""


def rate_cell(rate: Rate | None) -> TableCell:
    """A rate; zero events as "0 / n" with an upper bound."""
    if rate is None:
        return ABSENT
    zero = zero_events(rate)
    ends = interval(rate).removesuffix(" %")
    figure, detail = zero.split(", ", 1) if zero else (percent(rate.value), ends)
    if rate.errors:
        detail += f"; {rate.errors} errors"
    return TableCell(figure, detail)


def target_cell(summary: Summary, row: Result, metric: Literal["adaptive_asr", "asr"]) -> TableCell:
    """The share that a guard lets through on a target; without one, also the number that leaks.

    Where too few leak it says so in place of a figure.
    """
    bare = unguarded(summary, row.target, metric)
    adaptive = metric == "adaptive_asr"
    if row.guard == "none":
        cell = adaptive_cell(row) if adaptive else rate_cell(row.asr_no_guard)
        if bare is not None and bare.asr is not None:
            cell = replace(cell, detail=f"{cell.detail}; {leaking(bare)}")
    elif bare is not None and bare.asr is None:
        return TableCell("not measured", "no attacks were made", grey=True)
    elif bare is not None and not bare.measurable:
        return TableCell("no protection measurable", leaking(bare), grey=True)
    else:
        cell = adaptive_cell(row) if adaptive else rate_cell(row.asr)
    return replace(cell, grey=cell.grey or (adaptive and not converged(summary, row.target)))


def adaptive_cell(row: Result) -> TableCell:
    """The rate of the best response, and what the fresh attackers got where that is not the same.

    Several attackers have the mean over them beside the highest.
    """
    cell, highest, mean = rate_cell(row.adaptive_asr), row.adaptive_asr, row.adaptive_mean
    trained = row.adaptive_trained or highest
    if highest is None or trained is None:
        return cell
    details = [cell.detail]
    played = highest.value > trained.value
    if played:
        details.append(f"scripted, trained {percent(trained.value)}")
    if mean is not None and mean.n + mean.errors > trained.n + trained.errors:
        num = round((mean.n + mean.errors) / (trained.n + trained.errors))
        details.append(
            f"{'trained: ' if played else ''}highest of {num}, mean {percent(mean.value)}"
        )
    return replace(cell, detail="; ".join(filter(None, details)))


def converged(summary: Summary, target: str) -> bool:
    """Whether the fresh attackers of every guard on a target got what was open to them."""
    return not any(found.target == target for found in summary.unconverged)


def unguarded(
    summary: Summary, target: str, metric: Literal["adaptive_asr", "asr"]
) -> Unguarded | None:
    """The denominator of a figure on a target; None in summaries of earlier versions."""
    named = (u for u in summary.unguarded if (u.target, u.metric) == (target, metric))
    return next(named, None)


def obstacles(summary: Summary) -> list[str]:
    """Say what stands in the way of reading the figures, in one sentence each.

    There is one for each target without measurable protection, one for each target whose attackers
    did not converge, one for each target whose errors fall on one class of prompts, and
    one that names the guards whose false-positive budget the calibration could not certify.
    """
    found = [
        no_protection(*(u for u in summary.unguarded if u.target == target.name))
        for target in summary.targets
    ]
    found += [
        not_converged(those)
        for target in summary.targets
        if (those := [one for one in summary.unconverged if one.target == target.name])
    ]
    found += [uneven_errors(one) for one in summary.uneven]
    found.append(_uncertified(summary))
    return [f"{text[0].upper()}{text[1:]}." for text in found if text is not None]


def _uncertified(summary: Summary) -> str | None:
    """Name the guards with a bound above their budget, and the highest of those bounds."""
    over = [t for t in summary.thresholds if (t.fpr_upper or 0.0) > (t.alpha or 1.0)]
    if not over:
        return None
    worst = max(over, key=lambda t: t.fpr_upper or 0.0)
    guards = ", ".join(title(g) for g in summary.guards if any(t.guard == g for t in over))
    return (
        f"the budget of {percent(worst.alpha or 0.0)} is not certified for {guards}: "
        f"{worst.num} calibration prompts of {worst.num_scenarios} scenarios, whose scores "
        f"correlate within a scenario by up to {worst.correlation:.2f}, bound the FPR by "
        f"{percent(worst.fpr_upper or 0.0)} at best"
    )


def power(summary: Summary) -> list[str]:
    """One sentence a target: what the attempts of fresh attackers tell from the frozen arm's."""
    lines: list[str] = []
    for target in summary.targets:
        rows = {guard: pooled(summary, guard, target.name) for guard in summary.guards}
        own, other = (
            (row.adaptive_trained or row.adaptive_asr) if row else None
            for row in (rows.get("selfplay"), rows.get("frozen"))
        )
        if own is None or other is None or not other.value:
            continue
        num = min(own.n, other.n)
        effect = max(measured_design_effect(rate, len(summary.seeds)) for rate in (own, other))
        lowest = detectable(other.value, num, design_effect=effect)
        found = "no lower rate" if lowest is None else f"{percent(lowest)} or less"
        lines.append(
            f"{target.name}: {num} attempts an arm, design effect {effect:.1f}, tell {found} from "
            f"the {percent(other.value)} of {title('frozen')}"
        )
    return lines


def adaptive_games(
    games: Sequence[Transcript],
) -> list[tuple[str, list[tuple[str, list[Transcript]]]]]:
    """Group what adaptive attackers wrote by target, then by guard, in the order of the games."""
    targets: dict[str, dict[str, list[Transcript]]] = {}
    for game in games:
        if game.against is not None:
            targets.setdefault(game.target, {}).setdefault(game.against, []).append(game)
    return [(target, list(guards.items())) for target, guards in targets.items()]


def unit_cell(rate: Rate | None) -> TableCell:
    """A figure between 0 and 1 that is not a share, with three decimals."""
    if rate is None:
        return ABSENT
    errors = f"; {rate.errors} errors" if rate.errors else ""
    return TableCell(f"{rate.value:.3f}", f"{rate.low:.3f} to {rate.high:.3f}{errors}")


def pooled(summary: Summary, guard: str, target: str) -> Result:
    """The row over all seeds."""
    return next(r for r in summary.results if (r.guard, r.target, r.seed) == (guard, target, None))


def headline(summary: Summary) -> Sheet:
    """Guards by targets: both headline columns, false alarms in the same row."""
    first = summary.targets[0].name
    columns = [(f"Adaptive ASR, {t.name}", _adaptive_about(summary, t)) for t in summary.targets]
    columns += [
        ("Scripted TPR", "reserved techniques"),
        ("FPR", "ordinary benign"),
        ("FPR", "hard benign"),
        ("FPR", "benign twins"),
        ("AUROC", "reserved techniques"),
        ("ECE", "all prompts"),
    ]
    rows: list[TableRow] = []
    for guard in summary.guards:
        alone = pooled(summary, guard, first)
        on_targets = [pooled(summary, guard, t.name) for t in summary.targets]
        cells = [target_cell(summary, row, "adaptive_asr") for row in on_targets]
        cells += [
            rate_cell(alone.scripted_tpr),
            rate_cell(alone.fpr),
            rate_cell(alone.fpr_hard),
            rate_cell(alone.fpr_twins),
            unit_cell(alone.auroc),
            unit_cell(alone.ece),
        ]
        rows.append(TableRow(guard, title(guard), cells))
    return Sheet("Guards and targets", columns, rows)


def scripted(summary: Summary) -> Sheet:
    """Scripted harmful prompts: what each target does without a guard, and behind each one."""
    columns = [(f"ASR, {t.name}", _join(_about(t), _doubt(summary))) for t in summary.targets]
    rows = [
        TableRow(
            guard,
            title(guard),
            [target_cell(summary, pooled(summary, guard, t.name), "asr") for t in summary.targets],
        )
        for guard in summary.guards
    ]
    return Sheet("Scripted attacks", columns, rows)


def over_refusal(summary: Summary) -> Sheet:
    """Benign prompts that are not answered, on each target that was asked about them."""
    asked = [
        target.name
        for target in summary.targets
        if any(r.target == target.name and r.over_refusal_no_guard for r in summary.results)
    ]
    rows = [
        TableRow(
            guard,
            title(guard),
            [
                rate_cell(row.over_refusal_no_guard if guard == "none" else row.over_refusal)
                for row in (pooled(summary, guard, name) for name in asked)
            ],
        )
        for guard in (summary.guards if asked else ())
    ]
    columns = [(f"Over-refusal, {name}", "benign, blocked or refused") for name in asked]
    return Sheet("Over-refusal", columns, rows)


def seeds(summary: Summary) -> Sheet:
    """One row a guard and seed, on the surrogate."""
    target = next((t for t in summary.targets if t.role == "surrogate"), summary.targets[0])
    columns = [
        (f"Adaptive ASR, {target.name}", _adaptive_about(summary, target)),
        ("Scripted TPR", "reserved techniques"),
        ("FPR", "ordinary benign"),
        ("FPR", "hard benign"),
    ]
    rows = [
        TableRow(
            r.guard,
            f"{title(r.guard)}, seed {r.seed}",
            [
                target_cell(summary, r, "adaptive_asr"),
                *(rate_cell(x) for x in (r.scripted_tpr, r.fpr, r.fpr_hard)),
            ],
        )
        for r in summary.results
        if r.target == target.name and r.seed is not None
    ]
    order = {guard: index for index, guard in enumerate(summary.guards)}
    return Sheet("Every seed", columns, sorted(rows, key=lambda row: order[row.name]))


def comparisons(summary: Summary, *, main: bool) -> Sheet:
    """Paired differences: those that the verdict and H1 rest on, or all others."""
    chosen = [
        c
        for c in summary.comparisons
        if ((c.guard, c.versus) in MAIN_PAIRS and c.metric in MAIN_METRICS) == main
    ]
    columns = [
        ("Difference", "points"),
        ("95 % interval", "points"),
        ("p", "Holm"),
        ("Reading", ""),
    ]
    rows = [
        TableRow(
            c.guard,
            f"{METRICS.get(c.metric, c.metric)}{f' on {c.target}' if c.target else ''}"
            f"{f', {AS_JUDGED}' if c.target and summary.is_as_judged else ''}: "
            f"{title(c.guard)} minus {title(c.versus)}",
            _difference_cells(c),
        )
        for c in chosen
    ]
    return Sheet("Differences", columns, rows)


def slices(summary: Summary, kind: Literal["technique", "family", "stream"]) -> Sheet:
    """Share blocked by group, guards side by side."""
    chosen = [s for s in summary.slices if s.kind == kind]
    guards = [g for g in summary.guards if any(s.guard == g for s in chosen)]
    found = {(s.slice, s.guard): s for s in chosen}
    names = dict.fromkeys(s.slice for s in chosen)
    rows = [
        TableRow(name, name, [_slice_cell(found.get((name, guard))) for guard in guards])
        for name in names
    ]
    return Sheet(kind, [(title(guard), "") for guard in guards], rows)


def claim_figure(claim: Claim, summary: Summary | None = None) -> TableCell:
    """A claim's figure in its own unit.

    Args:
        claim: The claim.
        summary: Tells whether a figure of attacks is as judged by a judge who may err.
    """
    if claim.figure is None:
        return ABSENT
    judged = summary is not None and summary.is_as_judged and claim.id in JUDGED_CLAIMS
    if claim.id == "H6":
        texts = [f"{x:.2f}\u00d7" for x in (claim.figure, claim.low, claim.high) if x is not None]
    elif claim.id == "H5":
        texts = [
            f"{x:+.3f}".replace("-", "\u2212")
            for x in (claim.figure, claim.low, claim.high)
            if x is not None
        ]
    else:
        texts = [signed_points(x) for x in (claim.figure, claim.low, claim.high) if x is not None]
        texts[0] += " points"
    ends = " to ".join(texts[1:])
    return TableCell(texts[0], f"{ends}; {AS_JUDGED}" if judged else ends)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A payoff matrix; values in [0, 1] or None."""

    arm: str
    """Trained arm."""
    note: str
    """Seed, or how many seeds the mean is over."""
    attackers: Sequence[str]
    """Names of the rows."""
    guards: Sequence[str]
    """Names of the columns."""
    values: Sequence[Sequence[float | None]]
    """Success rates in [0, 1], or None."""


def payoffs(summary: Summary) -> list[tuple[Matrix, list[Matrix]]]:
    """Return for each arm the mean over seeds, if all have the same rounds, and every seed."""
    out: list[tuple[Matrix, list[Matrix]]] = []
    for arm in dict.fromkeys(p.arm for p in summary.payoff):
        mine = [p for p in summary.payoff if p.arm == arm]
        each = [_matrix(p, f"seed {p.seed}") for p in mine]
        alike = all((p.attackers, p.guards) == (mine[0].attackers, mine[0].guards) for p in mine)
        out.append((_mean_matrix(mine) if alike and len(mine) > 1 else each[0], each))
    return out


def _mean_matrix(payoff: Sequence[Payoff]) -> Matrix:
    first = payoff[0]
    values: list[list[float | None]] = []
    for i in range(len(first.attackers)):
        cells = [[p.matrix[i][j] for p in payoff] for j in range(len(first.guards))]
        known = [[x for x in cell if x is not None] for cell in cells]
        values.append([float(np.mean(cell)) if cell else None for cell in known])
    return Matrix(first.arm, f"mean of {len(payoff)} seeds", first.attackers, first.guards, values)


def _matrix(payoff: Payoff, note: str) -> Matrix:
    return Matrix(payoff.arm, note, payoff.attackers, payoff.guards, payoff.matrix)


def _about(target: TargetRecord) -> str:
    overlap = "" if target.overlap is None else f"overlap {target.overlap:.2g}"
    return " · ".join(x for x in (target.role.replace("_", " "), overlap) if x)


def _adaptive_about(summary: Summary, target: TargetRecord) -> str:
    sent = "" if target.attacks is None else f"{target.attacks:,} attacks sent at most"
    doubt = "" if converged(summary, target.name) else UNCONVERGED
    return _join(_about(target), sent, doubt, _doubt(summary))


def _doubt(summary: Summary) -> str:
    return AS_JUDGED if summary.is_as_judged else ""


def _join(*parts: str) -> str:
    return " \u00b7 ".join(filter(None, parts))


def _difference_cells(comparison: Comparison) -> list[TableCell]:
    ends = f"{signed_points(comparison.low)} to {signed_points(comparison.high)}"
    p = "< 0.001" if comparison.p_holm < 0.001 else f"{comparison.p_holm:.3f}"
    return [
        TableCell(signed_points(comparison.difference)),
        TableCell(ends),
        TableCell(p),
        TableCell("differs" if comparison.shown else "not shown", grey=not comparison.shown),
    ]


def _slice_cell(found: Slice | None) -> TableCell:
    if found is None:
        return ABSENT
    cell = rate_cell(found.tpr)
    return TableCell(cell.figure, f"{cell.detail} · n {found.n}", grey=found.n < MIN_SLICE)
