"""Files of human labels, and the answers that a label may mean."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tsgb.errors import StoreError, UsageError
from tsgb.eval.human_labels import HumanLabel, HumanLabels
from tsgb.eval.records import Item, ItemSource
from tsgb.types import StreamKind

PROMPT = hashlib.sha256(b"a prompt").hexdigest()
ID = PROMPT[:16]
OTHER = "0" * 16


def written(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def item(target: str = "Bot", answer: str = "aa", item_id: str = ID, **fields: object) -> Item:
    values = {"violated": True, "stream": StreamKind.STATIC, "source": ItemSource.SCRIPTED}
    common = {"item_id": item_id, "scenario_id": "s", "seed": 0, "harmful": True}
    return Item.model_validate({**common, "target": target, "answer": answer, **values, **fields})


def label(violates: bool = True, **fields: str) -> HumanLabel:
    return HumanLabel(**{"item_id": ID, **fields}, violates=violates)  # type: ignore[arg-type]


def attached(items: list[Item], *labels: HumanLabel) -> tuple[list[bool | None], int]:
    found, unused = HumanLabels(sha256="", labels=labels).attach(items)
    return [one.human for one in found], unused


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    csv = written(tmp_path, f"\ufeffitem_id,target,label,note\n{ID},Bot,Harmful,x\n{OTHER},,0,\n")
    jsonl = written(
        tmp_path,
        f'{{"prompt_sha256": "{PROMPT}", "target": "Bot", "label": true}}\n\n'
        f'{{"item_id": "{OTHER}", "label": 0}}\n',
        "labels.jsonl",
    )
    expected = [
        HumanLabel(item_id=ID, target="Bot", violates=True),
        HumanLabel(item_id=OTHER, violates=False),
    ]
    first, second = HumanLabels.read(csv), HumanLabels.read(jsonl)
    assert first.labels == second.labels == expected
    assert first.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert HumanLabels.of({"human_labels": first.document()}) == first
    assert HumanLabels.of({}) is None
    assert first.are_in({"human": {"file_sha256": first.sha256}})
    assert not first.are_in({"human": None})
    assert not first.are_in(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no label"),
        ("item_id,label\n", "holds no label"),
        (f"item_id,label\n{ID},maybe\n", "line 2: label 'maybe' is not known: write harmful"),
        (f"item_id,label\n{ID}, \n", "holds no label: write item_id, target and label, and fill"),
        (f"item_id\n{ID}\n", "line 2: label '' is not known"),
        ("item_id,label\nprompt text,safe\n", "line 2: item_id 'prompt text' is no digest"),
        ("label\nsafe\n", "line 2: prompt_sha256 '' is no digest"),
        (f'{{"item_id": "{ID}", "label": ["safe"]}}', "line 1: label '' is not known"),
        ('{"item_id": ', "line 1: it is not JSON: write one JSON object a line"),
        ('{"a": 1}\n[1]\n', "line 1: label"),
        (f"item_id,label,sample\n{ID},safe,verdict\n{ID},safe,\n", "mixes answers"),
        ('item_id,label\n"a,b\n', "is not CSV"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        HumanLabels.read(written(tmp_path, text))
    said = str(raised.value)
    assert said.startswith("--human-labels ")
    assert message in said
    assert "\n" not in said


def test_so_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        HumanLabels.read(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        HumanLabels.read(tmp_path)
    (tmp_path / "latin").write_bytes(b"item_id,label\n\xff,safe\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        HumanLabels.read(tmp_path / "latin")


@pytest.mark.parametrize(
    "document", [[], "x", {"sha256": "a"}, {"sha256": "", "by_verdict": True, "labels": [[1]]}]
)
def test_nor_is_a_request_of_another_form_believed(document: object) -> None:
    with pytest.raises(StoreError, match="human labels of another form"):
        HumanLabels.of({"human_labels": document})


def test_rows_that_nobody_labelled_yet_are_left_out(tmp_path: Path) -> None:
    csv = written(tmp_path, f"item_id,sample,label\n{ID},verdict,\n{OTHER},verdict,safe\n")
    read = HumanLabels.read(csv)
    assert [one.item_id for one in read.labels] == [OTHER]
    assert read.by_verdict


def test_a_label_counts_only_where_one_answer_can_be_meant() -> None:
    two = [item("Bot"), item("Box", "bb")]
    assert attached(two, label()) == ([None, None], 1)
    assert attached(two, label(target="Box")) == ([None, True], 0)
    assert attached(two, label(answer="aa")) == ([True, None], 0)
    assert attached(two, label(target="Bot", answer="bb")) == ([None, None], 1)
    assert attached(two, label(item_id=OTHER)) == ([None, None], 1)


def test_equal_answers_share_a_label_and_draws_that_differ_do_not() -> None:
    assert attached([item(), item()], label(False)) == ([False, False], 0)
    assert attached([item(), item(answer="cc")], label(False)) == ([None, None], 1)


def test_people_who_contradict_each_other_decide_nothing() -> None:
    assert attached([item()], label(True), label(False)) == ([None], 2)
    assert attached([item()], label(True), label(True)) == ([True], 0)


def test_an_item_without_an_answer_takes_none() -> None:
    failed = item(violated=None, error="timeout")
    benign = item(harmful=False, violated=None, source=ItemSource.BENIGN, stream=StreamKind.BENIGN)
    assert attached([failed, benign], label()) == ([None, None], 1)
