"""Tables about evaluations and trainings, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tsgb.checkpoint.documents import MAX_JSON_BYTES, parse_json_lines
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.layout import CHECKPOINTS, CheckpointName
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.urls import canonical_url, place
from tsgb.cli.output import console
from tsgb.config import Arm
from tsgb.data.characters import visible
from tsgb.eval import views
from tsgb.eval.box import box_lines, box_sheet
from tsgb.eval.compare import PairedEvaluations
from tsgb.eval.comparison_page import comparison_notes, comparison_sheets, slice_sheets
from tsgb.eval.data_views import data_answer_notes, data_answer_sheet, data_sheet
from tsgb.eval.effect import effect_sentence
from tsgb.eval.records import Summary
from tsgb.eval.study_page import study_text
from tsgb.eval.study_records import StudySummary
from tsgb.eval.wording import MINUS, failed_class
from tsgb.settings import Settings, load_settings

TRAINING_FIGURES = {
    "asr_no_guard": "ASR bare",
    "asr": "ASR guarded",
    "fpr": "FPR",
    "fnr": "FNR",
}
"""Fields of `metrics.jsonl` in the table of a training, and their heads."""


# -- an evaluation -------------------------------------------------------------------------


def read_summary(where: str) -> Summary:
    """Read the summary at a path or URL."""
    directory, _, name = canonical_url(where).rpartition("/")
    settings: Settings = load_settings()
    files = open_filesystem(directory, settings.webdav_user, settings.webdav_pass)
    return Summary.model_validate_json(files.read(name, MAX_JSON_BYTES))


def print_study(where: str, page: str) -> None:
    """Print what a study found, its claims and tables, and the place of its page.

    Args:
        where: Path or URL of its summary.
        page: Path or URL of its page.
    """
    directory, _, name = canonical_url(where).rpartition("/")
    settings: Settings = load_settings()
    files = open_filesystem(directory, settings.webdav_user, settings.webdav_pass)
    study = StudySummary.model_validate_json(files.read(name, MAX_JSON_BYTES))
    out = console()
    out.print(visible(study_text(study), keep="\n"), markup=False, soft_wrap=True)
    out.print(visible(f"Study: {page}"), markup=False, soft_wrap=True)


def print_evaluation(summary: Summary, report: str) -> None:
    """Print the effect in a sentence, the figures, the verdict, and the place of the report."""
    out = console()
    out.print(visible(effect_sentence(summary)), style="bold", markup=False)
    if summary.invalid:
        out.print("Not valid. Only the ends of intervals can be read:", style="bold", markup=False)
        for failed in summary.invalid:
            out.print(visible(f"  - {failed_class(failed)}"), markup=False, soft_wrap=True)
    trained = {arm.value for arm in Arm}
    for table in evaluation_tables(summary):
        out.print(table)
    for line in [*box_lines(summary), *data_answer_notes(summary)]:
        out.print(visible(line), markup=False)
    if len(trained & set(summary.guards)) > 1:
        out.print(visible(summary.verdict.sentence), markup=False)
    else:
        out.print("One guard: `tsgb experiment` measures it against its baselines.", markup=False)
    out.print(visible(f"Limits: {summary.limits}"), markup=False)
    out.print(visible(f"Report: {report}"), markup=False, soft_wrap=True)


def evaluation_tables(summary: Summary) -> list[Table]:
    """Return the box, a table of fixed prompts on each target, and one of attackers and costs."""
    box = box_sheet(summary)
    headline = views.headline(summary)
    costs = [
        index
        for index, (name, note) in enumerate(headline.columns)
        if name not in {"AUROC", "ECE"} and note != "benign twins"
    ]
    coverage = "" if summary.coverage == 1 else f", coverage {summary.coverage:g}"
    about = f"{summary.env}, {summary.profile}{coverage}, {summary.threshold_rule}, 95 % intervals"
    fixed, data = views.scripted(summary), data_sheet(summary)
    refused = views.over_refusal(summary)
    declined = [_table("Benign prompts", refused, range(len(refused.columns)))]
    own = [_table("Your data, guards alone", data, range(len(data.columns)))]
    answered = data_answer_sheet(summary)
    answers = [_table("Your data, answers", answered, range(len(answered.columns)))]
    at_a_glance = [_table(box.heading, box, range(len(box.columns)), "Target")]
    return [
        *(at_a_glance if box.rows else []),
        _table(f"Fixed prompts: {about}", fixed, range(len(fixed.columns))),
        _table("Fresh attackers, and the price", headline, costs),
        *(declined if refused.rows else []),
        *(own if data.rows else []),
        *(answers if answered.rows else []),
    ]


def _table(title: str, sheet: views.Sheet, columns: Sequence[int], first: str = "Guard") -> Table:
    table = Table(title=_shown(title), title_justify="left")
    table.add_column(first)
    for index in columns:
        name, note = sheet.columns[index]
        head = f"{name}, {note}".replace(" \u00b7 ", ", ").replace(", ", "\n")
        table.add_column(_shown(head), justify="right")
    for row in sheet.rows:
        cells = [row.cells[index] for index in columns]
        table.add_row(_shown(row.label), *(_cell(cell) for cell in cells))
    return table


def _cell(cell: views.TableCell) -> str:
    detail = cell.detail.replace("upper bound ", "\u2264 ")
    if not detail.startswith(("+", MINUS)):  # a dash beside a sign could be read as another one
        detail = detail.replace(" to ", "\u2013")
    return _shown(f"{cell.figure}\n{detail}".strip())


def _shown(text: str) -> str:
    """Escape a text that may hold the names of strangers, as the text of a table."""
    return escape(visible(text, keep="\n"))


def print_comparison(found: PairedEvaluations) -> None:
    """Print a table for each figure of two evaluations, and what else differs."""
    out = console()
    for sheet in [*comparison_sheets(found), *slice_sheets(found, differing=True)]:
        out.print(_table(sheet.heading, sheet, range(len(sheet.columns))))
    for note in comparison_notes(found):
        out.print(note, markup=False)
    for name, (before, after) in found.changes.items():
        out.print(visible(f"{name}: {before} -> {after}"), markup=False, soft_wrap=True)


# -- a training ------------------------------------------------------------------------------


def store_url(store: str) -> str:
    """Return the form in which a store is kept in records."""
    return canonical_url(store)


def newest_step(run: RunStore) -> int:
    """Return the number of updates that are saved; -1 without any."""
    newest = CheckpointReader(run).newest()
    return -1 if newest is None else newest.step


def training_document(run: RunStore, total_steps: int) -> dict[str, Any]:
    """Return the checkpoints of a training, each with the mean figures of its updates."""
    reader = CheckpointReader(run)
    places = sorted(p for name in run.list(CHECKPOINTS) if (p := CheckpointName.parse(name)))
    refs = [reader.ref(name) for name in {p.step: p.name for p in places}.values()]
    lines = parse_json_lines(run.read_text("metrics.jsonl"))
    metrics = [line for line in lines if isinstance(line.get("step"), int) and "phase" in line]
    rows: list[dict[str, Any]] = []
    start = 0
    for ref in sorted(refs, key=lambda ref: ref.step):
        since = [line for line in metrics if start < line["step"] <= ref.step]
        rows.append(
            {
                "step": ref.step,
                "episode": ref.episode,
                "phases": list(dict.fromkeys(line["phase"] for line in since)),
                **{name: _mean(since, name) for name in TRAINING_FIGURES},
                "checkpoint": place(ref.url),
            }
        )
        start = ref.step
    return {
        "run_id": run.run_id,
        "run": place(run.run_url),
        "step": rows[-1]["step"] if rows else 0,
        "total_steps": total_steps,
        "checkpoint": rows[-1]["checkpoint"] if rows else None,
        "checkpoints": rows,
    }


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(line[name]) for line in lines if name in line]
    return sum(values) / len(values) if values else None


def print_training(document: Mapping[str, Any], *, already: bool) -> None:
    """Print a row for each checkpoint, and the next command."""
    out = console()
    table = Table(
        title=f"{document['run_id']}: means over the updates up to each checkpoint",
        title_justify="left",
    )
    for head in ("Update", "Games"):
        table.add_column(head, justify="right")
    table.add_column("Phases")
    for head in TRAINING_FIGURES.values():
        table.add_column(head, justify="right")
    for row in document["checkpoints"]:
        figures = [row[name] for name in TRAINING_FIGURES]
        table.add_row(
            f"{row['step']}",
            f"{row['episode']}",
            ", ".join(row["phases"]),
            *("" if value is None else f"{value:.1%}" for value in figures),
        )
    out.print(table)
    done = "was done already" if already else "done"
    out.print(
        f"{done}: {document['step']} of {document['total_steps']} updates, "
        f"{len(document['checkpoints'])} checkpoints in {document['run']}",
        markup=False,
        soft_wrap=True,
    )
    parent = document["run"].rpartition("/")[0]
    out.print(
        f"next: tsgb eval-local --checkpoint-path {parent}/latest", markup=False, soft_wrap=True
    )
