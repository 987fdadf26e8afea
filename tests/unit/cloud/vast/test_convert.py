"""The states and prices of Vast.ai in neutral words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tsgb.cloud.provider import InstanceState
from tsgb.cloud.vast.convert import instance_of, offer_of
from tsgb.cloud.vast.records import InstanceRow, OfferRow

STOPPED = {"cur_state": "stopped", "next_state": "stopped"}


@pytest.mark.parametrize(
    ("row", "state", "status", "billed"),
    [
        ({}, InstanceState.PROVISIONING, "provisioning", False),
        (
            {"actual_status": "loading", **STOPPED},
            InstanceState.PROVISIONING,
            "loading/stopped",
            False,
        ),
        ({"actual_status": "running"}, InstanceState.RUNNING, "running", True),
        ({"actual_status": "running", **STOPPED}, InstanceState.RUNNING, "running/stopped", True),
        ({"actual_status": "exited", **STOPPED}, InstanceState.STOPPED, "exited/stopped", False),
        (
            {"actual_status": "stopped", "cur_state": "stopped"},
            InstanceState.STOPPED,
            "stopped",
            False,
        ),
        ({"actual_status": "exited", "cur_state": "running"}, InstanceState.EXITED, "exited", True),
        ({"actual_status": "offline"}, InstanceState.UNREACHABLE, "offline", True),
        ({"actual_status": "rebooting"}, InstanceState.CHANGING, "rebooting", True),
    ],
)
def test_states(row: dict[str, Any], state: InstanceState, status: str, billed: bool) -> None:
    found = instance_of(InstanceRow.model_validate({"id": 7, **row}))
    assert (found.state, found.status, found.gpu_billed) == (state, status, billed)


def test_a_date_that_is_none_is_unknown() -> None:
    found = instance_of(InstanceRow(id=7, start_date=1e300, end_date=0.0))
    assert found.created_at is None
    assert found.ends_at is not None


def test_what_an_offer_does_not_say_never_speaks_for_it() -> None:
    found = offer_of(OfferRow(ask_id=1, machine_id=2, inet_up_cost=-1.0))
    assert math.isnan(found.gpu_ram)
    assert math.isnan(found.reliability)
    assert (found.inet_up_cost, found.storage_cost, found.rentable) == (0.05, 0.5, False)


def test_text_of_the_service_is_printable_and_bounded() -> None:
    said = "x" * 9000 + "\x1b]0;title\x07 no space\nleft on device"
    row = InstanceRow.model_validate({"id": 7, "label": "a\x1b[2Jb", "status_msg": said})
    found = instance_of(row)
    assert found.label == "a?[2Jb"
    assert found.message.endswith("?]0;title? no space left on device")
    assert found.message.isprintable()
    assert len(found.message) == 4096
    assert InstanceRow.model_validate({"id": 7, "label": 5}).label is None
