"""What Prefect's UI shows of a run beside states and logs: tables, pictures, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.runtime import deployment, flow_run

from flows.workers import Workers
from tsgb.checkpoint.layout import METRICS
from tsgb.cloud.bill import RentalBill
from tsgb.cloud.documents import AttemptDocument, RunDocuments
from tsgb.config import Arm, RunConfig
from tsgb.errors import StoreError

if TYPE_CHECKING:
    from tsgb.eval.records import Summary

RATES = (
    "asr",
    "asr_no_guard",
    "adaptive_asr",
    "scripted_tpr",
    "fpr",
    "fnr",
    "auroc",
)


def quietly(show: Callable[[], object]) -> None:
    """Show something; an API that is down for a while must not end a training run."""
    try:
        show()
    except (httpx.HTTPError, OSError, StoreError) as error:
        get_run_logger().warning("No artifact: %s", error)


def artifact_key(text: str) -> str:
    """Lower-case letters, digits and dashes: what Prefect takes as a key."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())


def tag_run(run: str) -> None:
    """Tag the flow run with the run's id, by which both stages are found in the UI."""
    number = flow_run.id
    if number is None or deployment.id is None:
        return
    with get_client(sync_client=True) as client:
        tags = {*cast("list[str]", flow_run.tags), f"run:{run}"}
        quietly(lambda: client.update_flow_run(UUID(number), tags=sorted(tags)))


def show_training(workers: Workers, configs: Mapping[Arm, RunConfig]) -> None:
    """Show the attempts of a run, and how ASR and FPR went; only where a UI may show them."""
    if deployment.id is not None:
        quietly(lambda: _show_attempts(workers))
        quietly(lambda: _show_curve(workers, configs))


def show_bill(run: str, bill: RentalBill) -> None:
    """Show what each machine of a run cost and did."""
    key = artifact_key(f"machines-{run}")
    quietly(lambda: create_table_artifact(bill.rows(), key=key, description=str(bill)))


def show_report(run: str, report: str, summary: Mapping[str, Any]) -> str | None:
    """Show the verdict, the tables, the key figures and the transfer plot of an evaluation.

    Returns:
        Why the evaluation is not valid; None if it is.
    """
    from tsgb.eval.records import Summary
    from tsgb.eval.report import render_tables
    from tsgb.eval.wording import invalid_evaluation

    read = Summary.model_validate(summary)
    key = artifact_key(f"report-{run}")
    create_markdown_artifact(
        f"# {run}\n\n{render_tables(read, 'markdown')}\nReport: `{report}`\n",
        key=key,
        description=read.verdict.sentence,
    )
    create_table_artifact(
        [{name: _cell(value) for name, value in row.items()} for row in key_figures(summary)],
        key=f"{key}-figures",
        description=f"Key figures of {run}, with 95 % intervals",
    )
    if report.startswith(("http://", "https://")):  # no browser follows a file:// link from there
        create_link_artifact(report, link_text="report.html", key=f"{key}-link")
    if deployment.id is not None:  # matplotlib is imported only where a UI shows it
        _show_transfer(run, read)
    return invalid_evaluation(read.invalid, report) if read.invalid else None


def _show_transfer(run: str, summary: Summary) -> None:
    from tsgb.eval.figures import data_url, transfer

    picture = transfer(summary)
    if picture is not None:
        create_image_artifact(
            data_url(picture),
            key=artifact_key(f"report-{run}-transfer"),
            description=f"Adaptive ASR of {run} by target",
        )


def key_figures(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results over all seeds, one row a guard and target."""
    return [
        {
            **{name: row.get(name) for name in ("guard", "target", "threshold_rule")},
            **{name: row.get(name) for name in RATES},
        }
        for row in summary.get("results", [])
        if row.get("seed") is None
    ]


def attempt_rows(attempts: Iterable[AttemptDocument]) -> Iterator[dict[str, Any]]:
    """Yield a table row for each attempt: on which machine, how and when it ended, and why."""
    for one in attempts:
        intent, result = one.intent, one.result
        yield {
            "attempt": one.attempt,
            "machine": "here" if intent is None else f"{intent.gpu_name} ({intent.machine_id})",
            "$/h": "" if intent is None else f"{intent.hourly:.3f}",
            "end": "" if result is None else str(result.cause),
            "why": "" if result is None else result.message,
            "ended": "" if result is None else f"{result.at:%Y-%m-%d %H:%M:%S} UTC",
            "saved updates": "" if result is None else result.step,
        }


def _show_attempts(workers: Workers) -> None:
    rows = list(attempt_rows(RunDocuments(workers.open_home()).attempts()))
    create_table_artifact(
        rows,
        key=artifact_key(f"attempts-{workers.home}"),
        description=f"Attempts of run {workers.home}: machines, and how each ended",
    )


def _show_curve(workers: Workers, configs: Mapping[Arm, RunConfig]) -> None:
    from tsgb.eval.curves import curve_of
    from tsgb.eval.figures import data_url, learning

    curves = [
        curve_of(text, config.seed, arm.value)
        for arm, config in configs.items()
        if (text := _metrics(workers, arm)) is not None
    ]
    picture = learning(curves)
    if picture is not None:
        create_image_artifact(
            data_url(picture),
            key=artifact_key(f"learning-{workers.run}"),
            description=f"Attack success and false alarms while {workers.run} trains",
        )


def _metrics(workers: Workers, arm: Arm) -> str | None:
    try:
        return workers.open(arm).read_text(METRICS)
    except FileNotFoundError:
        return None


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        rate = cast("Mapping[str, float]", value)
        return f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
    return "" if value is None else str(value)
