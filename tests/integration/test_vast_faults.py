"""What the simulated Vast.ai answers when a test plans that something goes wrong, and when it is
merely late, strict or busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.faults import PRESETS
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator

pytestmark = pytest.mark.integration


@pytest.fixture
def vast() -> Iterator[Driver]:
    options = Options(boot_seconds=(0, 0))
    with VastSimulator(options, virtual=True) as simulator, Driver(simulator) as driver:
        yield driver


def plan(vast: Driver, act: str, **more: Any) -> None:
    vast.sim("faults", {"act": act, **more})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_another_answer_before_or_after_the_effect(vast: Driver, preset: str, when: str) -> None:
    number = vast.rent()
    plan(vast, "answer", method="DELETE", when=when, preset=preset)
    answer = vast.destroy(number)
    expected = PRESETS[preset]
    assert (answer.status_code, answer.content) == (expected.status, expected.data())
    assert answer.headers["content-type"] == expected.content_type
    assert vast.bill(number)["live"] is (when == "before")
    assert vast.destroy(number).status_code == (200 if when == "before" else 404)


@pytest.mark.parametrize("act", ["close", "hang"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_create_whose_answer_is_lost(vast: Driver, act: str, when: str) -> None:
    plan(vast, act, path="/asks/", when=when, seconds=0.2)
    with pytest.raises(httpx.RemoteProtocolError):
        vast.rent()
    assert len(vast.listed()) == (when == "after")


def test_a_hang_outlasts_the_client(vast: Driver) -> None:
    plan(vast, "hang", path="/asks/", when="after", seconds=600)
    offer = vast.search()[0]
    with pytest.raises(httpx.ReadTimeout):
        vast.http.put(
            f"/api/v0/asks/{offer['id']}/",
            json={"image": "img", "price": 1.0},
            timeout=httpx.Timeout(60, read=1),
        )
    assert len(vast.listed()) == 1


def test_a_create_that_takes_effect_when_nobody_waits_any_more(vast: Driver) -> None:
    plan(vast, "late", path="/asks/", seconds=90)
    with pytest.raises(httpx.RemoteProtocolError):
        vast.rent()
    assert vast.listed() == []
    vast.advance(90)
    assert len(vast.listed()) == 1


def test_a_delayed_answer_is_the_real_one(vast: Driver) -> None:
    plan(vast, "delay", path="/users/", seconds=0.3)
    began = time.monotonic()
    assert vast.http.get("/api/v0/users/current").json()["credit"] == 25
    assert time.monotonic() - began >= 0.3


def test_an_answer_that_breaks_off(vast: Driver) -> None:
    plan(vast, "truncate", path="/v1/instances")
    with pytest.raises(httpx.RemoteProtocolError):
        vast.list()
    assert vast.listed() == []


def test_an_answer_with_another_shape(vast: Driver) -> None:
    plan(vast, "patch", path="/v1/instances", set={"success": False, "instances": None})
    assert vast.list()["success"] is False
    plan(vast, "patch", path="/bundles", content_type="application/json; charset=utf-8")
    answer = vast.http.post("/api/v0/bundles/", json={})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_a_short_page_looks_like_the_last(vast: Driver) -> None:
    numbers = [vast.rent(offer) for offer in vast.search()[:3]]
    plan(vast, "partial", path="/v1/instances", rows=1)
    page = vast.list()
    assert ([row["id"] for row in page["instances"]], page["next_token"]) == (numbers[:1], None)
    assert page["total_instances"] == 3
    assert vast.listed() == numbers


def test_a_create_that_takes_effect_twice(vast: Driver) -> None:
    plan(vast, "duplicate", path="/asks/")
    number = vast.rent(label="twice")
    assert vast.listed() == [number, number + 1]
    assert {row["label"] for row in vast.list()["instances"]} == {"twice"}
    vast.destroy(number)
    assert vast.truth(number + 1)["phase"] == "running"  # it waited for the machine
    assert vast.sim("ledger")["max_live"] == 2


def test_a_create_that_is_refused_is_refused_twice(vast: Driver) -> None:
    offer = vast.search()[0]
    number = vast.rent(offer)
    vast.destroy(number)
    plan(vast, "duplicate", path="/asks/")
    answer = vast.create(offer["id"], price=128.0, cancel_unavail=True)
    assert (answer.status_code, answer.json()["error"]) == (410, "no_such_ask")
    assert vast.listed() == []


def test_an_offer_ends_with_the_time_of_its_machine(vast: Driver) -> None:
    offer = min(vast.search(), key=lambda row: row["duration"])
    vast.advance(offer["duration"] + 1)
    answer = vast.create(offer["id"], price=128.0, cancel_unavail=True)
    assert (answer.status_code, answer.json()["error"]) == (410, "no_such_ask")
    assert vast.listed() == []


def test_faults_are_taken_in_order_and_counted(vast: Driver) -> None:
    vast.sim(
        "faults",
        [
            {"path": "/users/", "act": "answer", "preset": "internal", "skip": 1, "times": 2},
            {"path": "/users/", "act": "answer", "preset": "bad_gateway", "times": None},
        ],
    )
    seen = [vast.http.get("/api/v0/users/current").status_code for _ in range(5)]
    assert seen == [502, 500, 500, 502, 502]
    assert [fault["taken"] for fault in vast.sim("faults")["faults"]] == [2, 3]
    vast.http.delete("/_sim/faults")
    assert vast.http.get("/api/v0/users/current").status_code == 200
    statuses = [one["status"] for one in vast.sim("requests")["requests"]]
    assert statuses == [*seen, 200]


def test_a_fault_that_cannot_be_is_refused(vast: Driver) -> None:
    answer = vast.http.post("/_sim/faults", json={"act": "answer", "preset": "nonsense"})
    assert answer.status_code == 400
    assert "nonsense" in answer.text


def test_the_inventory_is_late(vast: Driver) -> None:
    vast.sim("options", {"list_lag_seconds": 60, "by_id_lag_seconds": 5, "ghost_seconds": 30})
    number = vast.rent()
    assert vast.show(number) is None
    vast.advance(5)
    assert vast.show(number) is not None
    assert vast.listed() == []
    vast.advance(55)
    assert vast.listed() == [number]
    vast.destroy(number)
    assert vast.show(number) is None
    assert vast.listed() == [number]
    vast.advance(30)
    assert vast.listed() == []


def test_the_status_is_late(vast: Driver) -> None:
    vast.sim("options", {"status_lag_seconds": 60})
    number = vast.rent()
    vast.advance(60)
    vast.do(number, "preempt", outage_seconds=600)
    row = vast.show(number)
    assert (row["actual_status"], row["cur_state"]) == ("running", "stopped")
    vast.advance(60)
    assert vast.show(number)["actual_status"] == "exited"


def test_pages(vast: Driver) -> None:
    numbers = [vast.rent(offer) for offer in vast.search()[:7]]
    first = vast.list(limit=3)
    vast.destroy(numbers[0])
    second = vast.list(limit=3, after_token=first["next_token"])
    assert [row["id"] for row in second["instances"]] == numbers[3:6]

    vast.sim("options", {"paging": "offset"})
    first = vast.list(limit=3)
    vast.destroy(numbers[1])
    second = vast.list(limit=3, after_token=first["next_token"])
    assert [row["id"] for row in second["instances"]] == numbers[5:]  # numbers[4] is skipped
    assert len(vast.list(limit=1000)["instances"]) == 5


def test_labels_are_filtered_by_equality_only(vast: Driver) -> None:
    offers = vast.search()
    number = vast.rent(offers[0], label="tsgb/a/1")
    vast.rent(offers[1], label="tsgb/b/1")
    page = vast.list(select_filters='{"label": {"eq": "tsgb/a/1"}}')
    assert [row["id"] for row in page["instances"]] == [number]
    prefix = vast.http.get(
        "/api/v1/instances/", params={"select_filters": '{"label": {"like": "tsgb/"}}'}
    )
    assert prefix.status_code == 400


def test_search_has_its_quirks(vast: Driver) -> None:
    everything = vast.search(limit=1000)
    assert len(everything) == 64
    offer = everything[0]
    assert vast.search(id={"eq": offer["id"]}) == []
    assert vast.search(ask_contract_id={"eq": str(offer["id"])}) == [offer]
    assert vast.search(no_such_field={"gt": "7"}) == everything
    assert vast.search(duration={"gt": 1e12}) == everything  # taken, and not applied
    assert vast.search(num_gpus={"in": [2, 4]}, reliability={"lt": "0"}) == []
    assert {row["gpu_name"] for row in vast.search(gpu_name={"eq": "RTX 4090"})} == {"RTX 4090"}
    bad = vast.http.post("/api/v0/bundles/", json={"num_gpus": {"like": 1}})
    assert bad.json()["error"] == "invalid_args"


def test_the_old_list_is_retired(vast: Driver) -> None:
    answer = vast.http.get("/api/v0/instances/")
    assert (answer.status_code, answer.json()["error"]) == (410, "deprecated_endpoint")


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ("text", b"API requests too frequent: endpoint threshold=4.5"),
        ("detail", b'{"detail": "API requests too frequent endpoint threshold=4.5"}'),
    ],
)
def test_requests_too_frequent(vast: Driver, shape: str, content: bytes) -> None:
    vast.sim("options", {"rate_limits": True, "rate_limit_shape": shape})
    offers = vast.search()
    vast.rent(offers[0])
    vast.advance(4)
    answer = vast.create(offers[1]["id"], price=1.0)
    assert (answer.status_code, answer.content) == (429, content)
    vast.advance(11)
    assert vast.create(offers[1]["id"], price=1.0).status_code == 429
    vast.advance(12)
    assert vast.create(offers[1]["id"], price=1.0).status_code == 200
    assert vast.sim("ledger")["max_live"] == 2


def test_the_daily_quota_of_searches(vast: Driver) -> None:
    vast.sim("options", {"searches_per_day": 2})
    vast.search()
    vast.search()
    answer = vast.http.post("/api/v0/bundles/", json={})
    assert answer.json()["error"] == "search_quota_exceeded"
    now = vast.sim("clock")["now"]
    vast.advance(int(answer.headers["X-RateLimit-Reset"]) - now)
    vast.search()


@pytest.mark.parametrize("status", [401, 404])
def test_a_bad_key_is_not_an_instance_that_is_gone(vast: Driver, status: int) -> None:
    vast.sim("options", {"auth_error_status": status})
    number = vast.rent()
    with Driver(vast.vast, "wrong") as stranger:
        answer = stranger.destroy(number)
    assert (answer.status_code, answer.json()["error"]) == (status, "auth_error")
    assert vast.listed() == [number]


def test_a_scoped_key_may_do_what_it_says(vast: Driver) -> None:
    body = {"name": "reader", "permissions": {"api": {"misc": {}, "instance_read": {}}}}
    made = vast.http.post("/api/v0/auth/apikeys/", json=body).json()
    with Driver(vast.vast, made["key"]) as reader:
        offer = reader.search()[0]
        assert reader.listed() == []
        assert reader.create(offer["id"], price=1.0).status_code == 403
        vast.http.delete(f"/api/v0/auth/apikeys/{made['id']}/")
        assert reader.http.get("/api/v1/instances/").json()["error"] == "auth_error"
    names = [key["name"] for key in vast.http.get("/api/v0/auth/apikeys/").json()["apikeys"]]
    assert names == ["account"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param({"image": None}, "invalid_args", id="image"),
        pytest.param({"disk": 7}, "invalid_args", id="disk"),
        pytest.param({"label": "x" * 257}, "invalid_args", id="label"),
        pytest.param({"onstart": "x" * 4049}, "invalid_args", id="onstart"),
        pytest.param({"env": {"A": "x" * 32768}}, "invalid_args", id="env"),
        pytest.param({"env": "--gpus all"}, "invalid_args", id="docker options"),
        pytest.param({"price": "0.2"}, "invalid_args", id="price as text"),
        pytest.param({"price": 129.0}, "invalid_price", id="price"),
    ],
)
def test_a_create_that_is_not_in_order(vast: Driver, body: dict[str, Any], error: str) -> None:
    answer = vast.create(vast.search()[0]["id"], **{"price": 1.0, **body})
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert vast.listed() == []


def test_one_of_many_at_once_gets_the_offer(vast: Driver) -> None:
    offer = vast.search()[0]

    def create(_: int) -> int:
        return vast.create(offer["id"], price=1.0, cancel_unavail=True).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [200, *[410] * 7]
    assert vast.sim("ledger")["max_live"] == 1
