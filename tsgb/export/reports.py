"""The figures of a guard in the reports that lie near it: in its run, or in its main run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from tsgb.checkpoint.documents import MAX_JSON_BYTES
from tsgb.checkpoint.run import RunStore
from tsgb.eval.records import Result, Summary
from tsgb.types import CheckpointRef


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one guard in one evaluation."""

    summary: Summary
    """Summary of the evaluation."""
    results: list[Result]
    """One a target; of this very seed, where the evaluation has several."""


def figures_of(runs: Sequence[RunStore], ref: CheckpointRef, seed: int) -> Figures | None:
    """The newest evaluation of exactly this checkpoint; None without one."""
    found = [
        figures
        for run in runs
        for eval_id in run.list_if_present("reports")
        if (figures := _read(run, f"reports/{eval_id}/summary.json", ref, seed))
    ]
    return max(found, key=lambda f: f.summary.provenance.created_at, default=None)


def _read(run: RunStore, path: str, ref: CheckpointRef, seed: int) -> Figures | None:
    try:
        summary = Summary.model_validate_json(run.read_bytes(path, MAX_JSON_BYTES))
    except (FileNotFoundError, ValidationError):
        return None  # not finished, or of another version
    keys = [key for key, sha256 in summary.provenance.checkpoints.items() if sha256 == ref.sha256]
    if not keys:
        return None
    guard = keys[0].rpartition("/")[2]
    rows = [result for result in summary.results if result.guard == guard]
    own = [result for result in rows if result.seed == seed]
    return Figures(summary, own or [result for result in rows if result.seed is None])
