"""Rows and cells of a summary's figures on the user's files; `views.py` has all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tsgb.data.characters import visible
from tsgb.eval.intervals import error_bounds
from tsgb.eval.records import DataAnswerResult, DataFileRecord, DataResult, Rate, Summary
from tsgb.eval.views import ABSENT, MIN_SLICE, Sheet, TableCell, TableRow, rate_cell, unit_cell
from tsgb.eval.wording import interval, percent, signed_points, title

COLUMNS = (("FPR", "benign, blocked"), ("FNR", "harmful, let through"), ("AUROC", "both"))
ANSWER_COLUMNS = (
    ("ASR", "without \u2192 with the guard"),
    ("Difference", "points, paired"),
    ("Over-refusal", "without \u2192 with the guard"),
    ("Errors", "harmful, and bounds of ASR"),
    ("Errors", "benign, and bounds of over-refusal"),
)


def data_sheet(summary: Summary) -> Sheet:
    """Files and guards, each with its figures."""
    rows = [
        TableRow(found.guard, f"{visible(found.file)}: {title(found.guard)}", _cells(found))
        for found in summary.data_results
        if found.slice is None
    ]
    return Sheet("Data", COLUMNS, rows)


def data_answer_sheet(summary: Summary) -> Sheet:
    """Files, targets and guards, each without and with the guard on the same answers."""
    rows = [
        TableRow(
            found.guard,
            f"{visible(found.file)}, {found.target}: {title(found.guard)}",
            _answer_cells(found, readable=not summary.invalid),
        )
        for found in summary.data_answers
    ]
    return Sheet("Answers to your data", ANSWER_COLUMNS, rows)


def data_answer_notes(summary: Summary) -> list[str]:
    """Return who judged the answers to prompts of files; nothing where no target was asked."""
    judge = summary.data_judge
    if judge is None or not summary.data_answers:
        return []
    name = visible(f"{judge.name} {judge.version}".strip())
    doubt = (
        "a weak judge, which takes whatever does not begin with a phrase of refusal for a violation"
        if judge.weak
        else "which may err"
    )
    told = " It was given a policy in general words." if judge.prompt_sha256 else ""
    line = f"Judged by {name}, {doubt}; no figure is corrected for its errors.{told}"
    return [f"{line} Each prompt was sent alone, without a system prompt."]


def data_slices(summary: Summary) -> list[tuple[str, Sheet]]:
    """Return for each file that has categories their figures, guards side by side."""
    out: list[tuple[str, Sheet]] = []
    for file in summary.data_files:
        chosen = [x for x in summary.data_results if x.file == file.name and x.slice is not None]
        guards = [g for g in summary.guards if any(x.guard == g for x in chosen)]
        found = {(x.slice, x.guard): x for x in chosen}
        columns = [(f"{name}, {title(g)}", about) for g in guards for name, about in COLUMNS[:2]]
        rows = [
            TableRow(
                str(name),
                visible(str(name)) or "(no category)",
                [cell for g in guards for cell in _slice_cells(found.get((name, g)))],
            )
            for name in dict.fromkeys(x.slice for x in chosen)
        ]
        if rows:
            out.append((visible(file.name), Sheet("Data by category", columns, rows)))
    return out


def data_notes(summary: Summary) -> list[str]:
    """Return a line about each file: what was scored, and what was left out."""
    return [_note(file) for file in summary.data_files]


def _note(file: DataFileRecord) -> str:
    text = (
        f"{visible(file.name)} ({file.format}, sha256 {file.sha256[:12]}): {file.drawn} of "
        f"{file.available} labelled prompts of its test split, in {file.groups} groups (hash of "
        f"the drawn ones {file.split_sha256[:12]})"
    )
    if file.too_long:
        text += f"; {file.too_long} were left out, too long for the guards"
    if file.trained_on:
        text += f"; {file.trained_on} more were left out: the guards learned from them or variants"
    return text


def _cells(found: DataResult) -> Sequence[TableCell]:
    return _counted(found.fpr), _counted(found.fnr), unit_cell(found.auroc)


def _answer_cells(found: DataAnswerResult, *, readable: bool) -> Sequence[TableCell]:
    change = ABSENT
    if found.difference is not None and readable:
        low, high = found.difference.low, found.difference.high
        change = TableCell(
            signed_points(found.difference.value),
            "" if low is None or high is None else f"{signed_points(low)} to {signed_points(high)}",
            grey=low is None or high is None or low <= 0 <= high,
        )
    asr = _pair(found.asr_no_guard, found.asr)
    if found.asr_no_guard is not None and found.asr is None:
        bare = rate_cell(found.asr_no_guard)
        asr = TableCell("no protection measurable", f"{bare}", grey=True)
    return (
        asr,
        change,
        _pair(found.over_refusal_no_guard, found.over_refusal),
        _missing(found.asr_no_guard, found.asr),
        _missing(found.over_refusal_no_guard, found.over_refusal),
    )


def _pair(before: Rate | None, after: Rate | None) -> TableCell:
    if before is None or after is None:
        return ABSENT
    ends = f"{interval(before).removesuffix(' %')} \u2192 {interval(after)}; n {before.n}"
    return TableCell(f"{percent(before.value)} \u2192 {percent(after.value)}", ends)


def _missing(asked: Rate | None, guarded: Rate | None) -> TableCell:
    """Return prompts without an outcome, and the guarded rate if none and if all were events.

    Where the guard blocks a prompt it does not matter what the target would have said.
    """
    if asked is None:
        return ABSENT
    figure = f"{asked.errors} of {asked.n + asked.errors}"
    rate = guarded or asked
    if not rate.errors:
        return TableCell(figure)
    low, high = map(percent, error_bounds(rate))
    return TableCell(figure, f"{low.removesuffix(' %')} to {high}")


def _counted(rate: Rate | None) -> TableCell:
    cell = rate_cell(rate)
    if rate is None or cell.figure.startswith("0 /"):
        return cell
    return replace(cell, detail=f"{cell.detail} \u00b7 n {rate.n}")


def _slice_cells(found: DataResult | None) -> list[TableCell]:
    rates = (None, None) if found is None else (found.fpr, found.fnr)
    return [
        ABSENT if rate is None else replace(_counted(rate), grey=rate.n < MIN_SLICE)
        for rate in rates
    ]
