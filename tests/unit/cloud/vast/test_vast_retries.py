"""What heals is asked again, in time and politely; what does not is said at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.scripted_http import Reply, Script, serve
from tests.unit.cloud.vast.conftest import NOW, answered, scene
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.search import Search
from tsgb.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderNoCredit,
    ProviderRateLimited,
    ProviderRefused,
    ProviderSearchQuota,
    ProviderUnreachable,
)

CALLS: list[Any] = [
    pytest.param(lambda vast: vast.account(), answered("account"), id="account"),
    pytest.param(lambda vast: vast.search(Search(disk_gb=8)), answered("search"), id="search"),
    pytest.param(lambda vast: vast.instances(), answered("list"), id="list"),
    pytest.param(lambda vast: vast.show(7835610), answered("show"), id="show"),
    pytest.param(lambda vast: vast.label(7, "x"), answered("label"), id="label"),
    pytest.param(lambda vast: vast.stop(7), answered("stop"), id="stop"),
    pytest.param(lambda vast: vast.change_bid(7, 0.2), answered("change_bid"), id="bid"),
    pytest.param(lambda vast: vast.destroy(7), answered("destroy"), id="destroy"),
]


@pytest.mark.parametrize(("call", "good"), CALLS)
def test_what_can_be_repeated_is(call: Callable[[VastClient], Any], good: Reply) -> None:
    bad = Reply(502, "<html>"), answered("too_often_text"), Reply(200, "")
    vast, script, _ = scene(*bad, good)
    call(vast)
    assert len(script.seen) == 4


@pytest.mark.parametrize(("call", "good"), CALLS)
def test_not_for_ever(call: Callable[[VastClient], Any], good: Reply) -> None:
    vast, script, time = scene(Reply(503, ""))
    with pytest.raises(
        ProviderUnreachable, match=r"after retrying for 60 s\. What is there is unknown"
    ):
        call(vast)
    assert 2 < len(script.seen) < 40
    # The last wait for a turn may pass the end, by its interval at most.
    assert sum(time.slept) < 66


@pytest.mark.parametrize(("call", "good"), CALLS)
def test_one_try_if_so_wanted(call: Callable[[VastClient], Any], good: Reply) -> None:
    vast, script, time = scene(Reply(503, ""), retry_seconds=0)
    with pytest.raises(ProviderUnreachable):
        call(vast)
    assert (len(script.seen), time.slept) == (1, [])


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        pytest.param(answered("bad_key"), ProviderAuthError, id="key"),
        pytest.param(Reply(403, {"msg": "no"}), ProviderAuthError, id="permission"),
        pytest.param(Reply(402, ""), ProviderNoCredit, id="credit"),
        pytest.param(answered("search_quota"), ProviderSearchQuota, id="quota"),
        pytest.param(Reply(400, {"error": "invalid_args"}), ProviderRefused, id="arguments"),
        pytest.param(Reply(501, ""), ProviderRefused, id="501"),
        pytest.param(Reply(302, "", {"Location": "https://other"}), ProviderRefused, id="redirect"),
    ],
)
def test_what_does_not_heal_is_asked_once(reply: Reply, kind: type[ProviderError]) -> None:
    vast, script, _ = scene(reply)
    with pytest.raises(ProviderError) as caught:
        vast.search(Search(disk_gb=8))
    assert type(caught.value) is kind
    assert len(script.seen) == 1


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        pytest.param(answered("too_often_text"), 1.0, id="the interval of the call"),
        pytest.param(answered("too_often"), 2.0, id="threshold in JSON"),
        pytest.param(
            Reply(429, "API requests too frequent: endpoint threshold=4.5"), 4.5, id="in text"
        ),
        pytest.param(Reply(429, "", {"Retry-After": "9"}), 9.0, id="header"),
        pytest.param(Reply(429, {"retry_after": 7}), 7.0, id="body"),
        pytest.param(Reply(429, {"retry_after": "soon"}), 1.0, id="no number"),
        pytest.param(Reply(429, {"retry_after": 1e400}), 1.0, id="not finite"),
        pytest.param(Reply(429, "", {"Retry-After": "Fri, 20 Nov 2026"}), 1.0, id="a date"),
        pytest.param(Reply(200, {"success": False, "error": "rate_limited"}), 1.0, id="200"),
    ],
)
def test_as_long_as_the_service_wants(reply: Reply, seconds: float) -> None:
    with pytest.raises(ProviderRateLimited) as caught:
        scene(reply, retry_seconds=0).vast.instances()
    assert caught.value.wait_seconds == seconds
    vast, script, time = scene(reply, answered("list"))
    vast.instances()
    assert seconds <= sum(time.slept) <= 2 * seconds + 1
    assert len(script.seen) == 2


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    vast, script, time = scene(Reply(429, "", {"Retry-After": "3600"}))
    with pytest.raises(ProviderRateLimited) as caught:
        vast.instances()
    assert (caught.value.wait_seconds, time.slept, len(script.seen)) == (3600.0, [], 1)


def test_the_quota_of_searches_ends_when_the_service_says_or_at_midnight() -> None:
    def waiting(headers: dict[str, str]) -> float:
        reply = Reply(429, {"error": "search_quota_exceeded"}, headers)
        vast, _, time = scene(reply)
        with pytest.raises(ProviderSearchQuota) as caught:
            vast.search(Search(disk_gb=8))
        assert time.slept == []
        return caught.value.wait_seconds

    assert waiting({"X-RateLimit-Reset": str(NOW.timestamp() + 90)}) == 90.0
    assert waiting({"X-RateLimit-Reset": str(NOW.timestamp() - 90)}) == 0.0
    assert waiting({}) == 6 * 3600.0
    assert waiting({"X-RateLimit-Reset": "soon"}) == 6 * 3600.0


def test_jitter_leaves_the_draws_of_a_run_alone() -> None:
    random.seed(7)
    before = random.getstate()
    scene(Reply(503, ""), Reply(503, ""), answered("list")).vast.instances()
    assert random.getstate() == before


def test_jitter_of_the_caller() -> None:
    vast, _, time = scene(
        Reply(503, ""), Reply(503, ""), answered("list"), jitter=lambda _, most: most
    )
    vast.instances()
    assert time.slept == [0.5, 0.5, 1.0]


def test_over_sockets() -> None:
    script = Script(
        [Reply(then="close"), Reply(200, {"x": "y" * 99}, then="cut"), answered("list")]
    )
    with serve(script) as url:
        assert len(scene(url=url, on_loopback=True).vast.instances()) == 2
    assert len(script.seen) == 3


class TestLogs:
    def test_the_service_uploads_them_first(self) -> None:
        elsewhere = Script([Reply(404, "<Error/>"), Reply(403, ""), Reply(200, "one\ntwo\n")])
        with serve(elsewhere) as url:
            asked = Reply(200, {"success": True, "result_url": f"{url}/s3/7.log?secret=1"})
            service = Script([asked])
            with serve(service) as vast_url:
                vast, *_ = scene(url=vast_url, on_loopback=True)
                assert vast.logs(7, tail_lines=100) == "one\ntwo\n"
        official = answered("logs")
        assert official.body["success"] is True
        [seen] = service.seen
        assert (seen.method, seen.path, seen.body) == (
            "PUT",
            "/api/v0/instances/request_logs/7/",
            {"tail": "100"},
        )
        assert [seen.path for seen in elsewhere.seen] == ["/s3/7.log"] * 3
        assert not [seen for seen in elsewhere.seen if "authorization" in seen.headers]

    @pytest.mark.parametrize("url", [None, 7, "", "file:///etc/passwd", "s3://bucket/key"])
    def test_an_odd_address_is_not_opened(self, url: object) -> None:
        vast, script, _ = scene(Reply(200, {"success": True, "result_url": url}))
        with pytest.raises(ProviderUnreachable):
            vast.logs(7)
        assert len(script.seen) == 1

    def test_they_may_never_come(self) -> None:
        def respond(seen: Any) -> Reply:
            if seen.method == "PUT":
                return Reply(200, {"success": True, "result_url": "https://s3.example/secret-1"})
            return Reply(404, "")

        vast, *_ = scene(respond=respond, retry_seconds=0)
        with pytest.raises(ProviderUnreachable, match="no log yet") as caught:
            vast.logs(7)
        assert "secret-1" not in str(caught.value)
