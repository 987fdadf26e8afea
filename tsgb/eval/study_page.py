"""The study as a self-contained page (no script, no network), and its main tables as text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape as markup_escape
from rich.table import Table

from tsgb.data.characters import visible
from tsgb.eval.report import page_template
from tsgb.eval.study_claims import MIN_UNITS
from tsgb.eval.study_discovery import MIN_SHOWN
from tsgb.eval.study_records import StudySummary
from tsgb.eval.study_views import (
    claims_sheet,
    discovery_sheet,
    figures_sheet,
    gains_sheet,
    gap_lines,
    parts_sheet,
    study_claim_figure,
    study_notes,
)
from tsgb.eval.views import Sheet

WIDTH = 140


def render_study(study: StudySummary, *, command: str, costs: Mapping[str, float]) -> str:
    """Return the page; every string is escaped.

    Args:
        study: What is shown.
        command: Command line that repeats it.
        costs: CPU hours by part.
    """
    from tsgb.eval import figures, study_figure  # imports matplotlib

    worlds = [world.name for world in study.worlds] if len(study.worlds) > 1 else []
    return page_template("study.html.j2").render(
        s=study,
        notes=study_notes(study),
        figure=study_figure.gain_figure(study),
        described=study_figure.description(study),
        claims=[(claim, study_claim_figure(claim)) for claim in study.claims],
        gains=gains_sheet(study),
        gains_by_world=[gains_sheet(study, world) for world in worlds],
        levels=[figures_sheet(study, level) for level in study.levels],
        levels_by_world=[
            figures_sheet(study, level, world) for level in study.levels for world in worlds
        ],
        discovery=discovery_sheet(study),
        parts=parts_sheet(study),
        gaps=gap_lines(study),
        costs=[(name, f"{hours:.2f}") for name, hours in costs.items()],
        total=f"{sum(costs.values()):.2f}",
        command=command,
        min_units=MIN_UNITS,
        min_shown=MIN_SHOWN,
        light=figures.LIGHT,
    )


def study_text(study: StudySummary) -> str:
    """Return what was found, the claims and the main tables, as text for a terminal."""
    return "\n\n".join(_text(study)) + "\n"


def _text(study: StudySummary) -> Iterator[str]:
    yield visible(study.sentence)
    yield "\n".join(study_notes(study))
    sheets = {
        "Claim": claims_sheet(study),
        "Figure": gains_sheet(study),
        "Attackers": discovery_sheet(study),
        "Pair": parts_sheet(study),
    }
    for first, sheet in sheets.items():
        if sheet.rows:
            yield _table_text(sheet, first)
    gaps = gap_lines(study)
    if gaps:
        yield "\n".join(gaps)
    yield f"Limits: {visible(study.limits)}"


def _table_text(sheet: Sheet, first: str) -> str:
    table = Table(title=markup_escape(sheet.heading), title_justify="left", show_lines=True)
    table.add_column(first, overflow="fold")
    for name, note in sheet.columns:
        table.add_column(markup_escape("\n".join(filter(None, (name, note)))), justify="right")
    for row in sheet.rows:
        cells = [visible(f"{c.figure}\n{c.detail}".strip(), keep="\n") for c in row.cells]
        table.add_row(markup_escape(visible(row.label)), *map(markup_escape, cells))
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None).print(table)
    return buffer.getvalue().rstrip()
