"""Who may ask, what is refused with which answer, and that no answer or log repeats a text."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.sentinels import CORE, leaks, sentinel
from tests.fakes.word_guard import WordGuard, guard_file
from tests.unit.serve.conftest import asking
from tsgb.export.record import SelfTest

TOKEN, TEXT = sentinel("serve"), f"bad {CORE}"
MODERATIONS = "/v1/moderations"
JSON = {"content-type": "application/json"}


def code_of(answer: Any) -> tuple[int, str]:
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in answer.json()["error"]["message"]
    return answer.status_code, answer.json()["error"]["code"]


def test_a_verdict_and_its_headers() -> None:
    with asking() as client:
        answer = client.post(MODERATIONS, json={"input": "so bad", "model": "any"})
        assert (answer.status_code, answer.json()["results"][0]["flagged"]) == (200, True)
        assert answer.headers["x-tsgb-guard"] == answer.json()["model"] == "tsgb-0123456789ab"
        assert answer.json()["id"] == f"modr-{answer.headers['x-tsgb-request-id']}"
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200
        counted = client.get("/metrics").text
    assert 'tsgb_requests_total{outcome="unsafe",route="moderations"} 1.0' in counted
    assert 'tsgb_blocks_total{route="moderations",stage="input"} 1.0' in counted
    assert 'tsgb_score_bucket{le="1.0"} 1.0' in counted
    assert "tsgb_queue_depth 0.0" in counted
    assert "tsgb_score_drift NaN" in counted, "this export has no deciles"


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"{", {}, (400, "invalid_json")),
        (b"[1]", {}, (400, "invalid_json")),
        (b'{"input": "\xff"}', {}, (400, "invalid_json")),
        (b'{"input": "\\ud800"}', {}, (400, "invalid_json")),
        (b'{"\\uDC00": 1}', {}, (400, "invalid_json")),
        (b"[" * 5000 + b"]" * 5000, {}, (400, "invalid_json")),
        (b"{}", {}, (400, "invalid_request")),
        (b'{"input": "x"}', {"content-type": "text/plain"}, (415, "unsupported_media_type")),
        (
            b'{"input": "x"}',
            {"content-type": "application/json; charset=utf-16"},
            (415, "unsupported_media_type"),
        ),
        (b'{"input": "x"}', {"content-encoding": "gzip"}, (415, "unsupported_media_type")),
        (b'{"input": "%s"}' % (b"x" * 3000), {}, (413, "request_too_large")),
    ],
)
def test_bodies_that_are_refused(
    content: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    with asking(max_body_bytes=2000 if len(content) < 4000 else 20_000) as client:
        answer = client.post(MODERATIONS, content=content, headers={**JSON, **headers})
        assert code_of(answer) == expected
        chunks = [content[:1], content[1:]]  # without a content-length
        answer = client.post(MODERATIONS, content=iter(chunks), headers={**JSON, **headers})
        assert code_of(answer) == expected


def test_a_pair_of_surrogates_is_one_letter() -> None:
    with asking() as client:
        body = b'{"input": "\\ud83d\\ude00 bad"}'
        assert client.post(MODERATIONS, content=body, headers=JSON).json()["results"][0]["flagged"]


def test_what_is_not_served() -> None:
    with asking() as client:
        assert code_of(client.get("/v1/models")) == (404, "not_found")
        assert code_of(client.get(MODERATIONS)) == (405, "method_not_allowed")


def test_a_token_is_asked_for() -> None:
    good = {"authorization": f"Bearer {TOKEN}"}, {"x-api-key": TOKEN}
    bad = {}, {"authorization": TOKEN}, {"authorization": "Bearer x"}, {"x-api-key": f"{TOKEN}x"}
    with asking(token=TOKEN) as client:
        for path, send in ((MODERATIONS, client.post), ("/metrics", client.get)):
            body: dict[str, Any] = {"json": {"input": "x"}} if path == MODERATIONS else {}
            for headers in good:
                assert send(path, headers=headers, **body).status_code == 200
                elsewhere = {**headers, "host": "guard.example.org"}
                assert send(path, headers=elsewhere, **body).status_code == 200
            for headers in bad:
                assert code_of(send(path, headers=headers, **body)) == (401, "invalid_api_key")
        assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200


def test_a_page_that_was_led_here_by_a_name_is_refused() -> None:
    with asking() as client:
        named = client.post(MODERATIONS, json={"input": "x"}, headers={"host": "evil.example:8100"})
        assert code_of(named) == (403, "wrong_host")
        for host in ("localhost:8100", "127.0.0.1", "[::1]:8100"):
            asked = client.post(MODERATIONS, json={"input": "x"}, headers={"host": host})
            assert asked.status_code == 200


@pytest.mark.parametrize("score", [None, 1.00011])
def test_a_guard_that_is_not_the_exported_one_judges_nothing(score: float | None) -> None:
    tests = [] if score is None else [SelfTest(prompt="bad", score=score, tolerance=0.01)]
    with asking(WordGuard(about=guard_file(tests))) as client:
        assert client.get("/readyz").status_code == 503
        assert "self-test" in client.get("/readyz").json()["reason"]
        assert client.get("/healthz").status_code == 200
        answer = client.post(MODERATIONS, json={"input": "x"})
        assert code_of(answer) == (503, "not_ready")


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    return thread, found


def test_a_full_queue() -> None:
    guard = WordGuard()
    with asking(guard, queue=1) as client:
        with guard.hangs:
            before = guard.begun
            thread, found = in_thread(lambda: client.post(MODERATIONS, json={"input": "x"}))
            while guard.begun == before:
                time.sleep(0.001)
            answer = client.post(MODERATIONS, json={"input": "y"})
        thread.join()
        assert code_of(answer) == (503, "queue_full")
        assert answer.headers["retry-after"] == "1"
        assert found[0].status_code == 200
        assert client.post(MODERATIONS, json={"input": "z"}).status_code == 200


def test_a_deadline() -> None:
    guard = WordGuard()
    with asking(guard, queue=1, deadline_seconds=0.2) as client:
        with guard.hangs:
            answer = client.post(MODERATIONS, json={"input": "x"})
        assert code_of(answer) == (504, "deadline_exceeded")
        counted = client.get("/metrics").text
    assert 'tsgb_guard_errors_total{class="guard_timeout"} 1.0' in counted
    assert 'tsgb_requests_total{outcome="deadline_exceeded",route="moderations"} 1.0' in counted


def test_nothing_repeats_a_text_or_a_token(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever goes wrong with them."""
    said = ""
    headers = {**JSON, "authorization": f"Bearer {TOKEN}"}
    with asking(token=TOKEN, max_body_bytes=5000) as client:
        for content in (
            json.dumps({"input": TEXT}),
            json.dumps({"input": f"raise {TEXT}"}),
            json.dumps({"input": [{"type": TEXT, "text": TEXT}]}),
            json.dumps({"input": {TEXT: TEXT}}),
            json.dumps({"input": TEXT, "model": {TEXT: 1}}),
            json.dumps({"messages": [{"role": TEXT, "content": TEXT}]}),
            json.dumps({"messages": [{"role": "user", "content": [{"type": TEXT}]}]}),
            json.dumps({"input": TEXT * 500}),
            f'{{"input": "{TEXT}',
        ):
            for path in (MODERATIONS, "/v1/checks", "/beta/litellm_basic_guardrail_api"):
                answer = client.post(f"{path}?q={CORE}", content=content, headers=headers)
                said += answer.text + str(answer.headers)
        for path in (f"/{CORE}", f"/v1/moderations/{CORE}"):
            said += client.post(path, content=TEXT, headers={"x-api-key": CORE}).text
        answer = client.post(MODERATIONS, json={}, headers={"authorization": f"Bearer {CORE}"})
        said += answer.text + client.get("/metrics", headers=headers).text
    caught = capfd.readouterr()
    assert 'class="guard_error"' in said
    assert "the guard raised ValueError" in caught.err
    assert not leaks(said)
    assert not leaks(caught.out + caught.err)
