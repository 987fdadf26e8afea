"""A summary as a self-contained page (no script, no network), and its main tables as text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from tsgb.eval import data_views, figures, views
from tsgb.eval.records import Summary
from tsgb.eval.transcripts import NUM_ADAPTIVE, Transcript
from tsgb.eval.verdict import MIN_SEEDS, surrogate
from tsgb.eval.wording import failed_class, percent, title

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_report(summary: Summary, transcripts: Sequence[Transcript] = ()) -> str:
    """The page; every string is escaped.

    Args:
        summary: what is reported.
        transcripts: games that are shown in full.

    Example: `Path("report.html").write_text(render_report(summary), encoding="utf-8")`
    """
    environment = Environment(
        loader=PackageLoader("tsgb.eval", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, title_of=title, keep_together=_keep_together)
    target = surrogate(summary) or summary.targets[0].name
    return environment.get_template("report.html.j2").render(
        s=summary,
        csp=CONTENT_SECURITY_POLICY,
        min_seeds=MIN_SEEDS,
        min_slice=views.MIN_SLICE,
        surrogate=target,
        scripted_games=[game for game in transcripts if game.against is None],
        adaptive_games=views.adaptive_games(transcripts),
        most_games=NUM_ADAPTIVE,
        sentence=_after_the_word(summary.verdict.sentence),
        key_figures=_key_figures(summary, target),
        headline=views.headline(summary),
        obstacles=views.obstacles(summary),
        invalid=[failed_class(failed) for failed in summary.invalid],
        power=views.power(summary),
        scripted=views.scripted(summary),
        over_refusal=views.over_refusal(summary),
        seeds=views.seeds(summary),
        main_differences=views.comparisons(summary, main=True),
        other_differences=views.comparisons(summary, main=False),
        slices=[views.slices(summary, kind) for kind in ("stream", "technique", "family")],
        claims=[(claim, views.claim_figure(claim)) for claim in summary.claims],
        data=data_views.data_sheet(summary),
        data_notes=data_views.data_notes(summary),
        data_slices=data_views.data_slices(summary),
        payoffs=views.payoffs(summary),
        transfer=figures.transfer(summary),
        alone=figures.guards_alone(summary),
        roc=figures.roc(summary),
        training=figures.training(summary.curves),
        swatches={guard: figures.css_colour(guard) for guard in summary.guards},
    )


def _after_the_word(sentence: str) -> str:
    """The sentence without its opening "Shown:" or "Not shown:", which the box shows large."""
    _, _, rest = sentence.partition(": ")
    return rest[:1].upper() + rest[1:]


def _keep_together(text: str) -> str:
    """Break a cell's small line only before an upper bound's figure and between its parts."""
    text = text.replace(" ", "\u00a0")
    for end in ("bound", ";", "\u00b7"):
        text = text.replace(f"{end}\u00a0", f"{end} ")
    return text


def _key_figures(summary: Summary, target: str) -> list[tuple[str, str, views.TableCell]]:
    """Return the figures of the verdict box: self-play beside the frozen attacker."""
    out: list[tuple[str, str, views.TableCell]] = []
    for guard in ("selfplay", "frozen"):
        if guard not in summary.guards:
            continue
        row = views.pooled(summary, guard, target)
        out += [
            (
                title(guard),
                f"adaptive ASR, {target}",
                views.target_cell(summary, row, "adaptive_asr"),
            ),
            (title(guard), "scripted TPR", views.rate_cell(row.scripted_tpr)),
            (title(guard), "hard-benign FPR", views.rate_cell(row.fpr_hard)),
        ]
    return out


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
    yield from views.obstacles(summary)
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
    yield from map(_escape, views.obstacles(summary))
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
