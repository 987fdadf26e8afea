"""The judge of an evaluation, from the process that asks it to the report that names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pydantic import ValidationError

from tsgb.errors import StoreError
from tsgb.eval.human_labels import HumanLabels
from tsgb.eval.judge_records import NO_LABELS, CanaryRecord, HumanRecord, JudgeRecord
from tsgb.judges.canaries import CanaryCounts, run_canaries
from tsgb.judges.facts import JudgeFacts, NamedJudge
from tsgb.protocols import Judge

EXACT = "not needed: the world decides by its rules"
"""Reading of an exact judge."""


class LabelUse(NamedTuple):
    """Labels of people, as an evaluation takes them."""

    labels: HumanLabels
    """All of the file."""
    unused: int
    """Labels that belong to no answer, or could belong to several."""


def examine(judge: Judge) -> dict[str, Any]:
    """Return what a cell keeps of the judge: its facts, and the counts of its canaries."""
    facts = facts_of(judge)
    canaries = None if facts["exact"] else run_canaries(judge)._asdict()
    return {"facts": facts, "canaries": canaries}


def facts_of(judge: Judge) -> dict[str, Any]:
    """Return the fields of a judge's `JudgeFacts`."""
    facts = judge.facts if isinstance(judge, NamedJudge) else JudgeFacts(name=type(judge).__name__)
    return asdict(facts)


def judge_record(
    examined: Sequence[Mapping[str, Any] | None], labels: LabelUse | None = None
) -> JudgeRecord | None:
    """Return what a report says of the judge of all seeds; None for cells of earlier versions.

    Args:
        examined: What `examine` returned, of each seed.
        labels: The labels of people, and how many of them belong to no answer; None without any.

    Raises:
        StoreError: A cell says something else.
    """
    found = [one for one in examined if one is not None]
    if not found:
        return None
    try:
        counts = [CanaryCounts(**one["canaries"]) for one in found if one["canaries"] is not None]
        total: CanaryCounts | None = None
        for count in counts:
            total = count if total is None else total.plus(count)
        canaries = None if total is None else CanaryRecord.model_validate(total._asdict())
        facts: Mapping[str, Any] = found[0]["facts"]
        correction = EXACT if facts["exact"] else NO_LABELS
        human = None if labels is None else _human(labels)
        return JudgeRecord(**facts, canaries=canaries, correction=correction, human=human)
    except (KeyError, TypeError, ValidationError) as error:
        raise StoreError(
            f"a cell names its judge in a way that this version does not read "
            f"({type(error).__name__}): delete the cells, then evaluate again"
        ) from error


def _human(use: LabelUse) -> HumanRecord:
    """Return the record before anything is counted; `judge_error.py` does that."""
    return HumanRecord(
        file_sha256=use.labels.sha256,
        unused=use.unused,
        by_verdict=use.labels.by_verdict,
        num=0,
        hits=0,
        misses=0,
        false_alarms=0,
        rejections=0,
    )
