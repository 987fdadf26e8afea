from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.conftest import Write, encoded
from tsgb.data.check import DataScan, check
from tsgb.data.mapping import ColumnMap
from tsgb.errors import UsageError
from tsgb.types import Split

SENTINEL = "kolibri"
"""Word of every prompt, which no output may hold."""
MAP = ColumnMap(prompt="q", label="bad", slice="kind")


def own(write: Write, name: str, texts: list[str], bad: int = 0) -> Path:
    return write(name, [{"q": f"{SENTINEL} {t}", "bad": bad, "kind": "birds"} for t in texts])


def test_what_a_file_holds(write: Write) -> None:
    path = write(
        "x.jsonl",
        [
            {"q": f"{SENTINEL} one", "bad": 1, "kind": "birds"},
            {"q": f"{SENTINEL} tw\u202eo", "bad": 0, "kind": "birds"},
            {"q": f"{SENTINEL} three\0", "bad": 0, "kind": "\u202etrees"},
            {"q": f"{SENTINEL} four", "bad": None},
            {"q": "", "bad": 1},
        ],
    )
    found = check(DataScan([path], MAP)).document()
    [file] = found["files"]
    assert file["prompts"] == {"harmful": 1, "benign": 2, "unlabelled": 0}
    assert file["dropped"] == {
        "no label (null)": {"num": 1, "first_row": 4},
        "the prompt is empty": {"num": 1, "first_row": 5},
    }
    assert file["characters"] == {
        "bidi": {"num": 1, "first_row": 2},
        "control": {"num": 1, "first_row": 3},
    }
    assert set(file["slices"]) == {"birds", "<U+202E>trees"}
    assert file["lengths"]["max"] == len(SENTINEL) + 7
    assert SENTINEL not in json.dumps(found)


def test_prompts_are_shown_on_request_only_and_escaped(write: Write) -> None:
    path = own(write, "x.csv", ["a\x1b[1m\nb", "c", "d" * 500])
    [file] = check(DataScan([path], MAP, show=2)).files
    assert file.shown == [f"{SENTINEL} a<U+001B>[1m<U+000A>b", f"{SENTINEL} c"]


def test_splits_share_no_group_and_have_hashes_of_their_own(write: Write) -> None:
    one = own(write, "one.csv", [f"bird {i}" for i in range(300)])
    other = own(write, "other.csv", [f"BIRD  {i}" for i in range(150, 450)], bad=1)
    scan = DataScan([one, other], MAP)
    found = check(scan)
    assert found.duplicates.exact_across == 150
    assert found.duplicates.contradicting == 150
    assert len({split.sha256 for split in found.splits.values()}) == 3
    assert sum(split.groups for split in found.splits.values()) == found.groups
    assert found.splits[Split.CALIBRATION].benign_groups == len(found.calibration_sizes)
    assert any("another label" in warning for warning in found.warnings)


@given(st.lists(st.sampled_from(["map", "MAP", "list", "tree", "sea", "sky"]), min_size=1))
def test_no_text_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("d") / "x.csv"
    path.write_bytes(encoded("x.csv", [{"q": text, "bad": 0, "kind": ""} for text in texts]))
    found = check(DataScan([path], MAP))
    counted = [split.prompts.benign for split in found.splits.values()]
    assert sum(counted) == len(texts)
    assert sum(split.groups for split in found.splits.values()) == len({t.lower() for t in texts})


def test_a_repeated_prompt_calibrates_once(write: Write) -> None:
    path = own(write, "x.csv", [f"bird {i % 40}" for i in range(400)])
    found = check(DataScan([path], MAP))
    assert set(found.calibration_sizes) == {1}


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ([{"q": "a", "bad": 0}, {"q": "b", "bad": 0}], "every label is benign"),
        ([{"q": f"map {i}\u200b", "bad": i % 2} for i in range(9)], "invisible characters"),
        ([{"q": "map", "bad": i % 2} for i in range(9)], "one group holds 100%"),
    ],
)
def test_warnings(rows: list[dict[str, object]], warning: str, write: Write) -> None:
    found = check(DataScan([write("x.csv", rows)], ColumnMap(prompt="q", label="bad")))
    assert any(warning in text for text in found.warnings)


def test_a_label_of_responses_is_none_of_prompts(write: Write) -> None:
    row = {"prompt": "map", "response": "here", "category": {}, "is_safe": True}
    found = check(DataScan([write("x.jsonl", [row])]))
    assert found.files[0].labelled_responses == 1
    assert "the labels are of responses" in found.warnings[0]


def test_files_that_cannot_be_checked(write: Write, tmp_path: Path) -> None:
    path = own(write, "x.csv", ["a"])
    with pytest.raises(UsageError, match="named twice"):
        DataScan([path, tmp_path / "." / "x.csv"], MAP)
    with pytest.raises(UsageError, match="name files"):
        DataScan([])
    with pytest.raises(UsageError, match=r"no prompt \(the prompt is empty \(2\)\)"):
        DataScan([write("y.csv", [{"q": "", "bad": 1, "kind": ""}] * 2)], MAP)
    (tmp_path / "z.csv").write_text("q,bad,kind\n")
    with pytest.raises(UsageError, match="it has no rows"):
        DataScan([tmp_path / "z.csv"], MAP)
    with pytest.raises(UsageError, match=r"no file has the columns of --map \(nothing\)"):
        DataScan([write("g.csv", [{"goal": "a", "target": "b"}])], ColumnMap(prompt="nothing"))


def test_a_category_of_too_many_values_is_refused(write: Write) -> None:
    rows = [{"q": f"bird {i}", "bad": 0, "kind": i} for i in range(300)]
    with pytest.raises(UsageError, match="row 201: the category has more than 200 values"):
        DataScan([write("x.csv", rows)], MAP)
