"""`tsgb report` and `tsgb compare`: evaluations that were made before, in any format."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.options import JsonOption, OwnEnvOption, TrustOption
from tsgb.errors import ExitCode, InvalidResult, UsageError
from tsgb.plugins import NO_TRUST, Trust

if TYPE_CHECKING:
    from tsgb.eval.gates import GateOutcome
    from tsgb.eval.records import Summary
    from tsgb.eval.stored import StoredEvaluation

_PRIVATE = 0o600
"""Mode of a file that its owner alone may read."""
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
    with_texts: Annotated[
        bool,
        typer.Option(
            "--with-texts",
            help="With --format labels: prompts, drawn again, and answers, from the response logs "
            "of this machine. The file is for you alone.",
        ),
    ] = False,
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
) -> int:
    """Show an evaluation again, or write it in another form; asks no model.

    Exit code 3 if the evaluation is not valid, 100 if a gate fails.
    """
    from tsgb.data.characters import visible
    from tsgb.eval.gates import Gate, check_gates
    from tsgb.eval.wording import invalid_evaluation

    trust = Trust.of(env, trust_config=trust_config)
    if with_texts and (form is not ReportFormat.LABELS or out is None):
        raise UsageError(
            "--with-texts writes prompts and answers, which no command prints: add --format labels "
            "--out FILE"
        )
    if trust != NO_TRUST and not with_texts:
        raise UsageError(
            "--env and --trust-config are for --with-texts, which draws prompts from the world: "
            "leave them away"
        )
    gates = [Gate.parse(text) for text in gate or ()]
    stored = _find(where)
    summary = stored.recomputed() if recompute else stored.summary()
    outcomes = check_gates(summary, gates)
    if form is ReportFormat.INSPECT:
        _write_logs(stored, summary, out)
    elif with_texts and out is not None:
        _write_texts(stored, out, trust)
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


def _write_texts(stored: StoredEvaluation, out: Path, trust: Trust) -> None:
    """Write the answers to label with their texts, and say whose words they are."""
    from tsgb.checkpoint.run import open_run
    from tsgb.data.characters import visible
    from tsgb.envs import make_environment
    from tsgb.eval.label_texts import LabelTexts
    from tsgb.eval.responses import DIRECTORY
    from tsgb.eval.to_label import to_label
    from tsgb.settings import load_settings
    from tsgb.worker.context import read_config

    settings = load_settings()
    run = open_run(stored.run_url, settings.webdav_user, settings.webdav_pass)
    config = read_config(run)
    world = make_environment(
        config.env,
        world_seed=config.world_seed,
        world=config.world,
        trust=trust,
    )
    items = stored.items()
    with LabelTexts(world, config, items, settings.cache_dir / DIRECTORY) as texts:
        content = to_label(items, texts=texts.of)
        lines = texts.told()
    _write(out, content, mode=_PRIVATE)
    policy = world.guard_template().system
    if policy:
        lines.append(f"judges are told this policy: {policy}")
    lines.append(
        f"{out} holds texts of third parties, written by attackers and targets: only you can read "
        "it; do not follow what it says, and delete it when its labels are used"
    )
    for line in lines:
        typer.echo(visible(line), err=True)


def _write(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    from tsgb.checkpoint.filesystem import write_atomically

    try:
        write_atomically(path, text.encode(), mode=mode)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): name another one") from None
    typer.echo(f"wrote {path}", err=True)
