"""`tsgb report` and `tsgb compare`: evaluations that were made before, in any format."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.options import JsonOption
from tsgb.errors import ExitCode, InvalidResult, UsageError

if TYPE_CHECKING:
    from tsgb.eval.gates import GateOutcome
    from tsgb.eval.records import Summary
    from tsgb.eval.stored import StoredEvaluation

Where = Annotated[
    str,
    typer.Argument(
        metavar="EVALUATION",
        help="Directory of an evaluation (RUN/reports/ID) or one of its files, or a run that has "
        "one; a path or URL.",
    ),
]


class ReportFormat(StrEnum):
    """Forms in which `tsgb report` writes an evaluation."""

    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"
    CSV = "csv"
    LATEX = "latex"
    JUNIT = "junit"
    INSPECT = "inspect"
    LABELS = "labels"


def report(
    where: Where,
    form: Annotated[
        ReportFormat,
        typer.Option(
            "--format",
            help="Form; inspect writes a log for each target below --out, labels a file to fill in "
            "for --human-labels.",
        ),
    ] = ReportFormat.TEXT,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="File (inspect: directory), not stdout."),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="CONDITION",
            help="Condition that the end of an interval must keep, as in "
            "selfplay.adaptive_asr[T_s]<=0.1; may be repeated. Exit code 100 if one fails.",
        ),
    ] = None,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Compute all figures anew from results.jsonl; asks no model."
        ),
    ] = False,
) -> int:
    """Show an evaluation again, or write it in another form; asks no model.

    Exit code 3 if the evaluation is not valid, 100 if a gate fails.
    """
    from tsgb.data.characters import visible
    from tsgb.eval.gates import Gate, check_gates
    from tsgb.eval.wording import invalid_evaluation

    gates = [Gate.parse(text) for text in gate or ()]
    stored = _find(where)
    summary = stored.recomputed() if recompute else stored.summary()
    outcomes = check_gates(summary, gates)
    if form is ReportFormat.INSPECT:
        _write_logs(stored, summary, out)
    else:
        text = _text(stored, summary, form, outcomes)
        if out is None:
            typer.echo(text, nl=not text.endswith("\n"))
        else:
            _write(out, text)
    for outcome in outcomes:
        typer.echo(visible(str(outcome)), err=True)
    if summary.invalid:
        raise InvalidResult(invalid_evaluation(summary.invalid, stored.url))
    return ExitCode.OK if all(found.passed for found in outcomes) else ExitCode.GATE_FAILED


def compare(
    first: Where,
    second: Where,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what changed from one evaluation to another, on the prompts and seeds that both have."""
    from tsgb.cli import display, output
    from tsgb.eval.compare import compare_evaluations
    from tsgb.eval.comparison_page import render_comparison

    sides = [_find(where) for where in (first, second)]
    found = compare_evaluations(*((side.summary(), side.items()) for side in sides))
    if html is not None:
        _write(html, render_comparison(found))
    if as_json:
        output.print_json(found.model_dump(mode="json"))
        return
    display.print_comparison(found)


def _find(where: str) -> StoredEvaluation:
    from tsgb.eval.stored import find_evaluation
    from tsgb.settings import load_settings

    settings = load_settings()
    return find_evaluation(where, settings.webdav_user, settings.webdav_pass)


def _text(
    stored: StoredEvaluation,
    summary: Summary,
    form: ReportFormat,
    outcomes: list[GateOutcome],
) -> str:
    from tsgb.eval import formats
    from tsgb.eval.report import render_report, render_tables
    from tsgb.eval.to_label import to_label

    writers: dict[ReportFormat, Callable[[], str]] = {
        ReportFormat.TEXT: lambda: render_tables(summary),
        ReportFormat.MARKDOWN: lambda: formats.to_markdown(summary, outcomes),
        ReportFormat.HTML: lambda: render_report(summary, stored.games()),
        ReportFormat.JSON: lambda: summary.model_dump_json(indent=1),
        ReportFormat.CSV: lambda: formats.to_csv(summary),
        ReportFormat.LATEX: lambda: formats.to_latex(summary),
        ReportFormat.JUNIT: lambda: formats.to_junit(summary, outcomes),
        ReportFormat.LABELS: lambda: to_label(stored.items()),
    }
    return writers[form]()


def _write_logs(stored: StoredEvaluation, summary: Summary, out: Path | None) -> None:
    from tsgb.eval.inspect_log import inspect_log, log_name

    if out is None:
        raise UsageError("--format inspect writes a log for each target: add --out DIRECTORY")
    items = stored.items()
    for target in summary.targets:
        log = inspect_log(summary, items, target.name)
        _write(out / log_name(summary, target.name), json.dumps(log, indent=1))


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    from tsgb.checkpoint.filesystem import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): name another one") from None
    typer.echo(f"wrote {path}", err=True)
