"""Whatever the service makes of a search, what comes out is what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.scripted_http import Reply
from tests.unit.cloud.vast.conftest import OFFICIAL, scene
from tsgb.cloud.vast.search import Search

GOOD: dict[str, Any] = OFFICIAL["search"]["response"]["body"]["offers"][0]
NUMBERS = st.one_of(st.floats(0, 2000), st.integers(0, 2000), st.none(), st.just("many"))
ROWS = st.fixed_dictionaries(
    {"ask_contract_id": st.integers(1, 9), "machine_id": st.integers(1, 9)},
    optional={
        "num_gpus": st.one_of(st.integers(0, 9), st.none()),
        "gpu_name": st.sampled_from(["RTX 4090", "RTX 3090", "RTX_4090", None]),
        "verification": st.sampled_from(["verified", "unverified", "deverified", None]),
        "external": st.sampled_from([True, False, None]),
        "rentable": st.sampled_from([True, False, None]),
        "is_bid": st.sampled_from([True, False, None]),
        "geolocation": st.sampled_from(["Sweden, SE", "Texas, US", "SE", "Utopia", "", None]),
        "reliability2": st.one_of(st.floats(0, 1), st.none()),
        **dict.fromkeys(
            (
                "gpu_ram",
                "cpu_ram",
                "compute_cap",
                "cuda_max_good",
                "disk_space",
                "inet_up",
                "inet_down",
                "inet_up_cost",
                "inet_down_cost",
                "duration",
                "dph_total",
            ),
            NUMBERS,
        ),
    },
)
AMOUNTS = st.one_of(st.none(), st.floats(0, 1000))
SEARCHES = st.builds(
    Search,
    disk_gb=st.floats(8, 1000),
    interruptible=st.booleans(),
    gpu_names=st.sampled_from([(), ("RTX_4090",), ("RTX 3090", "RTX 4090")]),
    num_gpus=st.one_of(st.none(), st.integers(1, 8)),
    min_gpu_ram_mb=AMOUNTS,
    min_cpu_ram_mb=AMOUNTS,
    regions=st.sampled_from([(), ("SE",), ("SE", "US")]),
    min_compute_cap=st.one_of(st.none(), st.integers(0, 1000)),
    min_cuda=AMOUNTS,
    min_inet_up_mbps=AMOUNTS,
    min_inet_down_mbps=AMOUNTS,
    max_inet_up_usd_per_gb=AMOUNTS,
    max_inet_down_usd_per_gb=AMOUNTS,
    min_reliability=st.one_of(st.none(), st.floats(0, 1)),
    min_duration_seconds=AMOUNTS,
    max_usd_per_hour=AMOUNTS,
    verified=st.booleans(),
)


def allowed(row: dict[str, Any], search: Search) -> bool:
    """The conditions once more, in the words of a person who reads the row."""

    def at_least(name: str, bound: float | None) -> bool:
        value = row.get(name)
        known = isinstance(value, int | float)
        if name == "compute_cap":
            known = known and float(value or 0).is_integer()
        return bound is None or (known and value >= bound)

    def at_most(name: str, bound: float | None) -> bool:
        value = row.get(name)
        return bound is None or (isinstance(value, int | float) and value <= bound)

    names = [name.replace("_", " ") for name in search.gpu_names]
    return (
        row.get("rentable") is True
        and not row.get("external")
        and (row.get("verification") == "verified" or not search.verified)
        and row.get("is_bid") in {search.interruptible, None}
        and (not names or row.get("gpu_name") in names)
        and search.num_gpus in {row.get("num_gpus"), None}
        and at_least("gpu_ram", search.min_gpu_ram_mb)
        and at_least("cpu_ram", search.min_cpu_ram_mb)
        and (not search.regions or (row.get("geolocation") or "")[-2:] in search.regions)
        and at_least("compute_cap", search.min_compute_cap)
        and at_least("cuda_max_good", search.min_cuda)
        and at_least("disk_space", search.disk_gb)
        and at_least("inet_up", search.min_inet_up_mbps)
        and at_least("inet_down", search.min_inet_down_mbps)
        and at_most("inet_up_cost", search.max_inet_up_usd_per_gb)
        and at_most("inet_down_cost", search.max_inet_down_usd_per_gb)
        and at_least("reliability2", search.min_reliability)
        and at_least("duration", search.min_duration_seconds)
        and at_most("dph_total", search.max_usd_per_hour)
    )


@given(SEARCHES, st.lists(ROWS, max_size=8))
def test_a_service_that_ignores_every_filter(search: Search, rows: list[dict[str, Any]]) -> None:
    offers = scene(Reply(200, {"offers": rows})).vast.search(search)
    expected = [row["ask_contract_id"] for row in rows if allowed(row, search)]
    assert [offer.ask_id for offer in offers] == expected


LEAST: dict[str, Any] = {
    "gpu_name": "RTX 3090",
    "num_gpus": 2,
    "gpu_ram": 16_000,
    "cpu_ram": 64_000,
    "geolocation": "Texas, US",
    "compute_cap": 860,
    "cuda_max_good": 12.2,
    "disk_space": 59.9,
    "inet_up": 1.0,
    "inet_down": 1.0,
    "inet_up_cost": 1.0,
    "inet_down_cost": 1.0,
    "reliability2": 0.5,
    "duration": 60.0,
    "dph_total": 9.0,
    "rentable": False,
    "verification": "unverified",
    "external": True,
    "is_bid": False,
}
STRICT = Search(
    gpu_names=("RTX 4090",),
    disk_gb=60,
    min_gpu_ram_mb=20_000,
    min_cpu_ram_mb=100_000,
    regions=("SE", "DE"),
    min_compute_cap=890,
    min_cuda=12.4,
    min_inet_up_mbps=500,
    min_inet_down_mbps=500,
    max_inet_up_usd_per_gb=0.01,
    max_inet_down_usd_per_gb=0.01,
    min_reliability=0.98,
    min_duration_seconds=3600,
    max_usd_per_hour=0.4,
)


def found(**changes: Any) -> int:
    return len(scene(Reply(200, {"offers": [GOOD | changes]})).vast.search(STRICT))


@pytest.mark.parametrize("name", LEAST)
def test_each_condition_alone_turns_an_offer_down(name: str) -> None:
    assert found() == 1
    assert found(**{name: LEAST[name]}) == 0
    unknown_will_do = name in {"external", "is_bid"}
    changes = {name: None, "reliability": None} if name == "reliability2" else {name: None}
    assert found(**changes) == unknown_will_do


def test_rows_that_cannot_be_rented_are_no_offers() -> None:
    nameless = {name: value for name, value in GOOD.items() if name != "machine_id"}
    rows = [None, 7, "x", {}, nameless, GOOD]
    assert len(scene(Reply(200, {"offers": rows})).vast.search(STRICT)) == 1


@given(SEARCHES)
def test_the_body_says_all_that_is_checked(search: Search) -> None:
    body = search.body()
    assert {c.field: {c.op: c.value} for c in search.conditions()}.items() <= body.items()
    assert len({c.field for c in search.conditions()}) == len(search.conditions())
    assert body["type"] == ("bid" if search.interruptible else "on-demand")
    assert 1 <= body["limit"] <= 64
