"""`tsgb doctor --probe`: whatever happens, no instance is left, and one line says what it was.

In virtual time all troubles; with real processes a start from its script to its end, and signals.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows.probe import RUN, ProbeResult, ProbeWork, run_probe
from flows.workers import Workers
from tests.fakes.command_line import Ended, Run
from tests.fakes.filesystems import Killed
from tests.fakes.fleet import RUN as FLEET_RUN
from tests.fakes.fleet import Fleet, assert_settled
from tests.fakes.manager import Manager
from tests.fakes.mortal_flow import Flow
from tests.fakes.operator_scene import live, one_line
from tests.fakes.vast.driver import until
from tests.integration.test_rented_machine import FAKE_PROBE
from tsgb.cloud.documents import Intent
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.provider import LaunchSpec
from tsgb.errors import ExitCode, Interrupted
from tsgb.settings import Settings

pytestmark = pytest.mark.integration

CENT = Decimal("0.01")
CARD_GB = 8.0


# -- in virtual time -----------------------------------------------------------------------


class Reporting(ProbeWork):
    """A probe whose containers are those of a fleet, which need no script."""

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        return LaunchSpec(
            image="img", label=intent.label, price=intent.price, disk_gb=intent.disk_gb
        )


def probe(fleet: Fleet, flow: Flow, directory: Path, dollars: float = 0.05) -> ProbeResult:
    settings = Settings(cache_dir=directory / "cache", store=str(directory))
    work = Reporting(Workers(settings, str(directory), FLEET_RUN), flow.session)
    return run_probe(flow.session, work, dollars)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Machines that report at once; all have the card and the driver that they offer."""
    with Fleet(steps=1, card_gb=CARD_GB, directory=tmp_path) as made:
        spoil(made, cuda=13.0)
        yield made


def renter(fleet: Fleet) -> Flow:
    return Flow(fleet, gpu_ram_gb=CARD_GB, cuda=13.0)


def spoil(fleet: Fleet, **change: Any) -> None:
    """Change all machines, those that are rented too."""
    rows = [*fleet.vast.search(), *fleet.vast.sim("state")["instances"]]
    for machine in {row["machine_id"] for row in rows}:
        fleet.vast.sim(f"machines/{machine}", change)


def refuse(preset: str) -> Callable[[Fleet], None]:
    fault = {"method": "PUT", "path": "/asks/", "act": "answer", "preset": preset, "times": None}
    return lambda fleet: fleet.vast.sim("faults", fault) and None


def changed(**change: Any) -> Callable[[Fleet], None]:
    return lambda fleet: spoil(fleet, **change)


def test_a_probe_pays_for_one_machine_and_the_next_one_has_its_own_dollars(
    fleet: Fleet, tmp_path: Path
) -> None:
    for num in (1, 2):
        flow = renter(fleet)
        found = probe(fleet, flow, tmp_path)
        assert (found.failure, found.is_gone) == ("", True)
        assert found.card is not None
        assert found.boot_seconds is not None
        assert found.boot_seconds > 0
        assert_settled(fleet)
        bills = list(fleet.bill()["instances"].values())
        assert len(bills) == num
        assert abs(Decimal(found.dollars) - Decimal(bills[-1]["dollars"])) < CENT
        left = flow.session.ledger.budget - flow.session.ledger.held
        assert left / 1e6 == pytest.approx(0.05 - found.dollars), "what earlier ones cost is theirs"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (changed(fate="never_boots"), r"^bad_host: instance .*no heartbeat within 900 s of its"),
        (changed(fate="bad_image"), r"^config: instance .*manifest unknown"),
        (changed(cuda=12.4), r"^bad_host: driver .* is too old: it carries CUDA 12.4"),
        (changed(strips=["TSGB_CARD_GB"]), r"^bad_host: .*its heartbeat has no probe of the card$"),
        (changed(true_card="H100 SXM"), r"^bad_host: .*its card is 'NVIDIA GeForce H100 SXM'"),
        (refuse("forbidden"), r"^config: .*lacks a permission"),
        (refuse("spend_rate_limit"), r"^funds: .*spend_rate_limit"),
        (refuse("no_such_ask"), r"^refused: .*no_such_ask"),
        (refuse("unavailable"), r"HTTP 503"),
    ],
)
def test_what_fails_is_one_line_and_leaves_nothing(
    fleet: Fleet, tmp_path: Path, trouble: Callable[[Fleet], None], words: str
) -> None:
    flow = renter(fleet)
    if "12.4" in words:  # the offer says otherwise
        flow = Flow(fleet, gpu_ram_gb=CARD_GB)
    trouble(fleet)
    found = probe(fleet, flow, tmp_path)
    assert re.search(words, found.failure), found.failure
    assert not re.search("going on|what was trained|\n", found.failure)
    assert len(fleet.bill()["instances"]) <= 1, "one machine shows it"
    assert found.is_gone
    assert found.dollars < 0.05
    assert_settled(fleet)


def test_it_ends_when_its_dollars_are_used_up(tmp_path: Path) -> None:
    with Fleet(steps=10**6, directory=tmp_path) as fleet:
        flow = Flow(fleet)
        found = probe(fleet, flow, tmp_path, dollars=0.04)
        assert found.failure.startswith("the dollars that it may cost were used up before")
        assert 0.02 < found.dollars < 0.04
        assert_settled(fleet)


@pytest.mark.parametrize(
    "point", ["create not sent", "create answered", "loading", "boot", "delete not sent"]
)
def test_a_signal_at_any_point_ends_the_machine(fleet: Fleet, tmp_path: Path, point: str) -> None:
    flow = renter(fleet)

    def interrupt(passed: str) -> None:
        if passed == point:
            flow.mortal.on_pass = lambda _point: None
            raise KeyboardInterrupt

    def look() -> None:
        if fleet.live() and fleet.seconds() >= begun + (60 if point == "boot" else 0):
            flow.mortal.on_sleep = lambda: None
            raise KeyboardInterrupt

    begun = fleet.seconds()
    if point in {"loading", "boot"}:
        flow.mortal.on_sleep = look
    else:
        flow.mortal.on_pass = interrupt
    with pytest.raises(Interrupted, match=r"no machine of the probe is left, and it cost \$0\.0"):
        probe(fleet, flow, tmp_path)
    assert len(fleet.bill()["instances"]) == (point != "create not sent")
    assert_settled(fleet)


def killed_probe(fleet: Fleet, directory: Path, point: str = "create answered") -> int:
    """The instance that a probe leaves which is killed there."""
    killed = Flow(fleet, gpu_ram_gb=CARD_GB, cuda=13.0, kill_at=point)
    spoil(fleet, fate="never_boots")
    with pytest.raises(Killed):
        probe(fleet, killed, directory)
    spoil(fleet, fate="boots")
    [row] = [row for row in fleet.vast.sim("state")["instances"] if row["phase"] != "destroyed"]
    label = InstanceLabel.parse(row["label"])
    assert label is not None
    assert label.deadline is not None, "no document is needed to know when it must be gone"
    return int(row["id"])


@pytest.mark.parametrize("point", ["create answered", "delete not sent"])
def test_a_killed_probe_is_ended_by_the_reaper(fleet: Fleet, tmp_path: Path, point: str) -> None:
    killed_probe(fleet, tmp_path, point)
    fleet.advance(3600)
    fleet.reap()
    assert fleet.live() == []


@pytest.mark.parametrize("lease", ["whole", "torn"])
def test_a_killed_probe_is_ended_by_the_next_one(fleet: Fleet, tmp_path: Path, lease: str) -> None:
    number = killed_probe(fleet, tmp_path)
    if lease == "torn":  # it was killed while it wrote that
        (tmp_path / FLEET_RUN / "lease.json").write_text("{")
    flow = renter(fleet)
    assert probe(fleet, flow, tmp_path).failure == ""
    assert any(f"destroying instance {number}" in line for line in flow.told)
    assert_settled(fleet)


# -- with real processes -------------------------------------------------------------------

FAST = {"TSGB_PROVISION_SECONDS": "20", "TSGB_GRACE_SECONDS": "0"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Manager]:
    """An account, a store, and an exchange with a password of its own."""
    (tmp_path / "place").mkdir()
    image = {"TSGB_PROBE_COMMAND": shlex.join([sys.executable, "-c", FAKE_PROBE])}
    with Manager(tmp_path / "place", image) as manager:
        for offer in manager.vast.search():
            manager.vast.sim(f"machines/{offer['machine_id']}", {"cuda": 13.0})
        yield manager


@pytest.fixture
def doctor(tsgb: Run, place: Manager, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`doctor("--probe")`, in this process."""
    for name, value in place.environment(**FAST).items():
        monkeypatch.setenv(name, value)
    return lambda *words: tsgb("doctor", *words, "--vast-url", place.simulator.url)


def test_a_start_is_shown_from_its_script_to_its_end(
    doctor: Callable[..., Ended], place: Manager
) -> None:
    ended = doctor("--probe", "--yes")
    assert ended.code == 0, ended
    assert re.search(r"the probe rents offer .* at most 5 minutes and \$0.05", ended.err)
    for line in (
        r"ok  probe    instance \d+ \(RTX .*, machine \d+\) was rented at \$0\.\d+/h",
        r"ok  start    .*with its own password, and was heard of( \d+ s after that)?\n",
        r"ok  card     NVIDIA GeForce RTX .*CUDA 13.0",
        "ok  end      it is destroyed, and neither its number nor the list of all shows it",
        r"ok  cost     \$0\.0\d+",
    ):
        assert re.search(line, ended.out), ended.out
    assert live(place.vast) == set()
    assert list((place.directory / "machines").glob(f"{RUN}/*")) == [], "nor in the exchange"


def test_nothing_is_rented_unasked(
    doctor: Callable[..., Ended], place: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_line(doctor("--probe"), 2, r"rents a machine for up to \$0.05: give --yes too")
    one_line(doctor("--probe", "--json"), 2, "give --yes too")
    one_line(doctor("--yes"), 2, "--yes is the answer to --probe")
    one_line(doctor("--probe", "--yes", "--model", "x"), 2, "looks at no model")
    dear = doctor("--probe", "--yes", "--dollars", "0.002")
    assert dear.code == 1
    assert "NOT OK  probe    nothing was rented: machine" in dear.out
    monkeypatch.setenv("TSGB_IMAGE", "My Image")
    ended = doctor("--probe", "--yes", "--json")
    checks = {check["name"]: check for check in json.loads(ended.out)["checks"]}
    assert ended.code == 1
    assert (checks["image"]["ok"], checks["probe"]["ok"]) == (False, None)
    assert place.vast.sim("ledger")["instances"] == {}


@pytest.mark.slow
def test_a_bad_host_is_not_announced_again(doctor: Callable[..., Ended], place: Manager) -> None:
    offers = place.vast.search()
    for offer in offers:
        place.vast.sim(f"machines/{offer['machine_id']}", {"fate": "oci_error"})
    said = [doctor("--probe", "--yes") for _ in range(2)]
    assert [ended.code for ended in said] == [1, 1]
    announced = [re.findall(r"the probe rents .*machine (\d+)\) at", ended.err) for ended in said]
    rented = [re.findall(r"NOT OK  probe .*machine (\d+)\): bad_host", e.out) for e in said]
    assert announced == rented
    assert announced[0] != announced[1]


@pytest.mark.slow
def test_ctrl_c_ends_the_machine_of_the_command(place: Manager) -> None:
    for offer in place.vast.search():
        place.vast.sim(f"machines/{offer['machine_id']}", {"fate": "never_boots"})
    process = subprocess.Popen(
        [sys.executable, "-m", "tsgb.cli", "doctor", "--probe", "--yes"],
        env=place.environment(TSGB_VAST_URL=place.simulator.url, **FAST),
        cwd=place.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: live(place.vast))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert "tsgb: stopped; no machine of the probe is left, and it cost $0.0" in err
    assert live(place.vast) == set()
