"""What we send is what the official command line sends, and we read what it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.scripted_http import Reply, Seen
from tests.unit.cloud.vast.conftest import KEY, OFFICIAL, answered, rental, scene
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.search import Search
from tsgb.errors import ProviderRefused

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
