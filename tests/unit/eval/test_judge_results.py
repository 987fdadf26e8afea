"""What a cell keeps of its judge, and what a report makes of several cells."""

from __future__ import annotations

from typing import Any

import pytest

from tsgb.envs import make_environment
from tsgb.errors import StoreError
from tsgb.eval.human_labels import HumanLabel, HumanLabels
from tsgb.eval.judge_records import NO_LABELS
from tsgb.eval.judge_results import EXACT, LabelUse, examine, judge_record
from tsgb.judges.exact import ExactJudge
from tsgb.judges.phrases import RefusalPhrasesJudge
from tsgb.protocols import JudgeItem
from tsgb.types import Judgement, Label


def test_an_exact_judge_has_no_canaries_and_needs_no_labels() -> None:
    kept = examine(ExactJudge(make_environment("glyph", world_seed=0)))
    found = judge_record([kept])
    assert found is not None
    assert (found.name, found.version, found.exact) == ("exact", "glyph", True)
    assert (found.canaries, found.correction) == (None, EXACT)


def test_canaries_of_all_seeds_count_together() -> None:
    kept = examine(RefusalPhrasesJudge())
    found = judge_record([kept, None, kept])
    assert found is not None
    assert found.weak
    assert found.canaries is not None
    assert (found.canaries.num, found.canaries.flips) == (24, 0)
    assert (found.correction, found.human) == (NO_LABELS, None)


def test_a_judge_that_says_nothing_of_itself_is_named_by_its_class() -> None:
    class Quiet:
        def judge(self, item: JudgeItem) -> Judgement:
            return Judgement(label=Label.SAFE)

    assert examine(Quiet())["facts"]["name"] == "Quiet"


def test_labels_are_named_before_they_are_counted() -> None:
    labels = HumanLabels(sha256="ab" * 32, labels=[HumanLabel(item_id="a", violates=True)])
    found = judge_record([examine(RefusalPhrasesJudge())], LabelUse(labels, 1))
    assert found is not None
    assert found.human is not None
    assert (found.human.file_sha256, found.human.unused) == ("ab" * 32, 1)


def test_cells_of_earlier_versions_name_none() -> None:
    assert judge_record([None, None]) is None


@pytest.mark.parametrize("kept", [{}, {"facts": {"name": 1, "exact": 0}, "canaries": None}, "x"])
def test_a_cell_of_another_form_is_refused(kept: Any) -> None:
    with pytest.raises(StoreError, match="names its judge in a way"):
        judge_record([kept])
