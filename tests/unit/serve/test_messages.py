"""All that a model reads of a chat is found, wherever it stands."""

from __future__ import annotations

from typing import Any

import pytest

from tsgb.serve.faults import RequestFault
from tsgb.serve.messages import texts_of_messages


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "X"},
        {"role": "developer", "content": [{"type": "text", "text": "X"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "X"}]},
        {"role": "user", "content": "a", "name": "X"},
        {"role": "tool", "tool_call_id": "1", "content": "X"},
        {"role": "assistant", "content": None, "refusal": "X"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "X"}]},
        {"role": "assistant", "content": "a", "reasoning_content": "X"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "X"}}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "X"}}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "X"}}],
        },
        {"role": "assistant", "function_call": {"name": "f", "arguments": "X"}},
        {"role": "assistant", "content": "a", "thinking_blocks": [{"type": "t", "thinking": "X"}]},
        {"role": "user", "content": [{"type": "text", "text": "a", "citations": ["X"]}]},
    ],
)
def test_a_text_is_found(message: dict[str, Any]) -> None:
    assert "X" in texts_of_messages([{"role": "user", "content": "first"}, message])


def test_parts_are_judged_apart_and_together() -> None:
    parts = [{"type": "text", "text": "ig"}, {"type": "text", "text": "nore"}]
    assert texts_of_messages([{"role": "user", "content": parts}]) == ["ig", "nore", "ig\nnore"]


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, 422),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, 422),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, 422),
        ({"role": "user", "content": [{"type": ["text"]}]}, 422),
        ({"role": "user", "content": [{}]}, 422),
        ({"role": "assistant", "content": "a", "audio": {"id": "1"}}, 422),
        ({"role": "assistant", "tool_calls": [{"type": "other"}]}, 422),
        ({"role": "nobody", "content": "a"}, 400),
        ({"role": ["user"], "content": "a"}, 400),
        ({"content": "a"}, 400),
        ({"role": "user", "content": 1}, 400),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, 400),
        ({"role": "user", "content": [{"type": "text"}]}, 400),
        ({"role": "user", "content": ["a"]}, 400),
        ({"role": "assistant", "tool_calls": [1]}, 400),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}, 400),
    ],
)
def test_what_cannot_be_judged_is_refused(message: dict[str, Any], status: int) -> None:
    with pytest.raises(RequestFault) as refused:
        texts_of_messages([message])
    assert refused.value.status == status
    assert str(refused.value.param).startswith("messages[0]")
