"""Every text of a request is judged, what is no text is refused, and answers have their forms."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.serve.conftest import asking
from tsgb.serve.formats import CATEGORIES, UNSAFE

LITELLM = "/beta/litellm_basic_guardrail_api"
IMAGE = {"type": "image_url", "image_url": {"url": "https://host.test/a.png"}}


def ask(path: str, document: dict[str, Any]) -> Any:
    with asking() as client:
        return client.post(path, json=document)


def test_a_moderation_has_all_categories_and_the_guards_own() -> None:
    [one] = ask("/v1/moderations", {"input": "bad xyzzy"}).json()["results"]
    names = {*CATEGORIES, UNSAFE}
    assert len(names) == 14
    for key in ("categories", "category_scores", "category_applied_input_types"):
        assert one[key].keys() == names
    assert [name for name, found in one["categories"].items() if found] == [UNSAFE]
    assert one["category_scores"].pop(UNSAFE) == 0.5
    assert set(one["category_scores"].values()) == {0.0}
    assert one["category_applied_input_types"][UNSAFE] == ["text"]
    assert (one["tsgb/score"], one["tsgb/out_of_domain"], one["tsgb/unknown_words"]) == (1, True, 1)


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ("fine", [False]),
        ("", [False]),
        (["fine", "bad", ""], [False, True, False]),
        ([{"type": "text", "text": "fine"}, {"type": "text", "text": "bad"}], [True]),
        ([{"type": "text", "text": "fine"}], [False]),
    ],
)
def test_inputs_of_a_moderation(given: Any, flags: list[bool]) -> None:
    results = ask("/v1/moderations", {"input": given}).json()["results"]
    assert [one["flagged"] for one in results] == flags


@pytest.mark.parametrize(
    ("path", "document", "status", "param"),
    [
        ("/v1/moderations", {"input": []}, 400, "input"),
        ("/v1/moderations", {"input": ["a", 1]}, 400, "input[1]"),
        ("/v1/moderations", {"input": 7}, 400, "input"),
        ("/v1/moderations", {"input": [[1]]}, 400, "input[0]"),
        ("/v1/moderations", {"input": "a", "model": 1}, 400, "model"),
        ("/v1/moderations", {"input": [{"type": "text", "text": "a"}, IMAGE]}, 422, "input[1]"),
        (LITELLM, {"texts": "a"}, 400, "texts"),
        (LITELLM, {"texts": ["a"], "input_type": "x"}, 400, "input_type"),
        (LITELLM, {"texts": ["a"], "images": ["data:"]}, 422, "images"),
        (
            LITELLM,
            {"texts": [], "structured_messages": [{"role": "user", "content": [IMAGE]}]},
            422,
            "structured_messages[0].content[0]",
        ),
        ("/v1/checks", {}, 400, "messages"),
        ("/v1/checks", {"messages": []}, 400, "messages"),
        ("/v1/checks", {"messages": ["a"]}, 400, "messages[0]"),
    ],
)
def test_what_is_refused_is_named_by_its_place(
    path: str, document: dict[str, Any], status: int, param: str
) -> None:
    answer = ask(path, document)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    "document",
    [
        {"texts": ["bad", "fine"]},
        {"texts": ["fine", "bad"], "images": None, "tools": None},
        {
            "texts": ["fine"],
            "input_type": "response",
            "tool_calls": [{"function": {"name": "bad"}}],
        },
        {"texts": [], "structured_messages": [{"role": "tool", "content": "bad"}]},
    ],
)
def test_every_text_of_litellm_is_judged(document: dict[str, Any]) -> None:
    found = ask(LITELLM, document).json()
    assert found["action"] == "BLOCKED"
    assert found["blocked_reason"]


def test_litellm_goes_on_with_what_is_safe() -> None:
    assert ask(LITELLM, {"texts": ["fine"], "images": []}).json() == {"action": "NONE"}
    assert ask(LITELLM, {"texts": [], "litellm_call_id": "x"}).json() == {"action": "NONE"}


def test_a_check_of_a_chat() -> None:
    chat = [{"role": "user", "content": "fine"}, {"role": "assistant", "content": "bad"}]
    blocked = ask("/v1/checks", {"messages": chat, "guardrails": {"config_id": "x"}}).json()
    assert (blocked["status"], blocked["rail"]) == ("blocked", "tsgb guard")
    passed = ask("/v1/checks", {"messages": chat[:1], "model": "m"}).json()
    assert passed == {"status": "passed", "content": "fine", "rail": None}
