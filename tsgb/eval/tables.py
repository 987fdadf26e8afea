"""The main tables as text: for a terminal, or as Markdown for an artifact or a pull request."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

from rich.console import Console
from rich.table import Table

from tsgb.eval import views
from tsgb.eval.records import Summary
from tsgb.eval.wording import title


def render_tables(summary: Summary, style: Literal["text", "markdown"] = "text") -> str:
    """Verdict, headline table, differences and claims.

    Args:
        summary: What to show.
        style: Text draws boxes 140 columns wide at most; Markdown is GitHub's.
    """
    return "\n\n".join(_markdown(summary) if style == "markdown" else _text(summary)) + "\n"


def _text(summary: Summary) -> Iterator[str]:
    yield summary.verdict.sentence
    if summary.verdict.reasons:
        yield "\n".join(f"  - {reason}" for reason in summary.verdict.reasons)
    for heading, header, rows in _sheets(summary):
        table = Table(title=heading, title_justify="left", show_lines=heading != "Differences")
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*[cell.replace("[", "\\[") for cell in row])
        buffer = io.StringIO()
        Console(file=buffer, width=140, color_system=None).print(table)
        yield buffer.getvalue().rstrip()
    yield f"Limits: {summary.limits}"


def _markdown(summary: Summary) -> Iterator[str]:
    yield f"**{_escape(summary.verdict.sentence)}**"
    if summary.verdict.reasons:
        yield "\n".join(f"- {_escape(reason)}" for reason in summary.verdict.reasons)
    for heading, header, rows in _sheets(summary):
        lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
        body = "\n".join(f"| {' | '.join(_escape(c) for c in line)} |" for line in lines)
        yield f"### {heading}\n\n{body}"
    yield f"*Limits: {_escape(summary.limits)}*"


def _escape(text: str) -> str:
    """A pipe would end the cell, a line break the row; angle brackets would be read as HTML."""
    for mark, safe in (("|", "\\|"), ("\n", " "), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, safe)
    return text


def _sheets(summary: Summary) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    for sheet in (views.headline(summary), views.comparisons(summary, main=True)):
        header = ["Guard" if sheet.heading != "Differences" else "Metric"]
        # Of the columns called FPR only the small line tells which.
        header += [f"{name}, {note}" if name == "FPR" else name for name, note in sheet.columns]
        yield sheet.heading, header, [[r.label, *map(str, r.cells)] for r in sheet.rows]
    claims = [
        [f"{c.id}: {c.statement}", str(views.claim_figure(c)), c.verdict] for c in summary.claims
    ]
    yield "Claims", ["Claim", "Figure", "Verdict"], claims


def one_line(summary: Summary) -> str:
    """The verdict and the two headline figures of each guard, for a log."""
    first = summary.targets[0].name
    parts = [summary.verdict.sentence]
    for guard in summary.guards:
        row = views.pooled(summary, guard, first)
        if row.adaptive_asr is not None:
            parts.append(f"{title(guard)}: {views.rate_cell(row.adaptive_asr)} on {first}")
    return " | ".join(parts)
