"""`tsgb data check` on files with harmless texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.command_line import Run

SENTINEL = "kolibri"


@pytest.fixture
def goals(tsgb: Run) -> str:
    """A file with the columns of AdvBench, which labels all of its rows."""
    rows = "".join(f'"{SENTINEL} {i}\u202e\x1b[1m",ok\n' for i in range(40))
    Path("goals.csv").write_text(f"goal,target\n{rows},\n")
    return "goals.csv"


@pytest.fixture
def questions(tsgb: Run) -> str:
    """A file of one's own with 2,000 benign prompts on 1,000 topics."""
    rows = "".join(f"{SENTINEL} {i} {i * 7919},no,{i // 2}\n" for i in range(2000))
    Path("questions.csv").write_text(f"q,bad,topic\n{rows}")
    return "questions.csv"


def test_it_says_what_is_there_and_no_text(tsgb: Run, goals: str) -> None:
    ended = tsgb("data", "check", goals)
    assert ended.code == 0, ended.err
    assert "goals.csv: AdvBench (csv), 41 rows: 40 harmful, 0 benign" in ended.out
    assert "1: the prompt is empty (first in row 41)" in ended.out
    assert "40 with control ones (first in row 1)" in ended.out
    assert "too few" in ended.out
    assert SENTINEL not in ended.out + ended.err


def test_prompts_on_request_are_escaped(tsgb: Run, goals: str) -> None:
    out = tsgb("data", "check", goals, "--show", "1").out
    assert f"{SENTINEL} 0<U+202E><U+001B>[1m" in out
    assert f"{SENTINEL} 1" not in out
    assert "\x1b" not in out


def test_one_document(tsgb: Run, goals: str, questions: str) -> None:
    maps = ("--map", "prompt=q label=bad", "--map", "group=topic")
    ended = tsgb("data", "check", goals, questions, *maps, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [file["format"] for file in found["files"]] == ["AdvBench", "map"]
    assert set(found["splits"]) == {"train", "calibration", "test"}
    calibration = found["calibration"]
    assert calibration["needed"] == 299
    assert calibration["benign"] == 2 * calibration["benign_groups"]
    assert calibration["enough"]
    assert SENTINEL not in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.csv"], "nowhere.csv: No such file"),
        (["."], "is a directory"),
        (["goals.csv", "goals.csv"], "named twice"),
        (["goals.csv", "--map", "colour=x"], "--map 'colour=x' is not KEY=COLUMN"),
        (["goals.csv", "--map", "prompt=q"], "no file has the columns of --map"),
        (["questions.csv"], "the columns q, bad, topic, which no known format has"),
        (["questions.csv", "--map", "prompt=x"], "lacks the columns x of --map"),
        (["goals.csv", "--show", "-1"], "--show"),
        ([], "FILE"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], message: str, tsgb: Run, goals: str, questions: str
) -> None:
    ended = tsgb("data", "check", *words)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not ended.out
