"""A summary as a self-contained page (no script, no network), and its main tables as text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from rich.console import Console
from rich.markup import escape as markup_escape
from rich.table import Table

from tsgb.data.characters import visible
from tsgb.eval import data_views, error_views, judge_views, views
from tsgb.eval.box import box_lines, box_sheet
from tsgb.eval.effect import effect_sentence
from tsgb.eval.records import Summary
from tsgb.eval.transcripts import MAX_CHARACTERS, NUM_ADAPTIVE, Transcript
from tsgb.eval.verdict import MIN_SEEDS, surrogate
from tsgb.eval.wording import failed_class, percent, title

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_report(summary: Summary, transcripts: Sequence[Transcript] = ()) -> str:
    """The page; every string is escaped, and each hidden character is shown by its number.

    Args:
        summary: what is reported.
        transcripts: games that are shown in full.

    Example: `Path("report.html").write_text(render_report(summary), encoding="utf-8")`
    """
    from tsgb.eval import figures  # imports matplotlib, which tables as text do without

    target = surrogate(summary) or summary.targets[0].name
    return page_template("report.html.j2").render(
        s=summary,
        min_seeds=MIN_SEEDS,
        min_slice=views.MIN_SLICE,
        surrogate=target,
        scripted_games=[game for game in transcripts if game.against is None],
        adaptive_games=views.adaptive_games(transcripts),
        most_games=NUM_ADAPTIVE,
        effect=effect_sentence(summary),
        sentence=_after_the_word(summary.verdict.sentence),
        key_figures=_key_figures(summary, target),
        box=box_sheet(summary),
        box_lines=box_lines(summary),
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
        claims=[(claim, views.claim_figure(claim, summary)) for claim in summary.claims],
        errors=error_views.error_sheet(summary),
        judge_lines=judge_views.judge_lines(summary.judge),
        corrected=judge_views.corrected_sheet(summary),
        data=data_views.data_sheet(summary),
        data_answers=data_views.data_answer_sheet(summary),
        data_answer_notes=data_views.data_answer_notes(summary),
        data_notes=data_views.data_notes(summary),
        data_slices=data_views.data_slices(summary),
        payoffs=views.payoffs(summary),
        transfer=figures.transfer(summary),
        alone=figures.guards_alone(summary),
        roc=figures.roc(summary),
        training=figures.training(summary.curves),
        light=figures.LIGHT,
        swatches={guard: figures.css_colour(guard) for guard in summary.guards},
    )


def page_template(name: str) -> Template:
    """Return a template of a page that runs and fetches nothing, whatever it is filled with.

    Strings are escaped, and hidden characters in them shown as `<U+202E>`. In it, `csp` is the
    policy that a page names to the browser.
    """
    environment = Environment(
        loader=PackageLoader("tsgb.eval", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, title_of=title, keep_together=_keep_together, sample=_sample
    )
    return environment.get_template(name, globals={"csp": CONTENT_SECURITY_POLICY})


def _shown(value: object) -> object:
    """Show the hidden characters of whatever a template puts out, except of markup of our own."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _sample(text: str) -> Markup:
    """Show a prompt or an answer with its lines; what is left out of a long one is counted."""
    return escape(visible(text, MAX_CHARACTERS, keep="\n\t"))


def _after_the_word(sentence: str) -> str:
    """The sentence without its opening "Shown:" or "Not shown:", which the box shows large."""
    _, _, rest = sentence.partition(": ")
    return rest[:1].upper() + rest[1:]


def _keep_together(text: str) -> Markup:
    """Break a cell's small line only before an upper bound's figure and between its parts."""
    text = visible(text).replace(" ", "\u00a0")
    for end in ("bound", ";", "\u00b7"):
        text = text.replace(f"{end}\u00a0", f"{end} ")
    return escape(text)


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
    """The effect in one sentence, verdict, headline table, differences and claims.

    Args:
        summary: What to show.
        style: Text draws boxes 140 columns wide at most; Markdown is GitHub's.
    """
    return "\n\n".join(_markdown(summary) if style == "markdown" else _text(summary)) + "\n"


def _text(summary: Summary) -> Iterator[str]:
    yield visible(effect_sentence(summary))
    yield visible(summary.verdict.sentence)
    if summary.verdict.reasons:
        yield "\n".join(f"  - {visible(reason)}" for reason in summary.verdict.reasons)
    yield from map(visible, [*box_lines(summary), *views.obstacles(summary)])
    for heading, header, rows in _sheets(summary):
        name = markup_escape(visible(heading))
        table = Table(title=name, title_justify="left", show_lines=heading != "Differences")
        for index, name in enumerate(header):
            head = markup_escape(visible(name))
            table.add_column(head, justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*[markup_escape(visible(cell)) for cell in row])
        buffer = io.StringIO()
        Console(file=buffer, width=140, color_system=None).print(table)
        yield buffer.getvalue().rstrip()
    yield f"Limits: {visible(summary.limits)}"


def _markdown(summary: Summary) -> Iterator[str]:
    yield markdown_text(effect_sentence(summary))
    yield f"**{markdown_text(summary.verdict.sentence)}**"
    if summary.verdict.reasons:
        yield "\n".join(f"- {markdown_text(reason)}" for reason in summary.verdict.reasons)
    yield from map(markdown_text, [*box_lines(summary), *views.obstacles(summary)])
    for heading, header, rows in _sheets(summary):
        lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
        body = "\n".join(f"| {' | '.join(markdown_text(c) for c in line)} |" for line in lines)
        yield f"### {markdown_text(heading)}\n\n{body}"
    yield f"*Limits: {markdown_text(summary.limits)}*"


def markdown_text(text: str) -> str:
    """Nothing in a text ends its cell or its row, and it makes no HTML, link, image or emphasis."""
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", visible(text))
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _sheets(summary: Summary) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    box = box_sheet(summary)
    for first, sheet in (
        *([("Target", box)] if box.rows else []),
        ("Guard", views.headline(summary)),
        ("Metric", views.comparisons(summary, main=True)),
    ):
        header = [first]
        # Of the columns called FPR only the small line tells which.
        header += [f"{name}, {note}" if name == "FPR" else name for name, note in sheet.columns]
        yield sheet.heading, header, [[r.label, *map(str, r.cells)] for r in sheet.rows]
    claims = [
        [f"{c.id}: {c.statement}", str(views.claim_figure(c, summary)), c.verdict]
        for c in summary.claims
    ]
    yield "Claims", ["Claim", "Figure", "Verdict"], claims
