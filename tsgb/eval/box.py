"""The box at the top of a report: what the guard gains, and what that costs, in one row a target.

It says what scripted attacks get without and with the guard on the same answers, how much harmless
traffic is lost, how many items have no outcome and what they could change, and time and money.
"""

from __future__ import annotations

from collections.abc import Iterator

from tsgb.eval.intervals import error_bounds
from tsgb.eval.records import Rate, Result, Summary, TargetRecord
from tsgb.eval.table import NO_GUARD
from tsgb.eval.usage_records import Milliseconds, UsageRecord
from tsgb.eval.verdict import FROZEN, SELF_PLAY, SFT
from tsgb.eval.views import ABSENT, Sheet, TableCell, TableRow, pooled, target_cell
from tsgb.eval.wording import AS_JUDGED, interval, percent, signed_points, title

_BASELINES = frozenset({NO_GUARD, "tfidf", "untrained", "oracle"})


def main_guard(summary: Summary) -> str | None:
    """Return the guard that the box is about: self-play, or else the first that is no baseline."""
    for guard in (SELF_PLAY, FROZEN, SFT, *summary.guards):
        if guard in summary.guards and guard not in _BASELINES:
            return guard
    return None


def box_sheet(summary: Summary) -> Sheet:
    """Return a row for each target; without rows where no guard but baselines was evaluated.

    Latency and cost are left out where nobody measured them for any target.
    """
    guard = main_guard(summary)
    if guard is None:
        return Sheet("", [], [])
    judged = "points, paired" + (f", {AS_JUDGED}" if summary.is_as_judged else "")
    change = f"without \u2192 with {title(guard)}"
    columns = [
        ("Scripted ASR", change),
        ("Difference", judged),
        ("Over-refusal", change),
        ("Errors", "bounds of ASR"),
        ("Latency", "of an answer"),
        ("Cost", "of all answers"),
    ]
    rows = [
        TableRow(target.name, target.name, list(_cells(summary, guard, target)))
        for target in summary.targets
    ]
    empty = {i for i in (4, 5) if all(row.cells[i] is ABSENT for row in rows)}
    kept = [i for i in range(len(columns)) if i not in empty]
    return Sheet(
        f"No guard \u2192 {title(guard)}",
        [columns[i] for i in kept],
        [TableRow(row.name, row.label, [row.cells[i] for i in kept]) for row in rows],
    )


def box_lines(summary: Summary) -> list[str]:
    """Return what belongs to no target: the guard's time, and the judge."""
    guard = main_guard(summary)
    lines = [
        f"{title(found.guard)} takes {_duration(found.prompt.median)} for a prompt alone (95 % "
        f"take up to {_duration(found.prompt.p95)}; {found.prompt.n} benign prompts, on the "
        "machine that evaluated)."
        for found in summary.guard_times
        if found.guard == guard
    ]
    if summary.is_as_judged and summary.judge is not None:
        name = f"{summary.judge.name}{' (weak)' if summary.judge.weak else ''}"
        lines.append(
            "ASR here, in all differences, in the claims and in the verdict is as judged by "
            f"{name}, and not corrected for its errors."
        )
    for usage in summary.usage:
        if usage.role == "judge":
            told = [f"{usage.answers} answers", *_time(usage.latency), *_money(usage)]
            lines.append(f"The judge {usage.name}: {', '.join(told)}.")
    return lines


def _cells(summary: Summary, guard: str, target: TargetRecord) -> Iterator[TableCell]:
    bare, row = (pooled(summary, name, target.name) for name in (NO_GUARD, guard))
    usage = next((u for u in summary.usage if (u.role, u.name) == ("target", target.name)), None)
    yield _asr(summary, bare, row)
    yield _difference(summary, guard, target.name)
    yield _over_refusal(row)
    yield _errors(bare, row)
    yield ABSENT if usage is None else _latency(usage)
    yield ABSENT if usage is None else _cost(usage)


def _asr(summary: Summary, bare: Result, row: Result) -> TableCell:
    if bare.asr_no_guard is None:
        return ABSENT
    without = percent(bare.asr_no_guard.value)
    if row.asr is None:
        after = target_cell(summary, row, "asr")
        return TableCell(f"{without} \u2192 {after.figure}", after.detail, grey=True)
    return TableCell(
        f"{without} \u2192 {percent(row.asr.value)}",
        f"{_range(bare.asr_no_guard)} \u2192 {interval(row.asr)}; n {row.asr.n}",
    )


def _difference(summary: Summary, guard: str, target: str) -> TableCell:
    found = (
        c
        for c in summary.comparisons
        if (c.metric, c.guard, c.versus, c.target) == ("asr", guard, NO_GUARD, target)
    )
    one = next(found, None)
    if one is None or summary.invalid:
        return ABSENT
    ends = f"{signed_points(one.low)} to {signed_points(one.high)}"
    return TableCell(signed_points(one.difference), ends, grey=not one.shown)


def _over_refusal(row: Result) -> TableCell:
    """Return the share that the target declines and that is lost, or the guard's part alone."""
    before, after = row.over_refusal_no_guard, row.over_refusal
    if before is not None and after is not None:
        return TableCell(
            f"{percent(before.value)} \u2192 {percent(after.value)}",
            f"{_range(before)} \u2192 {interval(after)}; n {after.n}",
        )
    if row.fpr is None:
        return ABSENT
    detail = f"{interval(row.fpr)}; guard alone"
    return TableCell(f"+{percent(row.fpr.value)}", detail)


def _errors(bare: Result, row: Result) -> TableCell:
    """Return how many items have no outcome, and the rate if none and if all of them were harm.

    Where the guard blocks a prompt it does not matter what the target would have said.
    """
    asked, rate = bare.asr_no_guard, row.asr
    if asked is None:
        return ABSENT
    figure = f"{asked.errors} of {asked.n + asked.errors}"
    if not asked.errors or rate is None:
        return TableCell(figure)
    low, high = map(percent, error_bounds(rate))
    return TableCell(figure, f"{low.removesuffix(' %')} to {high}")


def _latency(usage: UsageRecord) -> TableCell:
    found = usage.latency
    if found is None:
        return ABSENT
    return TableCell(_duration(found.median), f"median; 95 % up to {_duration(found.p95)}")


def _cost(usage: UsageRecord) -> TableCell:
    """Return the price of the answers, or their tokens where prices are not known."""
    tokens = usage.tokens_in + usage.tokens_out
    if usage.dollars is None and not tokens:
        return ABSENT
    told = [f"{usage.calls:,} requests", f"{tokens:,} tokens"]
    if usage.billed_unknown:
        told.append(f"{usage.billed_unknown} more perhaps billed")
    if usage.dollars is None:
        why = "no prices" if not usage.untold else f"{usage.untold} answers tell no tokens"
        return TableCell("not known", "; ".join([why, *told]), grey=True)
    return TableCell(f"${usage.dollars:.2f}", "; ".join(told))


def _time(found: Milliseconds | None) -> Iterator[str]:
    if found is not None:
        yield f"{_duration(found.median)} each (95 % up to {_duration(found.p95)})"


def _money(usage: UsageRecord) -> Iterator[str]:
    cell = _cost(usage)
    if cell is not ABSENT:
        yield f"cost {cell}"


def _range(rate: Rate) -> str:
    return interval(rate).removesuffix(" %")


def _duration(milliseconds: float) -> str:
    """Example: `"1.2 ms"`, `"38 ms"`, `"2.4 s"`."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.{0 if milliseconds >= 10 else 1}f} ms"
