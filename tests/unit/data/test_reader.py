from __future__ import annotations

import pytest

from tests.unit.data.conftest import Write
from tsgb.data.mapping import ColumnMap
from tsgb.data.reader import open_data
from tsgb.data.records import DataPrompt, DroppedRow
from tsgb.errors import UsageError


def test_rows_that_cannot_be_read_are_between_those_that_can(write: Write) -> None:
    path = write("x.jsonl", [{"goal": "map", "target": ""}, {"goal": None}, {"goal": "list"}])
    path.write_bytes(path.read_bytes() + b"{torn")
    with open_data(path) as data:
        one, two, three, four = data.rows
    assert isinstance(one, DataPrompt)
    assert two == DroppedRow(2, "no prompt (null)")
    assert isinstance(three, DataPrompt)
    assert four == DroppedRow(4, "not JSON")


def test_many_columns_are_shown_in_one_line(write: Write) -> None:
    path = write("x.csv", [{f"c{i}" + "o" * 99: 1 for i in range(90)}])
    with pytest.raises(UsageError, match="and 70 more") as caught, open_data(path):
        pass
    assert len(str(caught.value)) < 2000


def test_a_file_of_two_formats_is_asked_about(write: Write) -> None:
    """No two formats share their columns today; a map settles it where they would."""
    path = write("x.csv", [{"goal": "map", "target": ""}])
    with open_data(path, ColumnMap(prompt="target", label="@benign")) as data:
        assert data.format == "map"
        assert list(data.rows) == [DroppedRow(1, "the prompt is empty")]
