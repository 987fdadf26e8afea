"""A run on rented machines, in virtual time: what becomes of it, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.fleet import Fleet, assert_settled, causes, when_training
from tests.fakes.mortal_flow import Flow
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import (
    ConfigError,
    TSGBError,
)

pytestmark = pytest.mark.integration


def test_a_run_is_done_on_one_machine_and_paid_to_the_cent() -> None:
    with Fleet() as fleet:
        assert Flow(fleet).run() == "done"
        assert_settled(fleet)
        assert len(fleet.bill()["instances"]) == 1
        lease = fleet.documents.lease()
        assert lease is not None
        assert lease.ended


def test_preemptions_cost_machines_but_no_saved_work() -> None:
    with Fleet(steps=1500) as fleet:

        def preempt(number: int) -> None:
            fleet.vast.do(number, "preempt", outage_seconds=900)
            if len(fleet.bill()["instances"]) < 5:
                when_training(fleet, preempt, 200)

        when_training(fleet, preempt, 200)
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["preempted"] * 5 + ["done"]
        assert_settled(fleet)
        steps = [step for _, step in fleet.published]
        assert steps == sorted(steps)


def test_what_a_machine_sends_is_in_the_books() -> None:
    """By its own count, as its heartbeats tell it."""
    with Fleet(steps=1500, save_bytes=5 * 10**8) as fleet:
        when_training(fleet, lambda n: fleet.vast.do(n, "preempt", outage_seconds=900), 200)
        assert Flow(fleet).run() == "done"
        bills = fleet.bill()["instances"].values()
        assert sum(float(bill["upload_dollars"]) for bill in bills) > 0.05
        assert_settled(fleet)


@pytest.mark.parametrize("shown", ["null", "404"])
def test_an_outbid_machine_that_is_gone_counts_as_preempted(shown: str) -> None:
    with Fleet(gone=shown) as fleet:
        when_training(fleet, fleet.vast.destroy)
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["preempted", "done"]
        assert_settled(fleet)


@pytest.mark.parametrize(
    ("fate", "cause"),
    [
        ("never_boots", TerminationReason.BAD_HOST),
        ("oci_error", TerminationReason.BAD_HOST),
        ("goes_offline", TerminationReason.BAD_HOST),
        ("no_space", TerminationReason.DISK_FULL),
    ],
)
def test_a_host_that_fails_is_left_for_another(fate: str, cause: TerminationReason) -> None:
    with Fleet() as fleet:
        flow = Flow(fleet)
        cheapest = min(fleet.vast.search(), key=lambda offer: offer["dph_total"])
        for machine in {offer["machine_id"] for offer in fleet.vast.search()}:
            if machine == cheapest["machine_id"]:
                fleet.vast.sim(f"machines/{machine}", {"fate": fate})
        assert flow.run() == "done"
        said = fleet.documents.endings()
        assert said[-1].cause is TerminationReason.DONE
        for ending in said[:-1]:
            assert ending.cause is cause
            assert ending.machine_id != said[-1].machine_id
        assert_settled(fleet)


@pytest.mark.parametrize("fate", ["bad_image", "unauthorized"])
def test_our_own_mistake_is_tried_on_one_other_host(fate: str) -> None:
    """The first one may have been a host's fault, or its lie."""
    with Fleet(fates={fate: 1.0}) as fleet:
        with pytest.raises(ConfigError, match="mend the image"):
            Flow(fleet).run()
        assert len(fleet.bill()["instances"]) == 2
        assert_settled(fleet)


def test_a_lost_answer_to_a_rental_is_found_by_its_label() -> None:
    with Fleet(list_lag_seconds=45) as fleet:
        fleet.vast.sim(
            "faults", {"method": "PUT", "path": "/asks/", "when": "after", "act": "close"}
        )
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["done"]
        assert len(fleet.bill()["instances"]) == 1
        assert_settled(fleet)


def test_a_rental_that_never_was_costs_nothing_but_time() -> None:
    with Fleet() as fleet:
        fleet.vast.sim("faults", {"method": "PUT", "path": "/asks/", "act": "close"})
        began = fleet.seconds()
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["refused", "done"]
        assert fleet.seconds() - began > 180, "nothing is rented before the first is surely absent"
        assert_settled(fleet)


@pytest.mark.parametrize("preset", ["bad_gateway", "unavailable", "gateway_timeout", "not_json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_that_is_neither_yes_nor_no(preset: str, when: str) -> None:
    with Fleet() as fleet:
        fault = {"method": "PUT", "path": "/asks/", "act": "answer", "preset": preset, "when": when}
        fleet.vast.sim("faults", fault)
        assert Flow(fleet).run() == "done"
        assert len(fleet.bill()["instances"]) == 1
        assert_settled(fleet)


def test_a_rental_that_comes_true_late_does_no_work_and_does_not_stay() -> None:
    """A zombie of an attempt that was given up: the window in which two may exist."""
    with Fleet(steps=1200) as fleet:
        fault = {"method": "PUT", "path": "/asks/", "act": "late", "seconds": 400}
        fleet.vast.sim("faults", fault)
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["refused", "done"]
        assert {attempt for attempt, _ in fleet.published} == {2}
        lives = fleet.bill()["instances"].values()
        zombie = next(bill for bill in lives if "/r1/1/" in bill["label"])
        assert zombie["destroyed_at"] - zombie["created_at"] < 120
        assert_settled(fleet, most=2)


def test_a_rental_that_takes_effect_twice_is_ended_once_too_many() -> None:
    with Fleet(ask_single_use=False) as fleet:
        fault = {"method": "PUT", "path": "/asks/", "act": "duplicate", "when": "after"}
        fleet.vast.sim("faults", fault)
        assert Flow(fleet).run() == "done"
        assert fleet.live() == []


def test_refused_offers_are_tried_again_elsewhere() -> None:
    with Fleet(refusal=0.8) as fleet:
        assert Flow(fleet).run() == "done"
        assert causes(fleet)[-1] == "done"
        assert "refused" in causes(fleet)
        assert_settled(fleet)


@pytest.mark.parametrize("code", ["invalid_args", "no_such_ask"])
def test_an_offer_that_is_taken_is_left_for_the_next_one(code: str) -> None:
    with Fleet() as fleet:
        taken = {"success": False, "error": code, "msg": "error 404/3603: no_such_ask"}
        fault = {"method": "PUT", "path": "/asks/", "act": "answer", "status": 404, "body": taken}
        fleet.vast.sim("faults", fault)
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["refused", "done"]
        assert len({ending.machine_id for ending in fleet.documents.endings()}) == 2
        assert_settled(fleet)


def test_a_bid_below_the_floor_leaves_no_contract_behind() -> None:
    with Fleet() as fleet:
        flow = Flow(fleet)
        cheapest = min(fleet.vast.search(), key=lambda offer: offer["dph_total"])
        raised = False

        def raise_floor(point: str) -> None:
            nonlocal raised
            if point == "create not sent" and not raised:
                raised = True
                for offer in fleet.vast.search():
                    if offer["machine_id"] == cheapest["machine_id"]:
                        floor = 3 * offer["min_bid"]
                        fleet.vast.sim(f"machines/{offer['machine_id']}", {"min_bid": floor})

        flow.mortal.on_pass = raise_floor
        assert flow.run() == "done"
        assert raised
        assert_settled(fleet)


def test_what_was_not_asked_for_is_given_back_at_once() -> None:
    with Fleet() as fleet:
        flow = Flow(fleet)
        flow.mortal.on_answer = lambda body: _with(body, is_bid=False)
        with pytest.raises(ConfigError, match="on demand"):
            flow.run()
        assert_settled(fleet)


def _with(body: Any, **changes: Any) -> Any:
    row = body.get("instances") if isinstance(body, dict) else None
    return {**body, "instances": {**row, **changes}} if isinstance(row, dict) else body


@pytest.mark.parametrize("path", ["/v1/instances", r"/v0/instances/\d+"])
@pytest.mark.parametrize("preset", ["internal", "deprecated", "not_json", "empty", "odd_list"])
def test_unknown_is_never_taken_for_absent(path: str, preset: str) -> None:
    """While reads fail, nothing is rented and nothing is given up."""
    with Fleet(steps=900) as fleet:

        def fail(_number: int) -> None:
            fault = {"method": "GET", "path": path, "act": "answer", "preset": preset}
            fleet.vast.sim("faults", {**fault, "times": 12})

        when_training(fleet, fail)
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["done"]
        assert_settled(fleet)


def test_without_a_whole_list_nothing_is_rented() -> None:
    with Fleet() as fleet:
        fault = {"method": "GET", "path": "/v1/instances", "act": "answer", "preset": "internal"}
        fleet.vast.sim("faults", {**fault, "times": None})
        with pytest.raises(TSGBError, match="unknown"):
            Flow(fleet).run()
        assert fleet.bill()["instances"] == {}


def test_a_host_that_comes_back_is_not_doubled() -> None:
    with Fleet(steps=1500) as fleet:

        def cut(number: int) -> None:
            fleet.vast.do(number, "offline")
            fleet.at(1200, lambda: number in fleet.live() and fleet.vast.do(number, "online"))

        when_training(fleet, cut)
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["host_lost", "done"]
        assert_settled(fleet)


def test_a_contract_that_ends_soon_is_left_in_time() -> None:
    with Fleet(steps=900) as fleet:
        flow = Flow(fleet)
        ends = fleet.seconds() + 1200

        def soon(body: Any) -> Any:
            first = isinstance(body, dict) and (body.get("instances") or {})
            is_first = isinstance(first, dict) and "/r1/1/" in str(first.get("label"))
            return _with(body, end_date=ends) if is_first else body

        flow.mortal.on_answer = soon
        assert flow.run() == "done"
        assert causes(fleet)[0] == "stopped"
        assert causes(fleet)[-1] == "done"
        assert_settled(fleet)


def test_machines_whose_cards_are_no_good_are_left_for_others() -> None:
    """An old driver, a host without the probe, another card than was offered, a slow line."""
    troubles: list[dict[str, Any]] = [
        {"cuda": 12.4},
        {"strips": ["TSGB_CARD_GB"]},
        {"true_card": "H100 SXM"},
        {"inet_down": 0.5},
        {},
    ]
    with Fleet(card_gb=8.0, wheels_gb="0.13", download_speed=1.0) as fleet:
        for offer in fleet.vast.search():
            fleet.vast.sim(f"machines/{offer['machine_id']}", {"cuda": 13.0})
        known: dict[int, int] = {}

        def meddle() -> None:
            for row in fleet.vast.sim("state")["instances"]:
                if row["id"] not in known:
                    change = troubles[len(known)]
                    known[row["id"]] = row["machine_id"]
                    fleet.vast.sim(f"machines/{row['machine_id']}", change)
            fleet.at(1, meddle)

        meddle()
        assert Flow(fleet).run() == "done"
        ends = [found.result for found in fleet.documents.attempts() if found.result is not None]
        assert [end.cause.value for end in ends] == ["bad_host"] * 4 + ["done"]
        assert len(set(known.values())) == 5, "each is avoided from then on"
        said = [end.message for end in ends]
        assert "is too old: it carries CUDA 12.4, and torch was built for 13.0" in said[0]
        assert said[1] == "its heartbeat has no probe of the card"
        assert said[2].startswith("its card is 'NVIDIA GeForce H100 SXM', and 'RTX ")
        attempts = list(fleet.documents.attempts())
        assert [found.probe is not None for found in attempts] == [False, False, True, False, True]
        assert attempts[-1].probe is not None
        assert attempts[-1].intent is not None
        assert attempts[-1].probe.gpu_name.endswith(attempts[-1].intent.gpu_name)
        assert {attempt for attempt, _ in fleet.published} == {5}, "no other one trained"
        assert_settled(fleet)
