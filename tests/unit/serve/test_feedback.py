"""Feedback is a file of prompts that a later run learns from, as far as people labelled it."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.word_guard import WordGuard
from tests.unit.serve.conftest import asking
from tsgb.data.check import DataScan
from tsgb.data.mapping import ColumnMap
from tsgb.serve.batching import TextVerdict
from tsgb.serve.feedback import FeedbackFile

UNSAFE = TextVerdict(1.0, 0.9, unsafe=True, windows=1, unknown=0)


def test_labelled_rows_are_read_as_data_and_others_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    feedback = FeedbackFile(path)
    assert feedback.add("a harmful one", "harmful", UNSAFE, "user")
    assert feedback.add("a benign one", "benign", UNSAFE, "user")
    assert feedback.add("nobody looked at this", None, UNSAFE, "shadow")
    scan = DataScan([path], ColumnMap.parse(["prompt=prompt", "label=label"]))
    assert [label for label in scan.labels if label is not None] == [True, False]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_route(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    with asking(WordGuard(), feedback=FeedbackFile(path, max_bytes=150)) as client:
        told = client.post("/v1/feedback", json={"input": "so bad", "label": "benign"})
        assert (told.status_code, told.json()) == (200, {"stored": True, "verdict": "unsafe"})
        for wrong in ({"input": "x"}, {"input": " ", "label": "benign"}, {"label": "harmful"}):
            assert client.post("/v1/feedback", json=wrong).status_code == 400
        full = client.post("/v1/feedback", json={"input": "more " * 9, "label": "benign"})
        assert (full.status_code, full.json()["error"]["code"]) == (507, "feedback_full")
    [line] = path.read_text().splitlines()
    assert '"label":"benign"' in line
    with asking(WordGuard()) as client:
        assert client.post("/v1/feedback", json={"input": "x"}).status_code == 404
