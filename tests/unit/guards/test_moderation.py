"""An endpoint for moderation gives scores, or none; whatever it sends."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from tsgb.errors import UsageError
from tsgb.guards.moderation import ATTEMPTS, BATCH, MAX_BYTES, ModerationGuard, key_variable

URL = "https://host.test/v1/moderations"
Handler = Callable[[httpx.Request], httpx.Response]


def guard(handler: Handler, waits: list[float] | None = None, **options: Any) -> ModerationGuard:
    return ModerationGuard(
        URL,
        sleep=(waits if waits is not None else []).append,
        transport=httpx.MockTransport(handler),
        **options,
    )


def result(flagged: Any, **scores: Any) -> dict[str, Any]:
    return {"flagged": flagged, "categories": {}, "category_scores": scores}


def test_the_highest_category_is_the_score_and_texts_go_in_batches() -> None:
    asked: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        results = [result(False, a=0.1, b=len(text) / 100) for text in asked[-1]["input"]]
        return httpx.Response(200, json={"id": "x", "results": results})

    texts = ["x" * (10 + i) for i in range(BATCH + 3)]
    found = guard(handler, model="omni").score(texts)
    assert found.tolist() == pytest.approx([(10 + i) / 100 for i in range(BATCH + 3)])
    assert [len(one["input"]) for one in asked] == [BATCH, 3]
    assert asked[0]["model"] == "omni"
    assert guard(handler).score([]).shape == (0,)


def test_a_service_without_scores_decides() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"results": [{"flagged": True}, {"flagged": False}]})

    assert guard(handler).score(["a", "b"]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"\xff\xfe",
        b"[]",
        b'{"results": {}}',
        b'{"results": [{"flagged": true}]}',
        b'{"results": [1, {"flagged": "yes"}]}',
        b'{"results": [{"category_scores": {"a": "high"}}, {"category_scores": {"a": true}}]}',
        b'{"results": [{"category_scores": {"a": NaN}}, {"flagged": null}]}',
        b'{"results": [{"flagged": true}, {"flagged": true}], "x": "' + b"y" * MAX_BYTES + b'"}',
    ],
)
def test_a_malformed_answer_is_no_score(body: bytes) -> None:
    found = guard(lambda _: httpx.Response(200, content=body)).score(["a", "b"])
    assert np.isnan(found).all()


def test_one_malformed_result_costs_one_score() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"results": [result(True, a=0.9), {"flagged": "yes"}]})

    found = guard(handler).score(["a", "b"])
    assert found[0] == 0.9
    assert np.isnan(found[1])


def test_what_may_heal_is_asked_again_and_the_rest_is_not() -> None:
    waits: list[float] = []
    statuses = iter([429, 503, 200])

    def heals(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(statuses), json={"results": [{"flagged": True}]})

    assert guard(heals, waits).score(["a"]).tolist() == [1.0]
    assert len(waits) == 2

    asked: list[int] = []

    def refuses(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        return httpx.Response(401)

    assert np.isnan(guard(refuses).score(["a"])).all()
    assert len(asked) == 1

    def breaks(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        raise httpx.ReadTimeout("slow", request=request)

    assert np.isnan(guard(breaks).score(["a"])).all()
    assert len(asked) == 1 + ATTEMPTS


def test_a_service_is_not_asked_before_it_wants_to_be() -> None:
    waits: list[float] = []
    answers = iter([("7", 429), ("Sun, 29 Nov 2026 12:00:20 GMT", 503), ("", 200)])

    def handler(request: httpx.Request) -> httpx.Response:
        said, status = next(answers)
        body = {"results": [{"flagged": True}]}
        return httpx.Response(status, headers={"retry-after": said}, json=body)

    noon = datetime(2026, 11, 29, 12, tzinfo=UTC)
    asked = guard(handler, waits, now=lambda: noon, jitter=lambda low, _: low)
    assert asked.score(["a"]).tolist() == [1.0]
    assert sum(waits) == 27
    assert max(waits) <= 1, "it looks whether to stop in between"

    def never(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"retry-after": "3600"})

    del waits[:]
    assert np.isnan(guard(never, waits).score(["a"])).all()
    assert not waits


def test_redirects_are_not_followed() -> None:
    hosts: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(307, headers={"location": "https://elsewhere.test/"})

    assert np.isnan(guard(handler).score(["a"])).all()
    assert set(hosts) == {"host.test"}


def test_a_key_is_sent_to_the_service_alone(capsys: pytest.CaptureFixture[str]) -> None:
    key = SecretStr("sentinel-key")
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(500)

    assert np.isnan(guard(handler, key=key).score(["a"])).all()
    assert set(seen) == {"Bearer sentinel-key"}
    for url in ("http://host.test/v1", "http://127.evil.test/v1", "http://localhost.test/v1"):
        with pytest.raises(UsageError, match="what others can read: write https://"):
            ModerationGuard(url, sleep=lambda _: None)
    with pytest.raises(UsageError, match="the address is none: write https://"):
        ModerationGuard("https://xn--/v1", sleep=lambda _: None)
    ModerationGuard("http://127.0.0.1:9/v1", key=key, sleep=lambda _: None)
    assert key_variable("https://api.openai.com/v1/moderations") == "OPENAI_API_KEY"
    for url in ("https://api.openai.com.evil.test/v1", "http://127.0.0.1:9/v1"):
        assert key_variable(url) == ""
    told = capsys.readouterr()
    assert "sentinel" not in told.out + told.err


def test_text_that_is_no_unicode_is_sent_as_replaced() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"results": [{"flagged": "?" in request.content.decode()}]})

    assert guard(handler).score(["a\udc80"]).tolist() == [1.0]


def test_a_signal_ends_it() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guard(lambda _: httpx.Response(200), check=stop).score(["a"])
