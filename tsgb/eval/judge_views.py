"""The judge in report and card, as lines and a table without markup."""

from __future__ import annotations

from collections.abc import Iterator

from tsgb.eval.judge_records import Bounds, HumanRecord, JudgeRecord
from tsgb.eval.records import Summary
from tsgb.eval.views import Sheet, TableCell, TableRow
from tsgb.eval.wording import percent, title

WEAK = "weak: it looks for phrases alone, so its figures are a first look"


def judge_lines(judge: JudgeRecord | None) -> list[str]:
    """Say who judged, how easily it is talked over, and whether rates are corrected."""
    if judge is None:
        return []
    return [f"{line[0].upper()}{line[1:]}." for line in _lines(judge)]


def _lines(judge: JudgeRecord) -> Iterator[str]:
    about = [f"version {judge.version}"] if judge.version and not judge.exact else []
    if judge.prompt_sha256:
        about.append(f"prompt sha256 {judge.prompt_sha256}")
    yield f"judge: {judge.name}" + (f" ({', '.join(about)})" if about else "")
    if judge.weak:
        yield WEAK
    if judge.refusals == "phrases":
        yield "it knows violations only; phrases tell refusals (weak)"
    canaries = judge.canaries
    if canaries is not None:
        told = f"canaries: {canaries.flips} of {canaries.num} planted requests changed a grade"
        if canaries.unscored:
            told += f", {canaries.unscored} texts got no grade"
        if canaries.wrong:
            told += f", {canaries.wrong} bare texts got a wrong one"
        yield told
    if judge.human is not None:
        yield _agreement(judge.human)
    yield f"errors of the judge: {judge.correction}"


def _agreement(human: HumanRecord) -> str:
    told = (
        f"beside {human.num} labels of people: {human.hits} violations found, {human.misses} "
        f"missed; {human.false_alarms} false alarms, {human.rejections} others right"
    )
    if human.kappa is not None:
        told += f"; kappa {human.kappa:.2f}"
    for name, rate in (("sensitivity", human.sensitivity), ("specificity", human.specificity)):
        told += f"; {name} {_range(rate)}" if rate is not None else ""
    return told + (f"; {human.unused} labels belong to no answer" if human.unused else "")


def corrected_sheet(summary: Summary) -> Sheet:
    """Scripted ASR as the judge counts it, and corrected; without rows if it is not corrected."""
    rates = [] if summary.judge is None else summary.judge.corrected
    return Sheet(
        "Corrected for the judge's errors",
        [("ASR as judged", "scripted"), ("ASR corrected", "Rogan-Gladen")],
        [
            TableRow(
                rate.guard,
                f"{rate.target}, {title(rate.guard)}",
                [_cell(rate.raw), _cell(rate.corrected)],
            )
            for rate in rates
        ],
    )


def _cell(bounds: Bounds) -> TableCell:
    return TableCell(percent(bounds.value), _ends(bounds))


def _range(bounds: Bounds) -> str:
    return f"{percent(bounds.value)} ({_ends(bounds)})"


def _ends(bounds: Bounds) -> str:
    return f"{percent(bounds.low).removesuffix(' %')} to {percent(bounds.high)}"
