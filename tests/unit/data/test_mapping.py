from __future__ import annotations

from typing import Any

import pytest

from tests.unit.data.conftest import Write
from tsgb.data.mapping import ColumnMap
from tsgb.data.reader import open_data
from tsgb.data.records import DataPrompt
from tsgb.errors import UsageError


def parsed(*texts: str) -> ColumnMap:
    found = ColumnMap.parse(texts)
    assert found is not None
    return found


def labels(write: Write, values: list[Any], label: str, name: str = "x.csv") -> list[Any]:
    """The label of each row, or the reason why it has none."""
    path = write(name, [{"q": "map", "v=2": 1, "bad": value} for value in values])
    with open_data(path, parsed("prompt=q", f"label={label}")) as data:
        return [row.harmful if isinstance(row, DataPrompt) else row.reason for row in data.rows]


def test_one_option_or_several() -> None:
    one = parsed("prompt=q label=bad=1,2 group=g slice='my column'")
    assert one == parsed("prompt=q", "label=bad=1,2", "group=g", "slice='my column'")
    assert one.slice == "my column"
    assert ColumnMap.parse([]) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["prompt"], "not KEY=COLUMN"),
        (["prompt=q", "colour=x"], r"'colour=x'.*prompt, label, group"),
        (["prompt=q", "prompt=r"], "prompt twice"),
        (["label=x"], "no prompt"),
        (["prompt='q"], "quotation"),
        (["prompt=q slice=q"], "categories are printed"),
        (["prompt=q\u202e=", "x=\u202e"], r"x=<U\+202E>"),
    ],
)
def test_a_map_that_means_nothing(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ColumnMap.parse(texts)


def test_values_that_mean_harmful(write: Write) -> None:
    assert labels(write, ["yes", "no", "maybe", "", "null"], "bad=yes,maybe") == [
        True,
        False,
        True,
        "no label (null)",
        "no label (null)",
    ]
    assert labels(write, [1, 0, 1.0, True, None], "bad=1,true", "x.jsonl") == [
        True,
        False,
        True,
        True,
        "no label (null)",
    ]


def test_usual_words_need_no_values(write: Write) -> None:
    values = ["Unsafe", "safe", "1", "0", "TRUE", "odd"]
    assert labels(write, values, "bad")[:5] == [True, False, True, False, True]
    assert labels(write, values, "bad")[5] == "the label is neither harmful nor benign"


def test_a_column_whose_name_has_an_equals_sign(write: Write) -> None:
    assert labels(write, ["x"], "v=2") == [True]
    assert labels(write, ["x"], "v=2=0") == [False]


def test_one_label_for_all_rows(write: Write) -> None:
    assert labels(write, ["x"], "@harmful") == [True]
    assert labels(write, ["x"], "@benign") == [False]


def test_without_a_label_prompts_have_none(write: Write) -> None:
    path = write("x.jsonl", [{"q": "map", "g": 1}, {"q": "list", "g": 1}, {"q": 5}])
    with open_data(path, parsed("prompt=q", "group=g")) as data:
        assert data.format == "map"
        one, other, dropped = data.rows
    assert isinstance(one, DataPrompt)
    assert isinstance(other, DataPrompt)
    assert (one.harmful, one.group) == (None, other.group)
    assert dropped.reason == "the prompt is no text"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_map_wins_where_a_file_has_its_columns_and_a_format_where_not(write: Write) -> None:
    mapping = parsed("prompt=goal", "label=@benign")
    path = write("x.csv", [{"goal": "map", "target": "x"}])
    with open_data(path, mapping) as data:
        [row] = data.rows
        assert isinstance(row, DataPrompt)
        assert (data.format, row.harmful) == ("map", False)
    with open_data(path, parsed("prompt=q")) as data:
        assert data.format == "AdvBench"


def test_a_file_without_the_columns_and_without_a_format(write: Write) -> None:
    path = write("x.csv", [{"a": 1, "b": 2}])
    with (
        pytest.raises(UsageError, match="lacks the columns q, g of --map: it has a, b"),
        open_data(path, parsed("prompt=q", "group=g")),
    ):
        pass
