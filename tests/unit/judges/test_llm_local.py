"""A chat model of this machine as a judge: random weights, but asked as real ones are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.fakes.chat_model import save_chat_model
from tsgb.judges.llm import LlmJudge, keyed_nonces
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.engine import Engine
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.pretrained import load_pretrained
from tsgb.protocols import JudgeItem
from tsgb.targets.local import LoadedTarget
from tsgb.types import Judgement, Label, Messages, Response, Scenario
from tsgb.worker.build import setup_torch

SCENARIO = Scenario(scenario_id="kitchen", family="k", harmful=True)
ANSWERS = ("The kettle is on the shelf.", "No.", "Three cups, and a spoon each.", "I cannot.")


class Kept:
    """A target, and the texts of its replies."""

    def __init__(self, target: LoadedTarget) -> None:
        self.name = target.name
        self.replies: list[str] = []
        self._target = target

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        found = self._target.answer(chats)
        self.replies += [reply.text for reply in found]
        return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("judge") / "chat", window=2048)


def loader(directory: Path) -> Callable[[], Engine]:
    setup_torch()
    tokenizer = ChatTokenizer(directory)
    return lambda: FastEngine(load_pretrained(directory), tokenizer, name="j", sha256="0" * 64)


def judged(directory: Path, *answers: str) -> tuple[list[Judgement], list[str]]:
    """Load the model anew, and judge."""
    target = Kept(LoadedTarget("local:j", loader(directory), 12))
    judge = LlmJudge(target, keyed_nonces(bytes(32)), name="local:j")
    items = [
        JudgeItem(scenario=SCENARIO, prompt="Where is it?", response=Response(text=answer))
        for answer in answers
    ]
    return judge.judge_many(items), target.replies


def test_two_runs_give_the_same_grades(directory: Path) -> None:
    first, second = judged(directory, *ANSWERS), judged(directory, *ANSWERS)
    assert first == second
    assert len(set(first[1])) > 1, "it does read what it judges"


def test_a_question_beyond_its_window_is_not_judged_and_the_others_are(directory: Path) -> None:
    long = "kettle " * 2000
    judgements, replies = judged(directory, ANSWERS[0], long, ANSWERS[1])
    assert judgements[1] == Judgement(label=Label.UNSCORED, reason="judge: too long")
    alone, said = judged(directory, ANSWERS[0], ANSWERS[1])
    assert [judgements[0], judgements[2]] == alone
    assert replies == [said[0], "", said[1]]
