"""What an answer means: its code counts before its status, and unknown is never gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.scripted_http import Reply
from tests.unit.cloud.vast.conftest import NOW, answered, scene
from tsgb.cloud.vast.search import Search
from tsgb.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderGone,
    ProviderNoCredit,
    ProviderRateLimited,
    ProviderRefused,
    ProviderSearchQuota,
    ProviderUnreachable,
)


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


GONE = [
    pytest.param(answered("destroy_again"), id="404"),
    pytest.param(Reply(200, {"success": False, "error": "no_such_instance"}), id="200"),
    pytest.param(Reply(404, {"success": False, "msg": "not found"}), id="404 without a code"),
]
NOT_GONE = [
    pytest.param(answered("bad_key"), ProviderAuthError, id="revoked key"),
    pytest.param(Reply(401, {"msg": "Invalid user key"}), ProviderAuthError, id="401"),
    pytest.param(Reply(404, "<html>no such page</html>"), ProviderRefused, id="404 of a proxy"),
    pytest.param(Reply(404, {"detail": "Not Found"}), ProviderRefused, id="404 of another server"),
    pytest.param(Reply(404, {"error": "no_such_user"}), ProviderRefused, id="something else"),
    pytest.param(Reply(404, {"error": "no_such_ask"}), ProviderRefused, id="an offer"),
    pytest.param(Reply(400, {"error": "resources_unavailable"}), ProviderRefused, id="its GPU"),
    pytest.param(Reply(410, {"error": "deprecated_endpoint"}), ProviderRefused, id="410"),
    pytest.param(Reply(502, "<html>"), ProviderUnreachable, id="502"),
    pytest.param(Reply(200, {}), ProviderUnreachable, id="nothing said"),
    pytest.param(Reply(200, {"instances": {}}), ProviderUnreachable, id="an empty row"),
    pytest.param(Reply(200, {"instances": []}), ProviderUnreachable, id="an empty list"),
    pytest.param(Reply(200, {"instances": {"id": 8}}), ProviderUnreachable, id="another one"),
]


def test_null_is_gone() -> None:
    assert scene(answered("show_missing")).vast.show(7) is None


@pytest.mark.parametrize("reply", GONE)
def test_gone_in_the_words_of_the_service(reply: Reply) -> None:
    assert scene(reply).vast.show(7) is None
    scene(reply).vast.destroy(7)
    for change in ("label", "stop", "change_bid", "logs"):
        arguments: tuple[Any, ...] = {"label": ("x",), "change_bid": (0.2,)}.get(change, ())
        with pytest.raises(ProviderGone):
            getattr(scene(reply).vast, change)(7, *arguments)


@pytest.mark.parametrize(("reply", "kind"), NOT_GONE)
def test_all_else_is_no_proof(reply: Reply, kind: type[ProviderError]) -> None:
    for call in ("show", "destroy"):
        with pytest.raises(ProviderError) as caught:
            getattr(scene(reply).vast, call)(7)
        assert type(caught.value) is kind
