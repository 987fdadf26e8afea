"""Chats go to one service and back through the guard, in the forms that clients understand."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from tests.fakes.endpoint_server import EndpointServer, Fault, serving, status
from tests.fakes.sentinels import CORE, leaks, sentinel
from tests.fakes.word_guard import WordGuard, guard_file
from tests.unit.serve.conftest import HERE
from tsgb.serve.app import GuardService, ServiceLimits
from tsgb.serve.audit import AuditLog
from tsgb.serve.feedback import FeedbackFile
from tsgb.serve.proxy import REFUSAL, BlockStyle, FaultClass, ProxyMode, ProxyOptions
from tsgb.serve.sse import event
from tsgb.serve.upstream import Upstream

KEY = sentinel("upstream")
CHATS = "/v1/chat/completions"
SLOW = {"error": {"message": "slow down", "code": "rate", "type": "t"}}
SSE = {"content-type": "text/event-stream"}


class Proxied:
    """A proxy, and the service behind it."""

    def __init__(self, client: TestClient, behind: EndpointServer, guard: WordGuard) -> None:
        self.client, self.behind, self.guard = client, behind, guard

    def ask(self, text: Any = "fine", **more: Any) -> httpx.Response:
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]
        return self.client.post(CHATS, json={"model": "m", "messages": messages, **more})

    def counted(self, line: str) -> bool:
        return f"{line} 1.0" in self.client.get("/metrics").text


@contextmanager
def proxied(
    plan: Mapping[str, list[Fault]] | None = None,
    *,
    guard: WordGuard | None = None,
    key: str | None = None,
    audit: AuditLog | None = None,
    feedback: FeedbackFile | None = None,
    **options: Any,
) -> Generator[Proxied]:
    with serving(plan, key=key) as behind:
        upstream = Upstream(behind.openai, key=SecretStr(KEY), timeout_seconds=20)
        service = GuardService(
            guard or (guard := WordGuard()),
            limits=ServiceLimits(queue=32),
            upstream=upstream,
            proxy=ProxyOptions(**options),
            audit=audit,
            feedback=feedback,
        )
        with TestClient(service.app(), base_url=HERE, raise_server_exceptions=False) as client:
            yield Proxied(client, behind, guard)


def answer(*texts: str, **message: Any) -> Fault:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text, **message},
            "finish_reason": "stop",
            "logprobs": None,
        }
        for i, text in enumerate(texts)
    ]
    return Fault(body={"id": "c1", "object": "chat.completion", "choices": choices})


def stream(*texts: str, end: str = "data: [DONE]\n\n", cut: bytes = b"", **fault: Any) -> Fault:
    about = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = [{"role": "assistant"}, *({"content": text} for text in texts)]
    chunks = [{**about, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    if end:
        chunks.append({**about, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = b"".join(event(chunk) for chunk in chunks) + end.encode() + cut
    return Fault(body=body, headers=SSE, **fault)


def events_of(answered: httpx.Response) -> list[Any]:
    assert answered.headers["content-type"].startswith("text/event-stream")
    data = [part.removeprefix("data: ") for part in answered.text.split("\n\n") if part]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def text_of(events: list[Any]) -> str:
    deltas = [c["delta"] for e in events if "choices" in e for c in e["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


def test_a_safe_chat_is_answered_by_the_service() -> None:
    with proxied({"fine": [answer("well")]}, key=KEY) as proxy:
        found = proxy.ask(temperature=0.5)
        assert found.json()["choices"][0]["message"]["content"] == "well"
        assert found.headers["x-tsgb-verdict"] == "safe"
        [body], [headers] = proxy.behind.bodies, proxy.behind.headers
        assert body["temperature"] == 0.5
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["accept-encoding"] == "identity"
        assert proxy.behind.paths == [CHATS]
        assert proxy.counted('tsgb_requests_total{outcome="safe",route="chat"}')


def test_the_client_shows_the_service_nothing_but_its_chat() -> None:
    with proxied({"fine": [answer("well")]}) as proxy:
        messages = [{"role": "user", "content": "fine"}]
        sent = b'{"messages": [], "messages": %s}' % json.dumps(messages).encode()
        headers = {"content-type": "application/json", "authorization": "Bearer x", "x-own": "y"}
        assert proxy.client.post(CHATS, content=sent, headers=headers).status_code == 200
        assert proxy.behind.bodies == [{"messages": messages}], "it is sent as it was judged"
        assert "x-own" not in proxy.behind.headers[0]
        assert proxy.behind.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "bad"}],
        [{"role": "system", "content": "bad"}, {"role": "user", "content": "fine"}],
        [{"role": "user", "content": "fine"}, {"role": "tool", "content": "bad"}],
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("fine", "bad")]}],
    ],
)
def test_an_unsafe_chat_never_reaches_the_service(messages: list[dict[str, Any]]) -> None:
    with proxied() as proxy:
        for more in ({}, {"n": 2}):
            found = proxy.client.post(CHATS, json={"model": "m", "messages": messages, **more})
            document = found.json()
            assert (found.status_code, document["object"]) == (200, "chat.completion")
            assert len(document["choices"]) == more.get("n", 1)
            for choice in document["choices"]:
                assert choice["finish_reason"] == "content_filter"
                refused = {"role": "assistant", "content": None, "refusal": REFUSAL}
                assert choice["message"] == refused
            assert found.headers["x-tsgb-verdict"] == "unsafe"
        assert proxy.behind.requests == 0
        blocks = 'tsgb_blocks_total{route="chat",stage="input"} 2.0'
        assert blocks in proxy.client.get("/metrics").text


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({"prediction": {"type": "content", "content": "bad"}}, "unsafe"),
        ({"documents": [{"title": "fine", "text": "bad"}]}, "unsafe"),
        ({"chat_template": "bad"}, "unsafe"),
        ({"user": "bad", "temperature": 1, "stop": ["bad"]}, "safe"),
    ],
)
def test_texts_beside_the_messages(more: dict[str, Any], verdict: str) -> None:
    """A service may put them before its model, whatever fields it knows."""
    with proxied() as proxy:
        assert proxy.ask(**more).headers["x-tsgb-verdict"] == verdict


@pytest.mark.parametrize("streamed", [False, True])
def test_a_block_as_an_error(streamed: bool) -> None:
    with proxied(on_block=BlockStyle.ERROR) as proxy:
        found = proxy.ask("bad", stream=streamed)
        error = found.json()["error"]
        assert (found.status_code, error["code"]) == (400, "invalid_prompt")
        assert error["type"] == "guardrails_violation"
        assert found.headers["x-should-retry"] == "false"
        assert proxy.behind.requests == 0


def test_a_block_of_a_stream() -> None:
    with proxied() as proxy:
        [chunk, end] = events_of(proxy.ask("bad", stream=True))
    assert (chunk["object"], end) == ("chat.completion.chunk", "[DONE]")
    [choice] = chunk["choices"]
    assert (choice["delta"]["refusal"], choice["finish_reason"]) == (REFUSAL, "content_filter")


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        (answer("well", "so bad", "good"), [True, False, True]),
        (answer("well", reasoning_content="bad"), [False]),
        (answer("", tool_calls=[{"function": {"name": "f", "arguments": "bad"}}]), [False]),
        (answer("well", thinking_blocks=[{"thinking": "bad"}]), [False]),
    ],
)
def test_unsafe_answers_are_replaced(reply: Fault, kept: list[bool]) -> None:
    with proxied({"fine": [reply]}) as proxy:
        choices = proxy.ask().json()["choices"]
    assert [choice["finish_reason"] == "stop" for choice in choices] == kept
    assert all("bad" not in json.dumps(choice) for choice in choices)
    with proxied({"fine": [reply]}, on_block=BlockStyle.ERROR) as proxy:
        assert proxy.ask().json()["error"]["code"] == "invalid_prompt"
    with proxied({"fine": [reply]}, input_only=True) as proxy:
        assert proxy.ask().json() == reply.body


def test_a_stream_that_is_safe_arrives_whole() -> None:
    texts = [f"word {i} " for i in range(600)]
    with proxied({"fine": [stream(*texts)]}) as proxy:
        found = proxy.ask(stream=True)
        events = events_of(found)
        assert text_of(events) == "".join(texts)
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        checks = [b for batch in proxy.guard.batches for b in batch if b.startswith("word")]
        assert 1 < len(checks) < 12
        assert checks[-1] == "".join(texts), "the whole answer was judged"


@pytest.mark.parametrize("style", list(BlockStyle))
def test_a_stream_that_turns_unsafe_ends_before(style: BlockStyle) -> None:
    texts = [*["fine "] * 300, "b", "ad", *[" more"] * 10]
    with proxied({"fine": [stream(*texts)]}, on_block=style) as proxy:
        events = events_of(proxy.ask(stream=True))
    released = text_of(events)
    assert released
    assert ("fine " * 300).startswith(released)
    assert events[-1] == "[DONE]"
    if style is BlockStyle.REFUSAL:
        assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
        assert events[-2]["id"] == "c1"
    else:
        assert events[-2]["error"]["code"] == "invalid_prompt"


def test_a_stream_that_begins_unsafe_is_a_block_like_any_other() -> None:
    for style, code in ((BlockStyle.ERROR, 400), (BlockStyle.REFUSAL, 200)):
        reply = Fault(
            body=event({"choices": [{"index": 0, "delta": {"content": "bad"}}]}) + event("[DONE]"),
            headers=SSE,
        )
        with proxied({"fine": [reply]}, on_block=style) as proxy:
            assert proxy.ask(stream=True).status_code == code


@pytest.mark.parametrize(
    "reply",
    [
        stream("fine", end=""),
        stream("fine", end="data: {broken\n\n"),
        stream("fine", end='data: {"error": {"message": "secret"}}\n\n'),
        stream("fine", end='data: {"choices": 1}\n\n'),
        stream("fine", end="", cut=b"data: \xff\n\n"),
    ],
)
def test_a_stream_that_breaks_off_says_so(reply: Fault) -> None:
    with proxied({"fine": [reply]}) as proxy:
        found = proxy.ask(stream=True)
        events = events_of(found)
    assert events[-1]["error"]["code"] == "upstream_stream_failed"
    assert "secret" not in found.text


@pytest.mark.parametrize(
    ("more", "status_code", "param"),
    [
        ({"logprobs": True}, 422, "logprobs"),
        ({"top_logprobs": 3}, 422, "logprobs"),
        ({"modalities": ["text", "audio"]}, 422, "modalities"),
        ({"n": 0}, 400, "n"),
        ({"n": "2"}, 400, "n"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
            422,
            "messages[0].content[0]",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(
    more: dict[str, Any], status_code: int, param: str
) -> None:
    with proxied() as proxy:
        found = proxy.ask(**more)
        assert (found.status_code, found.json()["error"]["param"]) == (status_code, param)
        assert proxy.behind.requests == 0


@pytest.mark.parametrize(
    ("reply", "status_code", "code"),
    [
        (status(429, SLOW, retry_after="7"), 429, "rate"),
        (status(400, {"error": {"message": "no", "code": "too_long"}}), 400, "too_long"),
        (status(500), 500, "upstream_error"),
        (status(503, "<html>"), 503, "upstream_error"),
        (status(401, {"error": {"message": f"wrong key {KEY}"}}), 502, "upstream_request_failed"),
        (status(302, "", location="http://127.0.0.1:1/"), 502, "upstream_request_failed"),
        (Fault(body="no json"), 502, "upstream_request_failed"),
        (Fault(body=[1]), 502, "upstream_request_failed"),
        (Fault(body={"choices": [{}]}), 502, "upstream_request_failed"),
        (Fault(hang_up=True), 502, "upstream_request_failed"),
        (Fault(body="x" * 100, cut=True), 502, "upstream_request_failed"),
        (Fault(endless=True), 502, "upstream_request_failed"),
    ],
)
def test_errors_of_the_service(reply: Fault, status_code: int, code: str) -> None:
    with proxied({"fine": [reply]}) as proxy:
        found = proxy.ask()
        assert (found.status_code, found.json()["error"]["code"]) == (status_code, code)
        assert not leaks(found.text)
        if status_code == 429:
            assert found.headers["retry-after"] == "7"
            assert found.json()["error"]["message"] == "slow down"
        assert proxy.behind.requests == 1, "the client decides whether to ask again"


def test_a_check_that_fails_ends_the_chat_or_not_by_its_class() -> None:
    with proxied() as proxy:
        found = proxy.ask("raise")
        assert (found.status_code, found.json()["error"]["code"]) == (
            502,
            "guardrails_input_check_failed",
        )
        assert found.headers["x-should-retry"] == "false"
        assert proxy.behind.requests == 0
    opened = frozenset({FaultClass.GUARD_ERROR})
    with proxied({"raise": [answer("well")]}, fail_open=opened) as proxy:
        found = proxy.ask("raise")
        assert found.status_code == 200
        assert found.headers["x-tsgb-fail-open"] == "guard_error"
        assert found.headers["x-tsgb-verdict"] == "unchecked"
        assert proxy.counted('tsgb_fail_open_total{class="guard_error"}')
        messages = [{"role": "user", "content": text} for text in ("raise", "bad")]
        both = proxy.client.post(CHATS, json={"messages": messages})
        assert both.headers["x-tsgb-verdict"] == "unsafe", "an unsafe verdict is never overridden"
        assert proxy.behind.requests == 1


def test_checks_that_take_too_long() -> None:
    guard = WordGuard()
    with proxied(guard=guard, check_seconds=0.2) as proxy, guard.hangs:
        found = proxy.ask()
        assert (found.status_code, found.json()["error"]["code"]) == (
            502,
            "guardrails_input_check_failed",
        )
    guard = WordGuard()
    opened = frozenset({FaultClass.GUARD_TIMEOUT})
    with proxied(guard=guard, check_seconds=0.2, fail_open=opened) as proxy, guard.hangs:
        assert proxy.ask().headers["x-tsgb-fail-open"] == "guard_timeout"


def test_parts_that_cannot_be_judged_pass_only_where_that_is_wanted() -> None:
    opened = frozenset({FaultClass.UNSUPPORTED_CONTENT})
    image = {"role": "assistant", "audio": {"id": "1"}, "content": "a"}
    with proxied(fail_open=opened) as proxy:
        for text, verdict in (("fine", "unchecked"), ("bad", "unsafe")):
            body = {"messages": [image, {"role": "user", "content": text}]}
            found = proxy.client.post(CHATS, json=body)
            assert found.headers["x-tsgb-verdict"] == verdict
        assert proxy.behind.requests == 1


def test_an_answer_that_cannot_be_judged() -> None:
    reply = answer("well", audio={"id": "1"})
    with proxied({"fine": [reply]}) as proxy:
        assert proxy.ask().json()["error"]["code"] == "guardrails_output_check_failed"
    with proxied({"fine": [stream("fine ", "raise")]}) as proxy:
        found = proxy.ask(stream=True)
        assert events_of(found)[-1]["error"]["code"] == "guardrails_output_check_failed"


@pytest.mark.parametrize("mode", [ProxyMode.SHADOW, ProxyMode.OFF])
@pytest.mark.parametrize("streamed", [False, True])
def test_modes_that_change_nothing(mode: ProxyMode, streamed: bool) -> None:
    reply = stream("b", "ad") if streamed else answer("bad", audio={"id": "1"})
    guard = WordGuard(about=guard_file([]))  # not ready, which stops nobody here
    with proxied({"bad": [reply]}, guard=guard, mode=mode) as proxy:
        found = proxy.ask("bad", stream=streamed, logprobs=True)
        assert found.status_code == 200
        if streamed:
            assert isinstance(reply.body, bytes)
            assert found.content == reply.body
        else:
            assert found.json() == reply.body
    said = [text for batch in guard.batches for text in batch]
    judged = {ProxyMode.SHADOW: ["be kind", "bad", "bad"], ProxyMode.OFF: []}[mode]
    assert sorted(said) == sorted(judged)


def test_what_shadow_mode_would_block_is_kept_for_review(tmp_path: Path) -> None:
    """Both files tell of one request; its audit holds no text."""
    log = AuditLog(tmp_path / "audit", guard="g", threshold=0.5)
    kept = FeedbackFile(tmp_path / "feedback.jsonl")
    plan = {"so bad": [answer("bad too")]}
    with proxied(plan, mode=ProxyMode.SHADOW, audit=log, feedback=kept) as proxy:
        request_id = proxy.ask("so bad").headers["x-tsgb-request-id"]
    [row] = [json.loads(line) for line in (tmp_path / "feedback.jsonl").open()]
    assert (row["prompt"], row["label"], row["source"]) == ("so bad", None, "shadow")
    lines = [json.loads(line) for line in (tmp_path / "audit").open()]
    found = [(one["route"], one["stage"], one["verdict"]) for one in lines]
    assert sorted(found) == [
        ("chat", "input", "safe"),
        ("chat", "input", "unsafe"),
        ("chat", "output", "unsafe"),
    ]
    assert {one["request"] for one in lines} == {request_id}
    written = (tmp_path / "audit").read_text()
    # Whole texts: the word alone may stand in a hash.
    assert "so bad" not in written
    assert "bad too" not in written


def test_nothing_repeats_a_text_or_a_key(capfd: pytest.CaptureFixture[str]) -> None:
    said = ""
    plan = {f"fine {CORE}": [answer(f"bad {CORE}"), stream(f"raise {CORE}"), status(418, "x")]}
    with proxied(plan) as proxy:
        for text in (f"fine {CORE}", f"bad {CORE}", f"raise {CORE}"):
            for streamed in (False, True, False):
                found = proxy.ask(text, stream=streamed)
                said += found.text + str(found.headers)
        said += proxy.client.get("/metrics").text
    caught = capfd.readouterr()
    assert not leaks(said)
    assert not leaks(caught.out + caught.err)
