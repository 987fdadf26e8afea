"""The comparison of two evaluations as tables, and as a self-contained page."""

from __future__ import annotations

from dataclasses import replace

from tsgb.data.characters import visible
from tsgb.eval.compare import PairedEvaluations, PairedFigure, PairedSlice
from tsgb.eval.report import page_template
from tsgb.eval.views import ABSENT, MIN_SLICE, Sheet, TableCell, TableRow, rate_cell, unit_cell
from tsgb.eval.wording import METRICS, UNCONVERGED, percent, signed_points, signed_unit, title

COLUMNS = (
    ("First", ""),
    ("Second", ""),
    ("Difference", "points, 95 % interval"),
    ("p", "Holm"),
    ("Got through", "only second / only first"),
)
MOST_TOLD = 4
"""Differences that the sentence names; the tables have all."""
_UNITS = frozenset({"auroc", "ece"})
"""Figures that are no shares."""
_UNIT_NOTE = {"points, 95 % interval": "95 % interval"}
"""Notes of columns that differ for such figures."""


def comparison_sheets(found: PairedEvaluations) -> list[Sheet]:
    """One table a figure, with a row for each guard and target that both evaluations have."""
    sheets: list[Sheet] = []
    for metric in dict.fromkeys(figure.metric for figure in found.figures):
        name = METRICS.get(metric, metric)
        rows = [_row(figure) for figure in found.figures if figure.metric == metric]
        columns = [(head, _UNIT_NOTE.get(note, note)) for head, note in COLUMNS]
        chosen = columns if metric in _UNITS else COLUMNS
        sheets.append(Sheet(f"{name[0].upper()}{name[1:]}", chosen, rows))
    return sheets


def _row(figure: PairedFigure) -> TableRow:
    where = f", {figure.target}" if figure.target else ""
    cell = unit_cell if figure.metric in _UNITS else rate_cell
    signed = signed_unit if figure.metric in _UNITS else signed_points
    low, high = signed(figure.low), signed(figure.high)
    flips = ABSENT
    if figure.worse is not None:
        p = figure.p_mcnemar or 0.0
        told = f"McNemar p {'< 0.001' if p < 0.001 else f'{p:.3f}'}"
        flips = TableCell(f"{figure.worse} / {figure.better}", told)
    return TableRow(
        figure.guard,
        visible(f"{title(figure.guard)}{where}"),
        [
            cell(figure.first),
            cell(figure.second),
            TableCell(signed(figure.difference), f"{low} to {high}", not figure.differs),
            TableCell("< 0.001" if figure.p_holm < 0.001 else f"{figure.p_holm:.3f}"),
            flips,
        ],
    )


def slice_sheets(found: PairedEvaluations, *, differing: bool = False) -> list[Sheet]:
    """One table a kind of slices, with the share that each guard blocks.

    Args:
        found: The comparison.
        differing: Whether to leave out those that do not differ.
    """
    sheets: list[Sheet] = []
    for kind in dict.fromkeys(one.kind for one in found.slices):
        chosen = [s for s in found.slices if s.kind == kind and (s.differs or not differing)]
        if chosen:
            heading = f"Share blocked, by {kind}"
            sheets.append(Sheet(heading, COLUMNS[:-1], [_slice_row(one) for one in chosen]))
    return sheets


def _slice_row(found: PairedSlice) -> TableRow:
    low, high = signed_points(found.low), signed_points(found.high)
    small = found.first.n < MIN_SLICE
    cells = [
        rate_cell(found.first),
        rate_cell(found.second),
        TableCell(signed_points(found.difference), f"{low} to {high}", not found.differs),
        TableCell("< 0.001" if found.p_holm < 0.001 else f"{found.p_holm:.3f}"),
    ]
    return TableRow(
        found.guard,
        visible(f"{title(found.guard)}, {found.slice}"),
        [replace(cell, grey=cell.grey or small) for cell in cells],
    )


def comparison_notes(found: PairedEvaluations) -> list[str]:
    """Return what was compared, in sentences."""
    seeds = ", ".join(map(str, found.seeds))
    plural = "" if len(found.seeds) == 1 else "s"
    shared = f"{found.prompts} prompts and the training seed{plural} {seeds}"
    notes = [f"{shared} are in both evaluations, and only they are compared."]
    if any(found.left_out):
        ours, theirs = found.left_out
        notes.append(f"Left out: {ours} prompts of the first alone, {theirs} of the second alone.")
    if found.invalid:
        notes.append(f"Not valid: {' and '.join(found.invalid)}. Nothing can be read as a change.")
    if found.judges is not None:
        ours, theirs = found.judges
        notes.append(
            f"Judged differently: the first by {ours}, the second by {theirs}. What targets let "
            "through cannot be compared, since a change could be the judge's: only figures of "
            "guards alone are."
        )
    elif found.as_judged:
        notes.append("ASR is as judged in both: not corrected for the errors of the judge.")
    notes += [
        f"{bound.evaluation}: {UNCONVERGED} on {bound.target} against {title(bound.guard)}, so "
        "its adaptive ASR is a lower bound and is not compared."
        for bound in found.lower_bounds
    ]
    differs = [figure for figure in found.figures if figure.differs]
    told = [
        f"{METRICS.get(f.metric, f.metric)} of {title(f.guard)}"
        f"{f' on {f.target}' if f.target else ''} {percent(f.first.value)} to "
        f"{percent(f.second.value)}"
        for f in differs
        if f.metric not in _UNITS
    ]
    rest = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    some = "; ".join(told[:MOST_TOLD])
    notes.append(f"Differences: {some}{rest}." if told else "No share differs.")
    if found.slices:
        num = sum(one.differs for one in found.slices)
        notes.append(f"{num} of {len(found.slices)} slices of guards alone differ.")
    return [visible(note) for note in notes]


def render_comparison(found: PairedEvaluations) -> str:
    """The page; every string is escaped, and it runs and fetches nothing."""
    return page_template("comparison.html.j2").render(
        c=found,
        notes=comparison_notes(found),
        sheets=comparison_sheets(found),
        slices=slice_sheets(found),
    )
