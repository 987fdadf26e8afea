"""Whether a command begins another evaluation or goes on with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tsgb.eval.additions import Additions
from tsgb.eval.unfinished import UnfinishedEvaluation


class Declared:
    name, version = "mine", "1"

    def generate(self, prompt: str) -> str:
        return prompt


class Silent:
    def generate(self, prompt: str) -> str:
        return prompt


class Commands:
    """Commands of one user, one after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(
        self, name: str = "Silent", *, fresh: bool = False, guard: str = "ab", **more: Any
    ) -> tuple[UnfinishedEvaluation, dict[str, Any]]:
        identities = Additions(target_class=[f"{__name__}:{name}"]).identities(fresh=fresh)
        identities |= more
        record = UnfinishedEvaluation(self.directory, {"guard": guard}, identities)
        return record, record.join()


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path / "responses")


def test_a_killed_command_is_gone_on_with_and_a_finished_one_is_not(commands: Commands) -> None:
    _, first = commands.begin()
    record, second = commands.begin()
    assert second == first
    record.finish()
    assert commands.begin()[1] != first


def test_another_question_is_another_evaluation(commands: Commands) -> None:
    _, first = commands.begin()
    assert commands.begin(guard="cd")[1] != first
    changed = {f"target {__name__}:Silent": {"asked": "00", "sha256": "another file"}}
    assert commands.begin(**changed)[1] != first
    assert commands.begin()[1] == first


def test_what_declares_itself_needs_no_record(commands: Commands) -> None:
    _, first = commands.begin("Declared")
    assert commands.begin("Declared")[1] == first
    assert not commands.directory.exists()


@pytest.mark.parametrize("name", ["Declared", "Silent"])
def test_fresh_begins_anew_and_the_command_without_it_goes_on(
    name: str, commands: Commands
) -> None:
    _, plain = commands.begin(name)
    _, fresh = commands.begin(name, fresh=True)
    assert fresh != plain
    record, again = commands.begin(name)
    assert again == fresh
    assert commands.begin(name, fresh=True)[1] != fresh
    record.finish()
    assert ("fresh" in commands.begin(name)[1]) is False


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"since": 1, "identities": {}}', '{"since": ""}']
)
def test_a_damaged_record_is_none(content: str, commands: Commands) -> None:
    _, first = commands.begin()
    [path] = (commands.directory / "unfinished").iterdir()
    path.write_text(content)
    assert commands.begin()[1] != first


def test_a_directory_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, first = Commands(tmp_path / "file").begin()
    assert first
