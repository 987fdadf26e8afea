"""The instances of the simulated Vast.ai are processes: started, killed, started again, ended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes.vast.driver import Driver, until
from tests.fakes.vast.options import Options
from tests.fakes.vast.processes import MARKER, Container
from tests.fakes.vast.server import VastSimulator

pytestmark = pytest.mark.integration

CALL = """
import os, sys, urllib.error, urllib.request
method, path, body = sys.argv[1:]
headers = {"Authorization": "Bearer " + os.environ["CONTAINER_API_KEY"]}
headers["Content-Type"] = "application/json"
url = os.environ["VAST_URL"] + path.replace("SELF", os.environ["CONTAINER_ID"])
request = urllib.request.Request(url, body.encode() or None, headers, method=method)
try:
    print(method, urllib.request.urlopen(request, timeout=60).status, flush=True)
except urllib.error.HTTPError as error:
    print(method, error.code, flush=True)
"""


@pytest.fixture
def vast() -> Iterator[Driver]:
    """Real time, and boots of a twentieth of a second."""
    with (
        VastSimulator(Options(boot_seconds=(0.05, 0.05))) as simulator,
        Driver(simulator) as driver,
    ):
        yield driver


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(vast: Driver, number: int, how_many: int) -> list[int]:
    """The numbers that an instance has logged."""
    log = until(lambda: vast.log(number), lambda log: len(log.split()) >= how_many)
    return [int(word) for word in log.split()]


def test_it_finds_what_the_service_gives_it(vast: Driver) -> None:
    number = vast.rent(
        env={"TSGB_RUN": "a b", "-p 80:80": "1"},
        onstart='echo "$CONTAINER_ID/$TSGB_RUN/$VAST_CONTAINERLABEL/$GPU_COUNT" && pwd',
    )
    lines = until(lambda: vast.log(number)).splitlines()
    gpus = vast.show(number)["num_gpus"]
    assert lines[0] == f"{number}/a b/C.{number}/{gpus}"


def test_its_image_brings_variables_and_a_rentals_own_win(vast: Driver) -> None:
    vast.sim("options", {"image_env": {"A": "image", "B": "image", "CONTAINER_ID": "image"}})
    number = vast.rent(env={"B": "rental"}, onstart='echo "$A/$B/$CONTAINER_ID"')
    assert until(lambda: vast.log(number)) == f"image/rental/{number}\n"


def test_a_host_may_lie_about_its_card_and_keep_variables_back(vast: Driver) -> None:
    offer = vast.search()[0]
    lies = {"true_card": "H100 SXM", "cuda": 12.2, "strips": ["A"]}
    vast.sim(f"machines/{offer['machine_id']}", lies)
    number = vast.rent(offer, env={"A": "1", "B": "2"}, onstart='echo "$A/$B/$SIM_CARD"')
    name, _, card = until(lambda: vast.log(number)).partition("/2/")
    found = json.loads(card)
    assert (name, found["cuda"]) == ("", "12.2")
    assert found["gpu_name"].endswith("H100 SXM")
    assert vast.show(number)["gpu_name"] == offer["gpu_name"] != "H100 SXM"


@pytest.mark.parametrize("how", ["preempt", "destroy", "stop"])
def test_all_its_processes_are_killed(vast: Driver, how: str) -> None:
    """Also one that ignores signals and one that left the group."""
    number = vast.rent(
        onstart="trap '' TERM HUP INT; setsid sh -c 'echo $$; exec sleep 300' & "
        "sleep 300 & echo $! $$; wait"
    )
    found = pids(vast, number, 3)
    assert all(is_alive(pid) for pid in found)
    if how == "preempt":
        vast.do(number, "preempt", outage_seconds=600)
    elif how == "destroy":
        vast.destroy(number)
    else:
        vast.put(str(number), {"state": "stopped"})
    until(lambda: not any(is_alive(pid) for pid in found))


IDLE = """
import os, time
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
print("up", flush=True)
time.sleep(600)
"""


def test_none_of_its_processes_is_left_when_it_was_killed_on_a_busy_machine(tmp_path: Path) -> None:
    """A signal is no end: the process ends once it gets a processor."""
    container = Container(tmp_path)
    one = f"{shlex.quote(sys.executable)} -c {shlex.quote(IDLE)}"
    container.start(["/bin/sh", "-c", f"{one} & setsid {one} & wait"], {})
    until(lambda: container.log.is_file() and container.log.read_text().count("up") == 2)
    marker = f"{MARKER}={tmp_path / 'root'}".encode()
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        container.kill()
        left: list[str] = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                environ = (entry / "environ").read_bytes() if entry.name.isdecimal() else b""
                left += [entry.name] if marker in environ.split(b"\0") else []
        assert left == []
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_zombie_runs_onstart_again_on_its_old_disk(vast: Driver) -> None:
    number = vast.rent(onstart="echo x >> starts; wc -l < starts; sleep 300")
    until(lambda: vast.log(number).split() == ["1"])
    vast.do(number, "preempt", outage_seconds=0.1)
    until(lambda: vast.log(number).split() == ["1", "2"])


def test_only_its_first_process_ends_an_instance(vast: Driver) -> None:
    offers = vast.search()
    shell = vast.rent(offers[0], onstart="exit 3")
    args = vast.rent(offers[1], runtype="args", onstart="/bin/sh", args=["-c", "echo bye; exit 3"])
    until(lambda: vast.show(args)["actual_status"] == "exited")
    row = vast.show(args)
    assert (row["intended_status"], row["cur_state"]) == ("running", "running")
    assert vast.log(args) == "bye\n"
    assert vast.show(shell)["actual_status"] == "running"


def test_its_own_key_destroys_it_and_nothing_else(vast: Driver) -> None:
    offers = vast.search()
    other = vast.rent(offers[0])
    call = f"{shlex.quote(sys.executable)} -I -S -c {shlex.quote(CALL)}"
    script = "; ".join(
        f"{call} {words}"
        for words in (
            f"DELETE /api/v0/instances/{other}/ '{{}}'",
            "GET /api/v1/instances/ ''",
            "POST /api/v0/bundles/ '{}'",
            "GET /api/v0/instances/SELF/ ''",
        )
    )
    number = vast.rent(
        offers[1], env={"VAST_URL": vast.vast.url}, onstart=f"{script}; echo .; sleep 300"
    )
    log = until(lambda: vast.log(number), lambda log: log.endswith(".\n"))
    assert log.split("\n")[:-2] == ["DELETE 403", "GET 403", "POST 403", "GET 200"]
    assert vast.listed() == [other, number]

    suicide = vast.rent(
        offers[2],
        env={"VAST_URL": vast.vast.url},
        onstart=f"{call} DELETE /api/v0/instances/SELF/ '{{}}'; sleep 300",
    )
    until(lambda: vast.bill(suicide)["live"] is False)
    assert vast.listed() == [other, number]


def test_a_host_that_is_cut_off_runs_nothing(vast: Driver) -> None:
    number = vast.rent(onstart="while :; do echo x; sleep 0.05; done")
    until(lambda: vast.log(number))
    vast.do(number, "offline")
    before = vast.log(number)
    assert vast.log(number) == before
    vast.do(number, "online")
    until(lambda: len(vast.log(number)) > len(before))


def test_everything_ends_with_the_server() -> None:
    command = [sys.executable, "-m", "tests.fakes.vast", "--port", "0", "--speed", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = dict(word.split("=") for word in process.stdout.readline().split())
        with Driver(_Running(words["VAST_URL"], words["VAST_API_KEY"])) as vast:
            number = vast.rent(onstart="echo $$; sleep 300")
            found = pids(vast, number, 1)
            assert is_alive(found[0])
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    assert not is_alive(found[0])


class _Running:
    """A simulator in another process."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
