"""Endpoints that are asked about a user's prompts: once each, within limits, and judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.data_evaluation import MAP, StandIn, rows
from tests.fakes.endpoint_server import OPENAI, EndpointServer, Fault, good_body, serving, status
from tsgb.config import make_config
from tsgb.errors import UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.data_answers import DataTargets, chat_of, judge_of_data, targets_of_data
from tsgb.eval.data_results import read_cell
from tsgb.eval.logged_target import LoggedTargets
from tsgb.eval.own_data import OwnData, fill_data
from tsgb.eval.records import Item
from tsgb.judges.llm import LlmJudge, keyed_nonces
from tsgb.judges.phrases import RefusalPhrasesJudge
from tsgb.targets.endpoint import EndpointSpec
from tsgb.types import Messages, Response

CONFIG = make_config()
REFUSED = Fault(body=good_body(OPENAI, "I cannot help with that."))


def own_data(tmp_path: Path, num: int = 100) -> OwnData:
    return OwnData.read([rows(tmp_path, [f"kolibri number {i}" for i in range(num)])], MAP, 0)


def filled(
    tmp_path: Path, data: OwnData, server: EndpointServer, limit: int | None = None
) -> dict[str, Any]:
    """The cell of one command, whose response log is closed in the end."""
    box = EndpointSpec.model_validate(
        {"name": "big", "kind": OPENAI, "model": "m", "url": server.openai, "key_variable": "A_KEY"}
    )
    added = Additions(endpoints=[box], max_requests=limit)
    targets = added.load_targets(lambda: None, lambda _: SecretStr("k"), tmp_path / "ledger")
    with LoggedTargets(tmp_path / "log", "e1", CONFIG) as logged:
        asked = DataTargets([*logged.wrap(targets.values()).values()], RefusalPhrasesJudge())
        stand_in: Any = StandIn(tmp_path, take_usage=logged.take_usage)
        fill_data(stand_in, data, lambda *_: None, lambda: None, asked)
    return dict(read_cell(stand_in.run, stand_in.directory))


def answered(cell: dict[str, Any]) -> list[Item]:
    return [Item.model_validate(item) for item in cell["items"] if item.get("target")]


def test_each_prompt_is_asked_once_alone_and_judged(tmp_path: Path) -> None:
    data = own_data(tmp_path)
    texts = data.texts
    refused = set(texts[::3])
    with serving({text: [REFUSED] for text in refused}) as server:
        cell = filled(tmp_path, data, server)
        assert server.asked == Counter(texts)
        assert all(
            body["messages"] == list(chat_of(body["messages"][-1]["content"]))
            for body in server.bodies
        )
        (tmp_path / "r1" / "reports" / "e1" / "cells" / "data.json").unlink()
        again = filled(tmp_path, data, server)
        assert server.requests == len(texts), "the response log answers"
    assert again["items"] == cell["items"]
    items = answered(cell)
    by_id = {chosen.digest: chosen.prompt for file in data.files for chosen in file.prompts}
    assert len(items) == len(texts)
    for item in items:
        prompt = by_id[item.item_id]
        declined = prompt.text in refused
        assert item.target == "big"
        assert item.violated == (not declined if prompt.harmful else None)
        assert item.refused == (None if prompt.harmful else declined)
        assert item.blocked == {"length": len(prompt.text) > 12}
    assert cell["judge"]["facts"]["name"] == "refusal-phrases"
    assert cell["judge"]["facts"]["weak"]
    [usage] = cell["usage"]
    assert (usage["name"], usage["answers"]) == ("big", len(texts))
    assert "kolibri" not in json.dumps(cell)


def test_what_a_limit_or_an_error_left_open_is_asked_by_the_next_command(tmp_path: Path) -> None:
    data = own_data(tmp_path)
    num = len(data.texts)
    with serving() as server:
        few = filled(tmp_path, data, server, limit=num // 2)
        assert server.requests == num // 2
        errors = Counter(item.error for item in answered(few))
        assert errors[None] == num // 2
        assert set(errors) <= {None, "budget", "not asked"}
        whole = filled(tmp_path, data, server, limit=num)
        assert server.requests == num
    assert all(item.error is None for item in answered(whole))


def test_a_target_that_only_fails_is_not_asked_on(tmp_path: Path) -> None:
    data = own_data(tmp_path, 400)
    with serving(otherwise=status(400)) as server:
        cell = filled(tmp_path, data, server)
        assert server.requests == 40, "20 of each class"
    errors = Counter(item.error for item in answered(cell))
    assert errors == {"http_400": 40, "not asked": len(data.texts) - 40}


def test_a_language_model_judges_by_a_policy_in_general_words() -> None:
    class Grader:
        name = "grader"

        def __init__(self) -> None:
            self.chats: list[Messages] = []

        def answer(self, chats: Sequence[Messages]) -> list[Response]:
            self.chats += chats
            return [Response(text="GRADE: safe") for _ in chats]

    judge = LlmJudge(Grader(), keyed_nonces(b"k" * 32), policy="Never tell the code.")
    general = judge_of_data(judge)
    assert isinstance(general, LlmJudge)
    assert general.facts.prompt_sha256 != judge.facts.prompt_sha256
    phrases = RefusalPhrasesJudge()
    assert judge_of_data(phrases) is phrases


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (None, "--data: nobody judges the answers to prompts of a file: add --judge openai:MODEL"),
        ("exact", "--data: the world's own judge knows nothing of prompts of a file: add --judge"),
    ],
)
def test_targets_are_asked_only_where_somebody_can_judge(judge: str | None, why: str) -> None:
    added = Additions(target_class=["mine:Bot"], judge=judge)
    with pytest.raises(UsageError, match=why):
        targets_of_data(added, named=True)
    assert targets_of_data(added, named=False) == []
    for able in ({"judge": "refusal-phrases"}, {"judge_class": "mine:Judge"}):
        chosen: Any = able
        assert targets_of_data(Additions(target_class=["mine:Bot"], **chosen), named=True) == [
            "Bot"
        ]
