"""A rented machine from its start to its end: the simulator's containers run the real scripts."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.miniature import miniature_config
from tests.fakes.rented import ARMS, Rented, plan
from tests.fakes.scripts import command_lines_with
from tests.fakes.vast.driver import until
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cloud.bundle import CodeArchive, boot, pack_code, publish_code
from tsgb.cloud.lease import grant, revoke
from tsgb.config import Arm, arm_overrides

pytestmark = pytest.mark.integration

SECONDS = 90.0
"""For what takes a few."""
MANIFEST_KEY = "sentinel-manifest-key"
SLOW = {"step_seconds": 0.3}
TOTAL = sum(miniature_config(arm_overrides(arm)).total_steps for arm in ARMS)


FAKE_PROBE = """
import json, os, sys
card = json.loads(os.environ["SIM_CARD"])
sys.exit(f"the driver carries CUDA {card['cuda']}") if float(card["cuda"]) < 13 else None
print(json.dumps(card))
"""


def at_work(rented: Rented, attempt: int = 1) -> bool:
    """Every worker has begun."""
    beat = f"{attempt:04d}.json"
    runs = [rented.run(arm) for arm in ARMS]
    return all("heartbeats" in r.list("") and beat in r.list("heartbeats") for r in runs)


def gone(rented: Rented, number: int) -> None:
    until(lambda: not rented.is_live(number), seconds=SECONDS)


def outcome(rented: Rented, attempt: int = 1) -> str:
    record = rented.exit(attempt)
    assert record is not None
    return str(record["outcome"])


def claims(rented: Rented, arm: Arm = Arm.SELFPLAY) -> int:
    return len(rented.run(arm).list("claims"))


def processes_of(rented: Rented, number: int, words: str) -> list[int]:
    """Process ids of an instance whose command line has these words."""
    marks = {f"CONTAINER_ID={number}".encode(), f"TSGB_VAST_URL={rented.vast.vast.url}".encode()}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            mine = marks <= set((entry / "environ").read_bytes().split(b"\0"))
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
        if mine and words in line:
            found.append(int(entry.name))
    return found


def test_it_trains_every_arm_and_destroys_itself(tmp_path: Path) -> None:
    with Rented(tmp_path) as rented:
        rented.grant(1)
        number = rented.rent(1)
        gone(rented, number)
        record, beat = rented.exit(1), rented.beat(1)
        assert record is not None
        assert (record["outcome"], record["step"]) == ("done", TOTAL)
        for arm in ARMS:
            newest = CheckpointStore(rented.run(arm)).newest()
            assert newest is not None
            end = record["arms"][arm.value]
            assert (end["step"], end["durable_step"]) == (newest.step, newest.step)
            assert end["outcome"] == "done"
        assert beat is not None
        assert (beat["attempt"], beat["instance_id"]) == (1, number)
        [asked] = rented.requests("DELETE", number)
        assert asked["status"] == 200


def test_the_code_comes_from_the_store(tmp_path: Path) -> None:
    says = [sys.executable, "-c", "import tsgb; print(tsgb.__file__)"]
    with Rented(tmp_path, TSGB_WORKER_COMMAND=shlex.join(says)) as rented:
        rented.grant(1)
        code = publish_code(rented.run(), pack_code())
        gone(rented, rented.rent(1, code=code))
        record = rented.exit(1)
        assert record is not None
        assert f"{tmp_path}/code/{code.sha256}/tsgb/__init__.py" in record["log_tail"]


def test_a_real_worker_over_webdav_and_no_secret_is_shown(tmp_path: Path) -> None:
    """Nor does it leave a secret on the container's disk or in what it wrote to the store."""
    (tmp_path / "dav").mkdir()
    real = shlex.join([sys.executable, "-m", "tsgb.cli", "worker"])
    log, shown = "", list[str]()
    with (
        serve(dav_app(tmp_path / "dav")) as url,
        Rented(
            tmp_path,
            store=f"{url}/runs",
            user=USER,
            password=PASSWORD,
            TSGB_WORKER_COMMAND=real,
            TSGB_LEASE_POLL_SECONDS="1",
        ) as rented,
    ):
        rented.grant(1)
        number = rented.rent(1, arms=[Arm.SELFPLAY])
        secrets = [PASSWORD, MANIFEST_KEY, rented.vast.vast.key]
        while rented.is_live(number):
            log = rented.log(number) or log
            for secret in secrets:
                shown += command_lines_with(secret)
        record = rented.exit(1)
        assert record is not None, log
        assert record["outcome"] == "done", record
        assert record["useful_seconds"] > 0
        newest = CheckpointStore(rented.run()).newest()
        assert newest is not None
        assert newest.step == miniature_config().total_steps
    assert shown == []
    assert '"phase": "train"' in log
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = [log, *(path.read_bytes().decode(errors="replace") for path in files)]
    assert len(texts) > 10
    assert [text for text in texts if any(secret in text for secret in secrets)] == []


def test_a_revoked_lease_ends_it_with_its_work_saved(tmp_path: Path) -> None:
    with Rented(tmp_path, TSGB_FAKE=plan(r1=SLOW, r1_sft=SLOW)) as rented:
        lease = rented.grant(1)
        number = rented.rent(1)
        until(lambda: at_work(rented), seconds=SECONDS)
        rented.write(revoke(lease, "the budget is used up"))
        gone(rented, number)
        assert outcome(rented) == "interrupted"
        newest = CheckpointStore(rented.run()).newest()
        assert newest is not None
        assert newest.step > 0


def test_when_the_flow_is_dead_the_lease_ends_it(tmp_path: Path) -> None:
    deaf = {"hang": [1]}
    fake = plan(r1=deaf, r1_sft=deaf)
    with Rented(tmp_path, TSGB_FAKE=fake, TSGB_GRACE_SECONDS="0.5") as rented:
        rented.grant(1, seconds=8.0)
        number = rented.rent(1)
        gone(rented, number)
        assert outcome(rented) == "lease_lost"


def test_a_zombie_destroys_itself_before_any_worker_starts(tmp_path: Path) -> None:
    with Rented(tmp_path, TSGB_FAKE=plan(r1=SLOW, r1_sft=SLOW)) as rented:
        lease = rented.grant(1)
        number = rented.rent(1)
        until(lambda: at_work(rented), seconds=SECONDS)
        rented.vast.do(number, "preempt", outage_seconds=1)
        before = claims(rented)
        rented.write(grant(lease, run="r1", attempt=2, owner="me", now=datetime.now(UTC)))
        gone(rented, number)
        assert rented.vast.truth(number)["num_starts"] == 2
        assert (outcome(rented), claims(rented)) == ("lease_lost", before)


def test_one_that_comes_back_and_still_holds_the_lease_goes_on(tmp_path: Path) -> None:
    with Rented(tmp_path, TSGB_FAKE=plan(r1=SLOW)) as rented:
        rented.grant(1)
        number = rented.rent(1)
        until(lambda: at_work(rented), seconds=SECONDS)
        rented.vast.do(number, "preempt", outage_seconds=0.2)
        gone(rented, number)
        assert (outcome(rented), claims(rented)) == ("done", 2), rented.exit(1)


def test_a_store_that_cannot_be_reached(tmp_path: Path) -> None:
    with Rented(tmp_path) as rented:
        made = boot(
            run_url="http://127.0.0.1:9/runs/r1",
            attempt=1,
            arms=["selfplay"],
            code=publish_code(rented.run(), pack_code()),
            vast_url=rented.vast.vast.url,
            webdav_user=None,
            webdav_pass=None,
            boot_seconds=60,
        )
        env = {name: value.get_secret_value() for name, value in made.env.items()}
        number = rented.vast.rent(onstart=made.onstart, env=env)
        gone(rented, number)
        assert [one["status"] for one in rented.requests("DELETE", number)] == [200]


def test_a_key_that_may_not_destroy_stops_it_at_least(tmp_path: Path) -> None:
    with Rented(tmp_path) as rented:
        fault = {"method": "DELETE", "act": "answer", "preset": "forbidden", "times": None}
        rented.vast.sim("faults", fault)
        rented.grant(1)
        number = rented.rent(1)
        until(lambda: rented.vast.truth(number)["phase"] == "stopped", seconds=SECONDS)
        assert outcome(rented) == "done"
        assert len(rented.requests("DELETE", number)) > 1
        assert processes_of(rented, number, "") == []


def test_a_service_that_is_away_is_asked_until_it_is_back(tmp_path: Path) -> None:
    with Rented(tmp_path) as rented:
        rented.vast.sim("faults", {"path": "/instances/", "act": "close"})
        rented.grant(1)
        number = rented.rent(1)
        gone(rented, number)
        assert [one["fault"] for one in rented.requests("DELETE", number)] == ["close", None]


def test_without_its_code_the_shell_destroys_it(tmp_path: Path) -> None:
    with Rented(tmp_path) as rented:
        rented.grant(1)
        code = CodeArchive(f"{rented.run().run_url}/code/none.tar.gz", "0" * 64)
        number = rented.rent(1, code=code)
        gone(rented, number)
        record = rented.exit(1)
        assert record is not None
        assert record["outcome"] == "config"
        assert record["message"].endswith("code/none.tar.gz: there is no such file")


def test_a_killed_watcher_leaves_nothing_running(tmp_path: Path) -> None:
    with Rented(tmp_path, TSGB_FAKE=plan(r1=SLOW, r1_sft=SLOW), TSGB_GRACE_SECONDS="3") as rented:
        rented.grant(1)
        number = rented.rent(1)
        until(lambda: at_work(rented), seconds=SECONDS)
        [watcher] = processes_of(rented, number, " worker machine ")
        os.kill(watcher, signal.SIGKILL)
        until(lambda: processes_of(rented, number, " run --resume-path ") == [], seconds=SECONDS)
        record = rented.run().read_json("exits/0001.json")
        assert record["outcome"] == "interrupted", "it saved and went"
        gone(rented, number)


@pytest.mark.parametrize("card", ["good", "old driver"])
def test_a_machine_uses_its_card_before_any_work(tmp_path: Path, card: str) -> None:
    """The probe of the simulated host tells what the driver in its container would."""
    probe = shlex.join([sys.executable, "-c", FAKE_PROBE])
    with Rented(tmp_path, TSGB_PROBE_COMMAND=probe) as rented:
        for offer in rented.vast.search():
            cuda = 13.0 if card == "good" else 12.4
            rented.vast.sim(f"machines/{offer['machine_id']}", {"cuda": cuda})
        rented.grant(1)
        gone(rented, rented.rent(1, worker_env={"TSGB_CARD_GB": "8"}))
        record, beat = rented.exit(1), rented.beat(1)
        assert record is not None
        assert beat is not None
        if card == "good":
            assert record["outcome"] == "done"
            assert beat["probe"]["tflops"] > 0
        else:
            assert record["outcome"] == "bad_host"
            assert record["message"] == "the driver carries CUDA 12.4"
            assert "probe" not in beat
            assert "claims" not in rented.run().list("")
