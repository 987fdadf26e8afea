from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.conftest import Write
from tsgb.data.check import DataScan, check
from tsgb.data.mapping import ColumnMap
from tsgb.data.selection import FileSelection, select
from tsgb.errors import UsageError
from tsgb.types import Split

MAP = ColumnMap(prompt="q", label="bad", group="g")


def file(write: Write, name: str = "x.csv", num: int = 200, bad: int = 2) -> Path:
    return write(
        name, [{"q": f"bird {i} {name}", "bad": int(i % bad == 0), "g": i // 4} for i in range(num)]
    )


def texts(selection: FileSelection) -> list[str]:
    return [chosen.prompt.text for chosen in selection.prompts]


def test_a_split_is_read_whole_and_in_order(write: Write) -> None:
    scan = DataScan([file(write)], MAP)
    found = {split: select(scan, split)[0] for split in Split}
    assert sum(len(chosen.prompts) for chosen in found.values()) == 200
    assert len({chosen.split_sha256 for chosen in found.values()}) == 3
    groups = [{p.group for p in chosen.prompts} for chosen in found.values()]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert not groups[0] & groups[2]
    for split, chosen in found.items():
        rows = [p.prompt.row for p in chosen.prompts]
        assert rows == sorted(rows)
        assert chosen.available == len(rows)
        assert chosen.split_sha256 == check(scan).splits[split].sha256


def test_a_limit_draws_by_the_text_so_that_more_rows_replace_few(write: Write) -> None:
    before = texts(select(DataScan([file(write, num=400)], MAP), Split.TEST, limit=30)[0])
    after = texts(select(DataScan([file(write, num=440)], MAP), Split.TEST, limit=30)[0])
    assert len(before) == 30
    assert len(set(before) & set(after)) >= 22


def test_only_benign_ones(write: Write) -> None:
    scan = DataScan([file(write)], MAP)
    [chosen] = select(scan, Split.CALIBRATION, wanted=lambda harmful: not harmful)
    assert {p.prompt.harmful for p in chosen.prompts} == {False}


def test_each_text_once_a_file_and_prompts_without_a_label_never(write: Write) -> None:
    rows = [{"q": f"bird {i % 50}", "bad": 1, "g": i % 50} for i in range(150)]
    one = write("one.csv", rows)
    other = write("other.csv", [{"q": f"bird {i}", "bad": 1, "g": i} for i in range(50)])
    first, second = select(DataScan([one, other], MAP), Split.TEST)
    assert len(texts(first)) == len(set(texts(first)))
    assert texts(first) == texts(second)
    unlabelled = write("x.csv", [{"q": f"fish {i}", "g": i} for i in range(50)])
    with pytest.raises(UsageError, match="no labelled prompt"):
        select(DataScan([unlabelled], ColumnMap(prompt="q", group="g")), Split.TEST)


@pytest.mark.parametrize("change", ["more", "fewer", "other"])
def test_a_file_that_changes_meanwhile_is_refused(change: str, write: Write) -> None:
    path = file(write)
    scan = DataScan([path], MAP)
    data = path.read_bytes()
    path.write_bytes(
        {
            "more": data + b"bird,1,7\r\n",
            "fewer": data[: data[:-2].rindex(b"\n") + 1],
            "other": data.replace(b"bird 3 ", b"fish 3 "),
        }[change]
    )
    with pytest.raises(UsageError, match="changed while it was read"):
        select(scan, Split.TEST)


def test_two_files_of_one_name(write: Write, tmp_path: Path) -> None:
    path = file(write)
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / "x.csv"
    other.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"two files are called x\.csv"):
        select(DataScan([path, other], MAP), Split.TEST)
