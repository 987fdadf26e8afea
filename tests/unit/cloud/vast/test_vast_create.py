"""Renting is one request, and only a clear answer is an answer."""

from __future__ import annotations

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes.scripted_http import Reply, Script, serve
from tests.unit.cloud.vast.conftest import NOW, answered, rental, scene
from tsgb.cloud.vast.client import VastClient
from tsgb.errors import (
    ProviderAmbiguous,
    ProviderAuthError,
    ProviderError,
    ProviderGone,
    ProviderNoCredit,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)

ASK = 12345678


def refused(reply: Reply) -> ProviderError:
    """The error that an answer becomes; it was asked for once."""
    vast, script, _ = scene(reply, answered("create"))
    with pytest.raises(ProviderError) as caught:
        vast.create(ASK, rental())
    assert [(seen.method, seen.path) for seen in script.seen] == [("PUT", f"/api/v0/asks/{ASK}/")]
    return caught.value


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        pytest.param(answered("offer_taken"), ProviderGone, id="410"),
        pytest.param(
            Reply(404, {"success": False, "error": "no_such_ask"}), ProviderGone, id="404"
        ),
        pytest.param(
            Reply(400, {"success": False, "error": "no_such_ask"}), ProviderGone, id="400"
        ),
        pytest.param(
            Reply(200, {"success": False, "error": "no_such_ask"}), ProviderGone, id="200"
        ),
        pytest.param(
            Reply(400, {"error": "resources_unavailable"}), ProviderGone, id="unavailable"
        ),
        pytest.param(Reply(400, {"error": "invalid_args", "msg": "x"}), ProviderRefused, id="args"),
        pytest.param(Reply(200, {"success": False, "msg": "no"}), ProviderRefused, id="200 but no"),
        pytest.param(answered("bad_key"), ProviderAuthError, id="bad key"),
        pytest.param(Reply(403, {"msg": "scope"}), ProviderAuthError, id="scope"),
        pytest.param(Reply(400, {"error": "insufficient_credit"}), ProviderNoCredit, id="credit"),
        pytest.param(Reply(400, {"error": "spend_rate_limit"}), ProviderNoCredit, id="spending"),
        pytest.param(answered("too_often"), ProviderRateLimited, id="429"),
        pytest.param(Reply(502, "<html>"), ProviderAmbiguous, id="502"),
        pytest.param(Reply(503, {"error": "internal"}), ProviderAmbiguous, id="503"),
        pytest.param(Reply(500, {"error": "no_such_ask"}), ProviderAmbiguous, id="500 with a code"),
        pytest.param(Reply(408, "timeout"), ProviderAmbiguous, id="408"),
        pytest.param(Reply(200, "<html>"), ProviderAmbiguous, id="200 without JSON"),
        pytest.param(Reply(200, {"success": True}), ProviderAmbiguous, id="no contract"),
        pytest.param(Reply(200, {"new_contract": 7}), ProviderAmbiguous, id="no success"),
        pytest.param(
            Reply(400, {"error": "resources_unavailable", "msg": "state change queued"}),
            ProviderAmbiguous,
            id="queued",
        ),
    ],
)
def test_every_answer_but_yes_has_a_kind(reply: Reply, kind: type[ProviderError]) -> None:
    error = refused(reply)
    assert type(error) is kind
    assert ("look for its label before you try again" in str(error)) == (kind is ProviderAmbiguous)


def test_what_a_failure_left_behind_is_named() -> None:
    error = refused(answered("low_bid"))
    assert type(error) is ProviderRefused
    assert (error.code, error.status, error.instance_id) == ("invalid_price", 400, 7835612)
    assert "left instance 7835612, which costs money" in str(error)
    for status, success in ((502, False), (200, None)):
        error = refused(Reply(status, {"success": success, "new_contract": "7835613"}))
        assert (type(error), error.instance_id) == (ProviderAmbiguous, 7835613)


def test_the_bid_and_the_refusal_to_queue_are_always_in_it() -> None:
    vast, script, _ = scene(answered("create"))
    vast.create(ASK, rental(price=0.2))
    assert script.seen[0].body["price"] == 0.2
    assert script.seen[0].body["cancel_unavail"] is True
    assert script.seen[0].body["client_id"] == "me"


def test_too_often_is_waited_out_by_the_next_rental() -> None:
    vast, script, time = scene(answered("too_often"), answered("create"))
    with pytest.raises(ProviderRateLimited) as caught:
        vast.create(ASK, rental())
    assert caught.value.wait_seconds == 12.0  # the documented penalty
    vast.create(ASK + 1, rental())
    assert sum(time.slept) == pytest.approx(12.0)
    assert len(script.seen) == 2


@pytest.mark.parametrize("then", ["close", "cut"])
def test_a_lost_answer_is_ambiguous_and_is_not_asked_for_again(then: str) -> None:
    reply = Reply(200, {"success": True, "new_contract": 7, "padding": "x" * 100}, then=then)
    script = Script([reply])
    with serve(script) as url:
        vast, *_ = scene(url=url, on_loopback=True)
        with pytest.raises(ProviderAmbiguous, match="look for its label"):
            vast.create(ASK, rental())
    assert len(script.seen) == 1


def test_every_request_has_a_connection_of_its_own() -> None:
    """A server ends one that it kept when it likes, as a request enters it too: then nobody knows
    whether the rental was read."""
    script = Script([answered("create")])
    with serve(script) as url:
        vast, *_ = scene(url=url, on_loopback=True)
        for ask_id in range(3):
            vast.create(ask_id, rental())
    assert len({seen.peer for seen in script.seen}) == 3


def test_nothing_was_sent_where_nobody_listens() -> None:
    with serve(Script([])) as url:
        pass
    vast, *_ = scene(url=url, on_loopback=True)
    with pytest.raises(ProviderUnreachable, match="not sent"):
        vast.create(ASK, rental())


def test_any_other_failure_on_the_way_is_ambiguous() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise RuntimeError("a bug of some library, after the bytes have left")

    vast = VastClient(SecretStr("key"), transport=httpx.MockTransport(fail), now=lambda: NOW)
    with pytest.raises(ProviderAmbiguous, match="RuntimeError"):
        vast.create(ASK, rental())
