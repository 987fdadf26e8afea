"""The states and prices of Vast.ai in neutral words."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tsgb.cloud.provider import InstanceState, LaunchSpec
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider, instance_of, offer_of
from tsgb.cloud.vast.records import InstanceRow, OfferRow


@pytest.mark.parametrize(
    ("row", "cpu_ram", "region", "dlperf"),
    [
        ({"cpu_ram": 128_000, "gpu_frac": 0.25, "geolocation": "Sweden, SE"}, 32_000, "SE", 0.0),
        ({"cpu_ram": 64_000, "geolocation": "Utopia", "dlperf": 90.1}, 64_000, "", 90.1),
        ({"gpu_frac": -1, "geolocation": 7, "dlperf": float("nan")}, 0, "", 0.0),
    ],
    ids=["part-of-a-machine", "whole-machine", "nothing-that-can-be-read"],
)
def test_what_an_offer_says_of_itself(
    row: dict[str, Any], cpu_ram: float, region: str, dlperf: float
) -> None:
    found = offer_of(OfferRow.model_validate({"id": 1, "machine_id": 2, **row}))
    assert (found.cpu_ram, found.region, found.dlperf) == (cpu_ram, region, dlperf)


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


def test_a_script_is_the_first_process_of_a_container_without_a_door() -> None:
    """`args` runs an entry point beside nothing; other runtypes install an SSH server first."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"success": True, "new_contract": 7})

    script = "trap 'exit 3' TERM\n# a comment\necho \"$WORD\" 'and $more'\n(exit 5)\n"
    wire = httpx.MockTransport(answer)
    with VastProvider(
        VastClient(SecretStr("key"), url="http://127.0.0.1", transport=wire)
    ) as cloud:
        spec = LaunchSpec(image="img", label="l", price=0.1, disk_gb=20, onstart=script)
        assert cloud.create(1, spec) == 7
        cloud.create(2, replace(spec, onstart=""))
    first, second = (json.loads(request.content) for request in seen)
    assert (first["runtype"], second["runtype"]) == ("args", "args")
    assert "onstart" not in second
    command = [first["onstart"], *first["args"]]
    assert all(word.isprintable() for word in command), "in one line"
    done = subprocess.run(
        command, env={"WORD": "a  b"}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("a  b and $more\n", "", 5)
