"""Rows and cells of a summary's figures on the user's files; `views.py` has all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tsgb.data.characters import visible
from tsgb.eval.records import DataFileRecord, DataResult, Rate, Summary
from tsgb.eval.views import ABSENT, MIN_SLICE, Sheet, TableCell, TableRow, rate_cell, unit_cell
from tsgb.eval.wording import title

COLUMNS = (("FPR", "benign, blocked"), ("FNR", "harmful, let through"), ("AUROC", "both"))


def data_sheet(summary: Summary) -> Sheet:
    """Files and guards, each with its figures."""
    rows = [
        TableRow(found.guard, f"{visible(found.file)}: {title(found.guard)}", _cells(found))
        for found in summary.data_results
        if found.slice is None
    ]
    return Sheet("Data", COLUMNS, rows)


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
