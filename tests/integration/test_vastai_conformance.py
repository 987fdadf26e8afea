"""The vendor's own command line, and every request that it was seen to send, on the simulator.

`tests/golden/vast_requests.json` holds the requests of vastai 1.9.1, word for word; to change one
is to say that the vendor changed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator

pytestmark = pytest.mark.integration

REQUESTS = json.loads(
    (Path(__file__).parents[1] / "golden" / "vast_requests.json").read_text(encoding="utf-8")
)
ASK, INSTANCE, OTHER, MISSING = "12345678", "7835610", "7835611", "999"


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Vastai = Callable[..., Ended]


@pytest.fixture
def vast() -> Iterator[Driver]:
    options = Options(boot_seconds=(60, 60), ignored_filters=())
    with VastSimulator(options, virtual=True) as simulator, Driver(simulator) as driver:
        yield driver


@pytest.fixture
def vastai(vast: Driver, tmp_path: Path) -> Vastai:
    """Runs the command line against the simulator, in a home of its own."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "VAST_URL": vast.vast.url,
        "VAST_API_KEY": vast.vast.key,
        "VASTAI_NO_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1",
    }

    def run(*words: str, **more: str) -> Ended:
        command = [str(Path(sys.executable).with_name("vastai")), *words]
        done = subprocess.run(
            command, env={**env, **more}, capture_output=True, text=True, timeout=240, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(request, id=f"{index}-{request['method']}-{request['path'].strip('/')}")
        for index, request in enumerate(REQUESTS)
    ],
)
def test_every_request_of_the_command_line_is_accepted(
    vast: Driver, request_: dict[str, Any]
) -> None:
    offers = vast.search()
    first, second = vast.rent(offers[0]), vast.rent(offers[1])
    vast.advance(60)
    body = json.dumps(request_["body"]).replace(OTHER, str(second))
    if request_["path"].startswith("/api/v0/asks/"):
        body = json.dumps({**request_["body"], "price": offers[2]["min_bid"] * 1.1})
    path = request_["path"].replace(ASK, str(offers[2]["id"])).replace(INSTANCE, str(first))

    answer = vast.http.request(
        request_["method"], path, params=request_["query"], json=json.loads(body)
    )

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().get("success", True) is True
    if MISSING in path:
        assert answer.json() == {"instances": None}


def test_the_command_line_rents_and_returns_an_instance(vast: Driver, vastai: Vastai) -> None:
    query = "num_gpus=1 reliability>0.9 inet_down>60 cuda_vers>=12.2 disk_space>=40 dph<=2"
    found = vastai("search", "offers", query, "--type", "bid", "-o", "dph+", "--raw").json
    assert found
    assert {offer["num_gpus"] for offer in found} == {1}
    prices = [offer["dph_total"] for offer in found]
    assert prices == sorted(prices)
    offer = found[0]
    bid = round(offer["min_bid"] * 1.1, 4)

    made = vastai(
        *("create", "instance", str(offer["id"]), "--image", "img", "--disk", "60", "--raw"),
        *("--label", "tsgb/abc/1", "--bid_price", str(bid), "--ssh", "--direct"),
        *("--env", "-e TSGB_RUN=abc -p 8000:8000", "--onstart-cmd", "echo run $TSGB_RUN"),
        "--cancel-unavail",
    ).json
    number = made["new_contract"]
    vast.advance(60)
    row = vastai("show", "instance", str(number), "--raw").json
    assert (row["actual_status"], row["is_bid"], row["dph_base"]) == ("running", True, bid)
    assert row["extra_env"] == {"TSGB_RUN": "abc", "-p 8000:8000": "1"}

    assert "changed" in vastai("change", "bid", str(number), "--price", str(bid + 0.01)).out
    assert vast.show(number)["dph_base"] == pytest.approx(bid + 0.01)
    assert "set to" in vastai("label", "instance", str(number), "tsgb/abc/2").out
    assert vastai("logs", str(number), "--tail", "10").out.strip() == "run abc"
    assert "stopping" in vastai("stop", "instance", str(number)).out
    assert vast.show(number)["cur_state"] == "stopped"
    assert "starting" in vastai("start", "instance", str(number)).out
    assert [row["label"] for row in vastai("show", "instances", "--raw").json] == ["tsgb/abc/2"]
    assert vastai("show", "user", "--raw").json["credit"] < 25
    assert "destroying" in vastai("destroy", "instance", str(number), "-y").out
    assert vast.bill(number)["live"] is False


def test_the_command_line_reads_all_pages(vast: Driver, vastai: Vastai) -> None:
    numbers = [vast.rent(offer, label=f"bulk/{offer['id']}") for offer in vast.search()[:30]]
    assert vastai("show", "instances", "-q").out.split() == [str(number) for number in numbers]


def test_the_command_line_rents_twice_when_the_answer_is_lost(vast: Driver, vastai: Vastai) -> None:
    """Why TSGB does not shell out to it: it sends a create again, and exits 0 on errors."""
    offer = vast.search()[0]
    vast.sim("options", {"ask_single_use": False})
    vast.sim(
        "faults", {"path": "/asks/", "when": "after", "act": "answer", "preset": "bad_gateway"}
    )
    words = ("create", "instance", str(offer["id"]), "--image", "img", "--disk", "20", "--ssh")
    price = str(offer["min_bid"] * 2)

    vastai(*words, "--bid_price", price, "--label", "twice", "--raw")

    assert vast.sim("ledger", label_prefix="twice")["max_live"] == 2
    bad_key = vastai("show", "instances", "--raw", VAST_API_KEY="wrong")
    assert (bad_key.code, json.loads(bad_key.err)["status_code"]) == (0, 404)
