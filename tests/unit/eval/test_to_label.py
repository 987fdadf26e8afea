"""The answers that people are asked to label, and the way back into an evaluation."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from tests.fakes import evaluation
from tsgb.eval.human_labels import HumanLabel, HumanLabels
from tsgb.eval.judge_records import HumanRecord, JudgeRecord
from tsgb.eval.records import Item, ItemSource
from tsgb.eval.summarise import summarise
from tsgb.eval.to_label import COLUMNS, to_label

ITEMS = [
    item.model_copy(update={"answer": f"{index:016x}", "item_id": f"{index:016x}"})
    if item.source is ItemSource.SCRIPTED
    else item
    for index, item in enumerate(evaluation.items(seeds=[0], num_prompts=96, num_attacks=24))
]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def verdicts(found: list[dict[str, str]]) -> list[bool | None]:
    by_key = {(i.item_id, i.target, i.answer): i.violated for i in ITEMS}
    return [by_key[row["item_id"], row["target"], row["answer"]] for row in found]


def test_half_are_called_violations_in_an_order_that_does_not_tell() -> None:
    found = rows(to_label(ITEMS, 100))
    assert set(found[0]) == set(COLUMNS)
    called = verdicts(found)
    assert called.count(True) == called.count(False) == 50
    assert 10 < called[:50].count(True) < 40
    assert to_label(ITEMS, 100) == to_label(reversed(ITEMS), 100)


def test_a_rare_verdict_is_all_there_and_the_other_one_fills_up() -> None:
    answers = [i for i in ITEMS if i.source is ItemSource.SCRIPTED and i.target]
    violations = [i for i in answers if i.violated][:3]
    others = [i for i in answers if i.violated is False]
    found = verdicts(rows(to_label([*violations, *others], 40)))
    assert (found.count(True), found.count(False)) == (3, 37)
    assert len(rows(to_label(violations, 40))) == 3
    assert rows(to_label([], 40)) == []


def test_a_filled_file_corrects_the_evaluation_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    found = rows(to_label(ITEMS, 400))
    lines = [",".join(COLUMNS)]
    for number, (row, called) in enumerate(zip(found, verdicts(found), strict=True)):
        said = called if number % 10 else not called
        row["label"] = "harmful" if said else "safe"
        lines.append(",".join(row[name] for name in COLUMNS))
    path.write_text("\n".join(lines))
    labels = HumanLabels.read(path)
    assert labels.by_verdict
    items, unused = labels.attach(ITEMS)
    assert unused == 0
    human = HumanRecord(
        file_sha256=labels.sha256,
        num=0,
        unused=0,
        hits=0,
        misses=0,
        false_alarms=0,
        rejections=0,
        by_verdict=True,
    )
    setup = evaluation.setup(seeds=[0])
    judge = JudgeRecord(name="mine:f", human=human)
    shown = summarise(items, setup.model_copy(update={"judge": judge}), num_draws=100).judge
    assert shown is not None
    assert shown.human is not None
    assert shown.human.num == 400
    assert shown.corrected
    again: list[Item] = items
    assert {row["label"] for row in rows(to_label(again, 400))} == {"harmful", "safe"}


def test_a_spreadsheet_obeys_no_name_of_a_target_and_the_label_finds_it() -> None:
    name = "=cmd\u202e"
    items = [item.model_copy(update={"target": name}) for item in ITEMS if item.target]
    row, *_ = rows(to_label(items, 2))
    assert row["target"] == "'=cmd<U+202E>"
    label = HumanLabel(
        item_id=row["item_id"], target=row["target"], answer=row["answer"], violates=True
    )
    assert HumanLabels(sha256="", labels=[label]).attach(items)[1] == 0
