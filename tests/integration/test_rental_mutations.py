"""Each protection, switched off, breaks what it protects: so the other tests would notice.

The same scenario passes with the protection and fails without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fakes.fleet import Fleet
from tests.fakes.mortal_flow import Flow
from tsgb.cloud.provider import Instance
from tsgb.cloud.session import Session
from tsgb.errors import ProviderUnreachable, TSGBError

pytestmark = pytest.mark.integration

LOST = {"method": "PUT", "path": "/asks/", "when": "after", "act": "close"}
LATE = {"method": "PUT", "path": "/asks/", "act": "late", "seconds": 260}
NO_LIST = {"method": "GET", "path": "/v1/instances", "act": "answer", "preset": "internal"}


@contextmanager
def broken(*, is_off: bool) -> Iterator[None]:
    """What is inside holds, unless the protection is off."""
    if not is_off:
        yield
        return
    with pytest.raises((AssertionError, TSGBError)):
        yield


class NoLabels(Session):
    """Does not find its instances by their labels."""

    def own(self) -> dict[int, Instance]:
        super().own()
        return {}


class FailsOpen(Session):
    """Takes a list that could not be read for an empty one."""

    def own(self) -> dict[int, Instance]:
        try:
            return super().own()
        except ProviderUnreachable:
            return {}


@pytest.mark.parametrize("is_off", [False, True])
def test_adoption_by_label(is_off: bool) -> None:
    with Fleet() as fleet, broken(is_off=is_off):
        fleet.vast.sim("faults", LOST)
        flow = Flow(fleet, session_type=NoLabels if is_off else Session)
        assert flow.run(most=3) == "done"
        assert fleet.bill()["max_live"] == 1


@pytest.mark.parametrize("is_off", [False, True])
def test_the_lease(is_off: bool) -> None:
    with Fleet(steps=10**6, machine_reads_lease=not is_off) as fleet, broken(is_off=is_off):
        assert Flow(fleet, kill_at="training").run() == "killed"
        fleet.advance(60 * 35)
        assert fleet.live() == [], "its flow is dead"


@pytest.mark.parametrize("is_off", [False, True])
def test_the_fence(is_off: bool) -> None:
    """A zombie that reads no lease still cannot publish over a newer attempt."""
    with (
        Fleet(steps=2400, machine_reads_lease=False, fenced=not is_off) as fleet,
        broken(is_off=is_off),
    ):
        fleet.vast.sim("faults", LATE)
        assert Flow(fleet).run() == "done"
        assert {attempt for attempt, _ in fleet.published} == {2}


@pytest.mark.parametrize("is_off", [False, True])
def test_a_list_that_fails_is_not_empty(is_off: bool) -> None:
    with Fleet() as fleet, broken(is_off=is_off):
        assert Flow(fleet, kill_at="training").run() == "killed"
        fleet.advance(45)
        fleet.vast.sim("faults", {**NO_LIST, "times": 40})
        flow = Flow(fleet, session_type=FailsOpen if is_off else Session)
        assert flow.run() == "done"
        assert fleet.bill()["max_live"] == 1
