"""`tsgb models` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.chat_model import save_chat_model
from tests.fakes.command_line import Run
from tsgb.models.files import identity


def test_push_list_pull_and_delete(
    tsgb: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "tiny")
    ended = tsgb("models", "push", str(model), "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    name = said["model"]
    assert said["sent_bytes"] == said["bytes"] > 0
    again = tsgb("models", "push", str(model))
    assert f"--model {name}" in again.out
    assert "of which 0 bytes were sent now" in again.out
    assert name in tsgb("models", "list").out
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "other"))
    pulled = Path(tsgb("models", "pull", name).out.strip())
    assert identity(pulled) == identity(model)
    assert tsgb("models", "delete", name).code == 0
    assert json.loads(tsgb("models", "list", "--json").out) == {"models": []}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("pull", "acme/tiny"), "'acme/tiny' is no pushed model"),
        (("pull", "pushed:tiny@main"), "is no name of a pushed model"),
        (("pull", f"pushed:tiny@{'0' * 40}"), "push it with `tsgb models push`"),
        (("push", "nonsense"), "unknown pretrained model"),
    ],
)
def test_what_is_no_model_is_one_line(tsgb: Run, words: tuple[str, ...], reason: str) -> None:
    ended = tsgb("models", *words)
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.err.splitlines()
    assert reason in line
