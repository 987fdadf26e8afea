"""What a model of this process answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from tsgb.models.engine import Engine, Writing
from tsgb.targets.local import ChatTarget
from tsgb.types import Response


class Says:
    """An engine whose base says one text."""

    base = None

    def __init__(self, text: str, *, finished: bool) -> None:
        self.text, self.finished = text, finished

    def write(self, _role: object, chats: list[Any], **_: object) -> Writing:
        num = len(chats)
        return Writing(
            prompts=[[0]] * num,
            texts=[self.text] * num,
            ids_NL=torch.zeros(num, 1, dtype=torch.long),
            logp_NL=torch.zeros(num, 1),
            sampled_NL=torch.ones(num, 1, dtype=torch.bool),
            lengths_N=torch.ones(num, dtype=torch.long),
            finished_N=torch.full((num,), self.finished),
        )


@pytest.mark.parametrize(
    ("text", "finished", "response"),
    [
        ("the code is x", True, Response(text="the code is x")),
        (
            "<think>\nthe code is x\n</think>\n\nI'm sorry",
            True,
            Response(text="I'm sorry", thought=True),
        ),
        ("<think> the code", False, Response(text="", finish_reason="length", thought=True)),
        ("a <think> later", False, Response(text="a <think> later", finish_reason="length")),
    ],
)
def test_a_thought_is_no_answer(text: str, finished: bool, response: Response) -> None:
    engine = cast("Engine", Says(text, finished=finished))
    target = ChatTarget("T", engine, engine.base, max_new_tokens=8)
    assert target.answer([[{"role": "user", "content": "hello"}]]) == [response]
