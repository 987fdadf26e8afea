"""Only text that was judged as part of all before it is released, however a stream is split."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.serve.holdback import CHECK_CHARACTERS, Holdback
from tsgb.serve.sse import StreamError

PATHS = ("content", "refusal", "tool_calls", "thinking")


def delta_of(path: str, text: str) -> dict[str, Any]:
    if path == "tool_calls":
        call = {"index": 1, "id": "c", "type": "function", "function": {"arguments": text}}
        return {"tool_calls": [call]}
    return {path: text} if path != "thinking" else {"thinking": {"steps": [text]}}


def text_of(path: str, delta: dict[str, Any]) -> str:
    if path == "tool_calls":
        return delta.get("tool_calls", [{"function": {"arguments": ""}}])[0]["function"][
            "arguments"
        ]
    found = delta.get(path, "")
    return found if isinstance(found, str) else found["steps"][0]


pieces = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(PATHS), st.text("bad ", max_size=300)),
    max_size=30,
)


class Stream:
    """A stream through a holdback, until something in it is judged unsafe."""

    def __init__(self) -> None:
        self.held = Holdback()
        self.whole: dict[tuple[int, str], str] = defaultdict(str)
        self.out: dict[tuple[int, str], str] = defaultdict(str)
        self.safe: set[str] = {""}
        self.blocked = False

    def add(self, index: int, path: str, text: str, *, now: bool) -> None:
        if self.blocked:
            return
        self.whole[index, path] += text
        self.held.add({"id": "x", "choices": [{"index": index, "delta": delta_of(path, text)}]})
        if self.held.is_due or now:
            self.check()

    def check(self) -> None:
        texts = self.held.texts()
        self.blocked = self.blocked or any("bad" in text for text in texts)
        if self.blocked:
            return
        self.safe.update(texts)
        for choice in (choice for chunk in self.held.release() for choice in chunk["choices"]):
            for path in PATHS:
                self.out[choice["index"], path] += text_of(path, choice["delta"])


@given(pieces=pieces, checks=st.sets(st.integers(0, 29)))
def test_what_is_released_is_a_prefix_of_judged_safe_text(
    pieces: list[tuple[int, str, str]], checks: set[int]
) -> None:
    """Checks come when they are due, and at any other moment."""
    stream = Stream()
    for number, piece in enumerate(pieces):
        stream.add(*piece, now=number in checks)
    stream.check()
    for key, text in stream.out.items():
        assert stream.whole[key].startswith(text)
        assert any(judged.startswith(text) for judged in stream.safe)
    assert stream.blocked == any("bad" in text for text in stream.whole.values())
    if not stream.blocked:
        assert all(stream.out[key] == text for key, text in stream.whole.items())


def chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}], **more}


def test_checks_grow_rarer_as_an_answer_grows() -> None:
    held, judged, texts = Holdback(), 0, 0
    for _ in range(20_000):
        held.add(chunk("word "))
        texts += 5
        if held.is_due:
            judged += sum(map(len, held.texts()))
            held.release()
    assert judged <= 6 * texts
    assert held.texts() == [] or len(held.texts()[0]) <= texts


def test_a_chunk_leaves_with_known_fields_only() -> None:
    held = Holdback()
    held.add({**chunk("a", usage=None, sneaky="b"), "choices": []})
    one = {"index": 0, "delta": {"content": "c"}, "logprobs": {"content": []}}
    held.add({"id": "x", "choices": [one]})
    first, second = held.release()
    assert first == {"id": "x", "model": "m", "usage": None, "choices": []}
    assert second["choices"] == [one | {"logprobs": None}]


def test_choices_that_have_not_ended() -> None:
    held = Holdback()
    assert held.unfinished() == [0]
    for index, end in ((0, None), (1, None), (1, "stop")):
        held.add({"choices": [{"index": index, "delta": {}, "finish_reason": end}]})
    held.release()
    held.add({"choices": [{"index": 2, "delta": {}}]})
    assert held.unfinished() == [0, 2]


@pytest.mark.parametrize(
    "bad", [{}, {"choices": None}, {"choices": [1]}, {"choices": [{"delta": {}}]}]
)
def test_what_is_no_chunk(bad: dict[str, Any]) -> None:
    with pytest.raises(StreamError):
        Holdback().add(bad)


def test_an_answer_is_bounded() -> None:
    held = Holdback()
    for _ in range(10):
        held.add(chunk("x" * (1 << 20)))
        held.release()
    with pytest.raises(StreamError, match="too long"):
        held.add(chunk("x"))


def test_little_text_waits_for_more() -> None:
    held = Holdback()
    assert not held.is_waiting
    held.add(chunk("x" * (CHECK_CHARACTERS - 1)))
    assert held.is_waiting
    assert not held.is_due
    held.add(chunk("x"))
    assert held.is_due
