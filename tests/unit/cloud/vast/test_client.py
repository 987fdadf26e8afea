"""What we send is what the official command line sends, and only a clear answer is an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes.scripted_http import Reply, Script, Seen, serve
from tests.unit.cloud.vast.conftest import KEY, NOW, OFFICIAL, answered, rental, scene
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.search import Search
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

ID, ASK = 7835610, 12345678
SEARCH = Search(
    gpu_names=("RTX_4090",),
    disk_gb=60,
    min_reliability=0.98,
    min_inet_down_mbps=500,
    min_cuda=12.4,
    min_duration_seconds=86400,
    max_usd_per_hour=0.4,
    limit=20,
)
CREATE = rental(
    image="pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime",
    label="tsgb/run-abc/1",
    disk_gb=60,
    onstart="echo hi",
    env={"TSGB_RUN": "abc", "TSGB_ATTEMPT": "1", "-p 8000:8000": "1"},
)
CREATE_ARGS = rental(
    image="img", label="x", onstart="bash", args=("-c", "echo hello; sleep infinity")
)
CALLS: dict[str, Callable[[VastClient], Any]] = {
    "search": lambda vast: vast.search(SEARCH),
    "create": lambda vast: vast.create(ASK, CREATE),
    "create_args": lambda vast: vast.create(ASK, CREATE_ARGS),
    "list": lambda vast: vast.instances(),
    "show": lambda vast: vast.show(ID),
    "change_bid": lambda vast: vast.change_bid(ID, 0.17),
    "label": lambda vast: vast.label(ID, "tsgb/run-abc/2"),
    "stop": lambda vast: vast.stop(ID),
    "destroy": lambda vast: vast.destroy(ID),
    "account": lambda vast: vast.account(),
}


def sent(call: str, **changes: Any) -> tuple[Any, Seen]:
    """What a call returns for the official answer, and the one request of it."""
    vast, script, time = scene(answered(call, **changes))
    result = CALLS[call](vast)
    [seen] = script.seen
    assert time.slept == []
    return result, seen


@pytest.mark.parametrize("call", CALLS)
def test_method_path_query_and_key(call: str) -> None:
    _, seen = sent(call)
    official = OFFICIAL[call]["request"]
    assert (seen.method, seen.path, seen.query) == (
        official["method"],
        official["path"],
        official["query"],
    )
    assert seen.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("call", [c for c in CALLS if c not in {"search", "create", "create_args"}])
def test_bodies_are_the_official_ones(call: str) -> None:
    _, seen = sent(call)
    assert seen.body == OFFICIAL[call]["request"]["body"]
    assert seen.body is None or seen.headers["content-type"] == "application/json"


@pytest.mark.parametrize("call", ["create", "create_args"])
def test_a_rental_is_the_official_one_without_what_is_not_set(call: str) -> None:
    _, seen = sent(call)
    official = OFFICIAL[call]["request"]["body"]
    # Ours never waits in a queue; a shell is reached through nothing, so one kind of SSH will do.
    ours = {"cancel_unavail": True, "runtype": "args" if call == "create_args" else "ssh_proxy"}
    assert {**official, **seen.body} == {**official, **ours}
    assert all(not official[name] for name in set(official) - set(seen.body))


def test_a_search_has_the_official_conditions() -> None:
    _, seen = sent("search")

    def plain(body: dict[str, Any]) -> dict[str, Any]:
        """The command line writes some numbers as strings, and `gt` where `gte` serves as well."""
        found: dict[str, Any] = {}
        for name, value in body.items():
            if isinstance(value, dict):
                [(op, operand)] = value.items()
                number = float(operand) if name != "gpu_name" else operand
                found[name] = (op.replace("gt", "gte").replace("gtee", "gte"), number)
            else:
                found[name] = value
        return found

    official = plain(OFFICIAL["search"]["request"]["body"])
    assert plain(seen.body) == official | {"gpu_name": ("in", ["RTX 4090"])}


def test_offers_are_read() -> None:
    [offer], _ = sent("search")
    assert (offer.ask_id, offer.machine_id, offer.host_id) == (ASK, 88888, 55555)
    assert (offer.gpu_name, offer.num_gpus, offer.min_bid) == ("RTX 4090", 1, 0.12)
    assert (offer.dph_total, offer.storage_cost, offer.reliability) == (0.122, 0.15, 0.9969)


def test_the_id_of_the_ask_counts() -> None:
    body = OFFICIAL["search"]["response"]["body"]["offers"][0]
    [offer], _ = sent("search", offers=[body | {"id": 1, "ask_contract_id": 2}])
    assert offer.ask_id == 2
    body.pop("ask_contract_id", None)
    [offer], _ = sent("search", offers=[body | {"id": 1}])
    assert offer.ask_id == 1


def test_instances_and_the_account_are_read() -> None:
    first, second = sent("list")[0]
    assert (first.id, first.label, second.label) == (ID, "tsgb/run-abc/1", "x")
    assert (first.is_bid, first.actual_status, first.cur_state) == (True, None, "running")
    assert sent("show")[0] == first
    assert sent("create")[0] == ID
    assert sent("account")[0].credit == 25.0


def test_a_field_of_another_kind_is_unknown_and_no_more() -> None:
    row = OFFICIAL["list"]["response"]["body"]["instances"][0]
    odd = row | {"dph_total": "free", "is_bid": "perhaps", "label": 7, "num_gpus": None, "new": 1}
    instance = sent("show", instances=odd)[0]
    assert instance.id == ID
    assert {instance.dph_total, instance.is_bid, instance.label, instance.num_gpus} == {None}
    assert instance.gpu_name == "RTX 4090"


@pytest.mark.parametrize("price", [0.0, -1.0, 0.0005, 129.0, float("nan"), float("inf"), None])
def test_no_price_but_a_bid_is_ever_sent(price: Any) -> None:
    vast, script, _ = scene(Reply(body={"success": True}))
    with pytest.raises(ProviderRefused if price is not None else TypeError):
        vast.change_bid(ID, price)
    with pytest.raises(ValueError, match="price"):
        rental(price=price)
    assert script.seen == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"label": "x" * 257}, "label", id="label"),
        pytest.param({"disk_gb": 7.9}, "disk_gb", id="disk"),
        pytest.param({"onstart": "x" * 4000, "args": ("x" * 97,)}, "4096", id="script"),
        pytest.param({"env": {"A": "x" * 32_768}}, "32768", id="environment"),
        pytest.param({"env": {"A": "\udc80-sentinel"}}, "no text", id="surrogate"),
        pytest.param({"surprise": 1}, "surprise", id="unknown"),
    ],
)
def test_what_the_service_would_refuse_is_refused_here(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        rental(**change)
    assert "sentinel" not in str(caught.value)


# --- create --------------------------------------------------------------------------------------


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


# --- instances -----------------------------------------------------------------------------------


ROW = OFFICIAL["list"]["response"]["body"]["instances"][0]


def page(ids: range, total: int, token: str | None, **changes: Any) -> Reply:
    rows = [ROW | {"id": number} for number in ids]
    body = {
        "success": True,
        "instances_found": len(rows),
        "total_instances": total,
        "next_token": token,
        "instances": rows,
    }
    return Reply(200, body | changes)


def test_all_pages_are_read() -> None:
    pages = [
        page(range(1, 26), 60, "25"),
        page(range(26, 51), 60, "50"),
        page(range(51, 61), 60, None),
    ]
    vast, script, _ = scene(*pages, *pages)
    assert [instance.id for instance in vast.instances()] == list(range(1, 61))
    assert [seen.query.get("after_token") for seen in script.seen] == [None, "25", "50"] * 2


def test_an_empty_list_is_one_that_says_so() -> None:
    assert scene(page(range(0), 0, None)).vast.instances() == ()


def without(name: str) -> Reply:
    reply = page(range(1, 3), 2, None)
    return Reply(200, {k: v for k, v in reply.body.items() if k != name})


NOT_WHOLE = [
    pytest.param(page(range(1, 3), 3, None), id="one is missing"),
    pytest.param(page(range(1, 3), 2, None, instances_found=3), id="a row is missing"),
    pytest.param(page(range(1, 3), 2, None, success=False), id="not a success"),
    pytest.param(page(range(1, 3), 2, None, success="yes"), id="success of another kind"),
    pytest.param(page(range(0), 0, None, instances=None), id="no list"),
    pytest.param(page(range(0), 0, None, instances={}), id="an object"),
    pytest.param(page(range(1), 1, None, instances=[{"label": "x"}]), id="a row without id"),
    pytest.param(page(range(1, 3), 2, "same"), id="pages without an end"),
    pytest.param(without("success"), id="no word of success"),
    pytest.param(without("instances"), id="no instances"),
    pytest.param(without("next_token"), id="no word of the next page"),
    pytest.param(Reply(200, "<html>log in</html>"), id="a page for people"),
    pytest.param(Reply(200, ""), id="nothing"),
    pytest.param(Reply(200, []), id="a bare list"),
    pytest.param(Reply(200, {}), id="an empty object"),
    pytest.param(Reply(502, "<html>"), id="502"),
    pytest.param(Reply(500, {"success": False, "error": "internal"}), id="500"),
    pytest.param(Reply(404, {"detail": "Not Found"}), id="404"),
    pytest.param(Reply(404, {"success": False, "msg": "no instances"}), id="404 in its words"),
    pytest.param(Reply(404, {"error": "no_such_instance"}), id="404 of one"),
    pytest.param(Reply(410, {"success": False, "error": "deprecated_endpoint"}), id="410"),
    pytest.param(Reply(301, "", {"Location": "/elsewhere"}), id="redirect"),
    pytest.param(answered("bad_key"), id="revoked key"),
]


@pytest.mark.parametrize("reply", NOT_WHOLE)
def test_what_is_not_whole_is_an_error(reply: Reply) -> None:
    with pytest.raises(ProviderError) as caught:
        scene(reply).vast.instances()
    assert not isinstance(caught.value, ProviderGone)


@pytest.mark.parametrize("reply", NOT_WHOLE)
def test_a_later_page_that_is_not_whole_is_an_error_too(reply: Reply) -> None:
    def respond(seen: Seen) -> Reply:
        return reply if "after_token" in seen.query else page(range(50, 75), 27, "25")

    with pytest.raises(ProviderError):
        scene(respond=respond).vast.instances()


def test_a_list_that_changes_while_it_is_read_is_read_again() -> None:
    vast, script, _ = scene(
        page(range(1, 26), 26, "25"), page(range(0), 26, None), page(range(1, 26), 25, None)
    )
    assert len(vast.instances()) == 25
    assert [seen.query.get("after_token") for seen in script.seen] == [None, "25", None]


def test_a_row_that_slips_between_two_pages_is_not_lost() -> None:
    """Instance 3 ends after the first page: 26 moves up to it, and the second begins with 27."""
    again = page(range(4, 29), 27, "25"), page(range(29, 31), 27, None)
    vast, script, _ = scene(
        page(range(1, 26), 30, "25"), page(range(27, 31), 29, None), *again, *again
    )
    assert 26 in {instance.id for instance in vast.instances()}
    assert len(script.seen) == 6


def test_a_row_that_slips_while_another_begins_is_not_lost() -> None:
    """Instance 1 ends and 28 begins after the first page: there are 27 of 27, without 26."""
    slipped = page(range(1, 26), 27, "25"), page(range(27, 29), 27, None)
    after = page(range(2, 27), 27, "25"), page(range(27, 29), 27, None)
    vast, script, _ = scene(*slipped, *after, *after, *after)
    assert [instance.id for instance in vast.instances()] == list(range(2, 29))
    assert len(script.seen) == 8


def test_one_that_begins_between_two_looks_is_no_reason_for_a_third() -> None:
    first = page(range(1, 26), 26, "25"), page(range(26, 27), 26, None)
    second = page(range(1, 26), 27, "25"), page(range(26, 28), 27, None)
    vast, script, _ = scene(*first, *second)
    assert len(vast.instances()) == 27
    assert len(script.seen) == 4


# --- changes and logs ----------------------------------------------------------------------------


def test_a_change_counts_only_if_the_answer_says_so() -> None:
    for body in ({}, {"success": None}, {"success": 1}, {"msg": "ok"}):
        with pytest.raises(ProviderUnreachable):
            scene(Reply(200, body)).vast.stop(7)


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
