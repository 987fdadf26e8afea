"""Every entry of the fault server, through a real socket: outcome, class, and requests."""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.dav_server import self_signed
from tests.fakes.endpoint_server import (
    ANTHROPIC,
    GOOD,
    OPENAI,
    TEXT,
    EndpointServer,
    Fault,
    good_body,
    serving,
    status,
)
from tests.fakes.sentinels import leaks, new_key
from tsgb.errors import UsageError
from tsgb.services import RepeatRules
from tsgb.targets.dialects import post_url
from tsgb.targets.endpoint import EndpointSpec
from tsgb.targets.http import HttpTarget
from tsgb.targets.pacing import RepeatBudget
from tsgb.targets.transport import KeptConnections
from tsgb.types import Message, Outcome, Response

KINDS = (OPENAI, ANTHROPIC, TEXT)
FAST = RepeatRules(first_pause_seconds=0.01, longest_pause_seconds=0.02, longest_wait_seconds=5.0)
ATTEMPTS = 3


def spec_for(server: EndpointServer, kind: str = OPENAI, **values: Any) -> EndpointSpec:
    values = {"timeout_seconds": 20.0, "most_attempts": ATTEMPTS, **values}
    return EndpointSpec.model_validate(
        {"name": "box", "kind": kind, "model": "m", "url": server.url_of(kind), **values}
    )


def chat(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]


def ask(server: EndpointServer, kind: str = OPENAI, **values: Any) -> Response:
    target = HttpTarget(spec_for(server, kind, **values), None, repeats=RepeatBudget(FAST))
    [response] = target.answer([chat("q")])
    target.close()
    return response


@dataclass(frozen=True)
class Case:
    """A fault, and what must come of it."""

    name: str
    faults: Sequence[Fault]
    outcome: Outcome = Outcome.ERROR
    error: str | None = None
    requests: int = 1
    kinds: Sequence[str] = (OPENAI,)
    timeout: float = 20.0
    unknown: int = 0


def choice(message: dict[str, Any], finish: str = "stop") -> Fault:
    return Fault(body={"choices": [{"message": message, "finish_reason": finish}]})


def refused(status_code: int, /, **error: Any) -> Fault:
    return Fault(status=status_code, body={"error": error})


def soon() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


AZURE = {
    "message": "The response was filtered due to the prompt triggering a policy.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
    "innererror": {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
    },
}
ANSWERED, REFUSED, TRUNCATED = Outcome.ANSWERED, Outcome.REFUSED, Outcome.TRUNCATED
CASES = [
    Case("good", [GOOD], ANSWERED, kinds=KINDS),
    # -- asked again
    Case("429-seconds", [status(429, Retry_After="0.05"), GOOD], ANSWERED, None, 2, KINDS),
    Case("429-date", [status(429, Retry_After=soon()), GOOD], ANSWERED, None, 2),
    Case("429-ms", [status(429, retry_after_ms="50", Retry_After="99"), GOOD], ANSWERED, None, 2),
    Case("429-absurd", [status(429, Retry_After="86400")], error="rate_limited"),
    Case("429-far-date", [status(429, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT")],
         error="rate_limited"),
    Case("429-nonsense", [status(429, Retry_After="soon"), GOOD], ANSWERED, None, 2),
    Case("429-for-ever", [status(429)], error="rate_limited", requests=ATTEMPTS, kinds=KINDS),
    Case("529-once", [status(529), GOOD], ANSWERED, None, 2, KINDS),
    Case("529", [status(529)], error="overloaded", requests=ATTEMPTS, kinds=KINDS),
    *(Case(f"{code}", [status(code)], error=f"http_{code}", requests=ATTEMPTS, kinds=KINDS)
      for code in (500, 502, 503)),
    Case("500-once", [status(500), GOOD], ANSWERED, None, 2, KINDS),
    Case("503-loading", [Fault(status=503, body={"error": "loading", "estimated_time": 0.05}),
                         GOOD], ANSWERED, None, 2, (TEXT,)),
    Case("503-html", [Fault(status=503, body="<html>busy</html>")], error="http_503",
         requests=ATTEMPTS),
    Case("should-not-retry", [status(500, x_should_retry="false")], error="http_500"),
    Case("should-retry", [status(400, x_should_retry="true"), GOOD], ANSWERED, None, 2),
    Case("slow-headers", [Fault(header_drip=0.2)], error="timeout", requests=ATTEMPTS,
         timeout=0.3, unknown=ATTEMPTS),
    Case("no-answer", [Fault(delay=float("inf"))], error="timeout", requests=ATTEMPTS,
         timeout=0.2, unknown=ATTEMPTS),
    Case("slow-body", [Fault(body_drip=0.2)], error="timeout", requests=ATTEMPTS, timeout=0.3,
         unknown=ATTEMPTS, kinds=KINDS),
    Case("slow-once", [Fault(body_drip=0.2), GOOD], ANSWERED, None, 2, timeout=0.5, unknown=1),
    Case("cut-body", [Fault(cut=True)], error="cut_body", requests=ATTEMPTS, unknown=ATTEMPTS,
         kinds=KINDS),
    Case("cut-once", [Fault(cut=True), GOOD], ANSWERED, None, 2, unknown=1),
    Case("hang-up", [Fault(hang_up=True)], error="connection", requests=ATTEMPTS,
         unknown=ATTEMPTS),
    # -- not asked again
    *(Case(f"{code}", [status(code)], error=f"http_{code}", kinds=KINDS)
      for code in (400, 403, 404, 413, 422)),
    *(Case(f"redirect-{code}", [Fault(status=code, body="", headers={"Location": "http://host."
      "invalid/v1"})], error="redirect", kinds=KINDS) for code in (301, 302, 307, 308)),
    Case("wrong-json", [Fault(body='{"choices": [')], error="bad_json", kinds=KINDS),
    Case("no-body", [Fault(body="")], error="bad_json", kinds=KINDS),
    Case("deep-json", [Fault(body="[" * 100_000)], error="bad_json", kinds=KINDS),
    Case("other-json", [Fault(body={"hello": 1})], error="wrong_form", kinds=KINDS),
    Case("a-number", [Fault(body="7")], error="wrong_form", kinds=KINDS),
    Case("wrong-types", [Fault(body={"choices": [[3]], "content": 3, "generated_text": 3})],
         error="wrong_form", kinds=(ANTHROPIC, TEXT)),
    Case("wrong-choice", [Fault(body={"choices": [[3]]})], error="no_content"),
    Case("error-in-200", [Fault(body={"error": {"message": "no", "code": "x"}})],
         error="error_in_body", kinds=KINDS),
    Case("empty-choices", [Fault(body={"choices": []})], error="empty_choices"),
    Case("empty-content", [Fault(body={"content": []})], error="empty_choices",
         kinds=(ANTHROPIC,)),
    Case("empty-list", [Fault(body=[])], error="empty_choices", kinds=(TEXT,)),
    Case("null-content", [choice({"content": None})], error="no_content"),
    Case("html", [Fault(body="<!doctype html><p>hello", headers={"Content-Type": "text/html"})],
         error="html", kinds=KINDS),
    Case("bad-utf8", [Fault(body=b'{"choices": [{"message": {"content": "\xff\xfe"}}]}')],
         error="bad_utf8", kinds=KINDS),
    Case("endless", [Fault(endless=True)], error="too_large", kinds=KINDS, unknown=1),
    Case("too-large", [Fault(body=b" " * (9 << 20))], error="too_large", unknown=1),
    # -- refusals, which are answers
    Case("refusal", [choice({"content": None, "refusal": "I will not."})], REFUSED),
    Case("refusal-part", [choice({"content": [{"type": "refusal", "refusal": "No."}]})], REFUSED),
    Case("filter-200", [choice({"content": None}, "content_filter")], REFUSED),
    Case("filter-200-both", [choice({"content": None, "refusal": "No."}, "content_filter")],
         REFUSED),
    Case("filter-200-part", [choice({"content": "half an ans"}, "content_filter")], REFUSED),
    Case("azure", [refused(400, **AZURE)], REFUSED),
    Case("azure-inner", [refused(400, message="m", innererror=AZURE["innererror"])], REFUSED),
    *(Case(f"400-{code}", [refused(400, message="m", code=code)], REFUSED)
      for code in ("invalid_prompt", "content_policy_violation", "content_blocked", "bio_policy",
                   "cyber_policy", "data_inspection_failed")),
    Case("nemo", [refused(400, message="m", type="guardrails_violation", code=None)], REFUSED),
    Case("blocked", [refused(400, message="Output blocked by content filtering policy",
                             type="invalid_request_error")], REFUSED, kinds=(OPENAI, ANTHROPIC)),
    Case("router", [refused(403, message="m", code=403, metadata={"reasons": ["x"]})], REFUSED),
    Case("error-filter-200", [Fault(body={"error": {"code": "content_filter"}})], REFUSED),
    Case("safety", [choice({"content": None}, "SAFETY")], REFUSED),
    Case("stop-refusal", [Fault(body={"content": [], "stop_reason": "refusal", "stop_details":
        {"type": "refusal", "explanation": "No."}})], REFUSED, kinds=(ANTHROPIC,)),
    # -- truncated
    Case("length", [choice({"content": "half"}, "length")], TRUNCATED),
    Case("length-empty", [choice({"content": None}, "length")], TRUNCATED),
    Case("max-tokens", [Fault(body=good_body(ANTHROPIC, "half", "max_tokens"))], TRUNCATED,
         kinds=(ANTHROPIC,)),
    Case("text-length", [Fault(body=good_body(TEXT, "half", "length"))], TRUNCATED, kinds=(TEXT,)),
    # -- odd, and answered
    Case("text-list", [Fault(body=[{"generated_text": "yes"}])], ANSWERED, kinds=(TEXT,)),
    Case("parts", [choice({"content": [{"type": "text", "text": "yes"}]})], ANSWERED),
    Case("empty-answer", [choice({"content": ""})], ANSWERED),
    Case("empty-turn", [Fault(body={"content": [], "stop_reason": "end_turn"})], ANSWERED,
         kinds=(ANTHROPIC,)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "kind"),
    [pytest.param(case, kind, id=f"{case.name}-{kind}") for case in CASES for kind in case.kinds],
)
def test_an_entry_of_the_fault_server(case: Case, kind: str) -> None:
    with serving({"q": case.faults}) as server:
        response = ask(server, kind, timeout_seconds=case.timeout)
    assert (response.outcome, response.error) == (case.outcome, case.error)
    assert server.requests == response.attempts == case.requests
    assert response.billed_unknown == case.unknown


def test_a_refusal_keeps_its_words_and_an_error_its_status() -> None:
    with serving({"q": [choice({"content": None, "refusal": "I will not."})]}) as server:
        assert ask(server).text == "I will not."
    with serving({"q": [status(500)]}) as server:
        response = ask(server)
    assert (response.status, response.detail) == (500, "it failed")


def test_an_answer_of_a_megabyte_and_any_characters_comes_as_it_is() -> None:
    text = "\u202e<b>\x00\x1b[31m" + "é" * (1 << 20) + "\U0001f600"
    with serving({"q": [choice({"content": text})]}) as server:
        assert ask(server).text == text


def test_a_lone_surrogate_is_sent_and_stored_escaped() -> None:
    with serving({"q": [choice({"content": "a\ud800"})]}) as server:
        assert ask(server).text == "a\\ud800"
        target = HttpTarget(spec_for(server), None)
        [response] = target.answer([chat("x\ud800")])
        target.close()
    assert response.outcome is Outcome.ANSWERED
    assert server.bodies[-1]["messages"][-1]["content"] == "x\ud800"


def test_a_thought_is_left_out() -> None:
    with serving({"q": [choice({"content": "<think>hm</think>\nyes"})]}) as server:
        response = ask(server)
    assert (response.text, response.thought) == ("yes", True)


def test_nobody_listens() -> None:
    with serving() as server:
        pass
    response = ask(server)
    assert (response.error, response.attempts) == ("connection", ATTEMPTS)
    assert response.billed_unknown == 0  # nothing was sent


def test_only_a_certificate_that_is_believed_is_answered(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    with serving(tls=tls) as server:
        spec = spec_for(server, url=server.openai.replace("http:", "https:"))
        [response] = HttpTarget(spec, None, repeats=RepeatBudget(FAST)).answer([chat("q")])
        assert (response.error, response.attempts) == ("tls", 1)
        assert "certificate" in response.detail
        believed = ssl.create_default_context(cafile=certificate)
        target = HttpTarget(spec, None, transport=KeptConnections(post_url(spec), context=believed))
        for _ in range(2):
            answers = target.answer([chat("q")] * 8)
            assert {r.outcome for r in answers} == {Outcome.ANSWERED}
        target.close()
    assert server.requests == 16


# -- the key ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_reaches_the_endpoint_and_nothing_else(kind: str) -> None:
    """Not even where the endpoint sends it back."""
    key = new_key()
    echo = [Fault(body=good_body(kind, f"you sent {key}"))]
    failing = [Fault(status=400, body={"error": {"message": f"bad {key}"}})]
    with serving({"echo": echo, "failing": failing}, key=key) as server:
        target = HttpTarget(
            spec_for(server, kind, key_variable="BOX_KEY", concurrency=1), SecretStr(key)
        )
        responses = target.answer([chat("echo"), chat("failing")])
        assert [r.text for r in responses] == ["you sent ***", ""]
        assert responses[1].detail == "bad ***"
        shown = f"{responses} {target!r} {vars(target)} {target.identity} {target.spec!r}"
        target.close()
    assert not leaks(shown)
    assert server.requests == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_key_stops_at_once_with_one_line(kind: str) -> None:
    wrong = new_key()
    with serving(key="right") as server:
        spec = spec_for(server, kind, key_variable="BOX_KEY")
        target = HttpTarget(spec, SecretStr(wrong))
        with pytest.raises(UsageError, match="refuses the key of BOX_KEY") as error:
            target.answer([chat(f"q{i}") for i in range(400)])
        target.close()
    assert server.requests <= spec.concurrency
    assert "\n" not in str(error.value)
    assert not leaks(str(error.value))


def test_without_a_key_the_line_says_which_variable() -> None:
    with serving(key="right") as server:
        target = HttpTarget(spec_for(server), None)
        with pytest.raises(UsageError, match=r"was sent none \(HTTP 401\): set OPENAI_API_KEY"):
            target.answer([chat("q")])


@pytest.mark.parametrize(
    "fault",
    [
        status(429, {"error": {"message": "m", "code": "insufficient_quota"}}),
        status(402, {"error": {"message": "m"}}),
        status(400, {"error": {"message": "Your credit balance is too low to access",
                               "type": "invalid_request_error"}}),
    ],
    ids=["quota", "402", "credit"],
)  # fmt: skip
def test_without_money_it_stops_and_hands_out_what_came(fault: Fault) -> None:
    with serving({"q": [fault]}) as server:
        target = HttpTarget(spec_for(server, concurrency=1), None)
        came: list[int] = []
        asking = target.answer_each([chat("a"), chat("b"), chat("q"), chat("c")])
        with pytest.raises(UsageError, match="no money left"):
            came.extend(index for index, _ in asking)
    assert came == [0, 1]
    assert server.asked["c"] == 0


# -- what is sent -------------------------------------------------------------------------------


SYSTEM: list[Message] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "q"},
]


def test_the_request_of_each_interface() -> None:
    values: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 9}
    sent: dict[str, tuple[str, dict[str, Any]]] = {}
    with serving() as server:
        for kind in KINDS:
            seed = {} if kind == ANTHROPIC else {"seed": 4}
            target = HttpTarget(spec_for(server, kind, **values, **seed), None)
            target.answer([SYSTEM])
            target.close()
            sent[kind] = server.paths[-1], server.bodies[-1]
    assert sent[OPENAI] == (
        "/v1/chat/completions",
        {"model": "m", "messages": SYSTEM, **values, "seed": 4},
    )
    assert sent[ANTHROPIC] == (
        "/v1/messages",
        {"model": "m", "messages": SYSTEM[1:], "system": "be kind", **values},
    )
    assert sent[TEXT] == (
        "/generate",
        {
            "inputs": "be kind\n\nq",
            "parameters": {
                "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 4,
                "do_sample": True, "return_full_text": False, "details": True,
            },
        },
    )  # fmt: skip
    assert all(len(h["x-client-request-id"]) > 20 for h in server.headers)
    assert len({h["x-client-request-id"] for h in server.headers}) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "url", "posted"),
    [
        ("openai", "", "https://api.openai.com/v1/chat/completions"),
        ("openai", "https://h/a/chat/completions", "https://h/a/chat/completions"),
        ("anthropic", "", "https://api.anthropic.com/v1/messages"),
        ("anthropic", "https://h/v1", "https://h/v1/messages"),
        ("anthropic", "https://h/v1/messages", "https://h/v1/messages"),
        ("huggingface", "", "https://router.huggingface.co/hf-inference/models/org/m"),
        ("huggingface", "https://h", "https://h/generate"),
        ("huggingface", "https://h/generate", "https://h/generate"),
        ("huggingface", "https://h/models/org/m", "https://h/models/org/m"),
    ],
)
def test_the_address_that_is_posted_to(kind: str, url: str, posted: str) -> None:
    values = {"name": "a", "kind": kind, "model": "org/m", "url": url}
    assert post_url(EndpointSpec.model_validate(values)) == posted


def test_connections_are_kept_and_a_closed_one_is_replaced() -> None:
    with serving() as server:
        sender = KeptConnections(f"{server.openai}/chat/completions")
        body = json.dumps({"messages": chat("q")}).encode()
        for _ in range(3):
            assert sender.post(body, {}, 20.0).status == 200
        assert server.connections == 1
        port = server.port
        sender.close()
        sender.post(body, {}, 20.0)
        assert server.connections == 2
        assert port == server.port
