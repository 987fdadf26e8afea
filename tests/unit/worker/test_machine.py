"""The watcher of a rented machine, in this process: its workers are fakes, its service a script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.dav_server import dav_app
from tests.fakes.dav_server import serve as serve_dav
from tests.fakes.machine_scene import ARMS, KEY, SLOW, TOTAL, Scene
from tests.fakes.rented import ROOT
from tests.fakes.scripted_http import Reply, Script, serve
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cloud.lease import end, grant, revoke
from tsgb.config import Arm
from tsgb.errors import ExitCode, UsageError
from tsgb.worker.machine import WorkerMachine


@pytest.fixture
def scene(tmp_path: Path, handlers: None) -> Iterator[Scene]:
    script = Script([Reply(body={"success": True})])
    with serve(script) as url:
        yield Scene(tmp_path, url, script)


def test_it_is_torch_free() -> None:
    code = (
        "import sys, tsgb.worker.machine, tsgb.cloud.bundle\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'prefect', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_arm_alone_is_trained_in_its_own_run(scene: Scene) -> None:
    run = scene.run(Arm.SFT)
    run.write_json("lease.json", scene.lease.to_json())
    machine = WorkerMachine(scene.context, run.run_url, 1, [Arm.SFT])
    assert machine.run() == ExitCode.OK
    record = run.read_json("machines/0001/exit.json")
    assert (record["outcome"], record["step"]) == ("done", TOTAL[Arm.SFT])
    newest = CheckpointStore(run).newest()
    assert newest is not None
    assert newest.step == TOTAL[Arm.SFT]
    with pytest.raises(UsageError, match="arms sft, frozen lack 'selfplay', whose run is"):
        WorkerMachine(scene.context, run.run_url, 1, [Arm.SFT, Arm.FROZEN])


def test_without_arms_it_shows_that_it_works_and_destroys_itself(scene: Scene) -> None:
    run = scene.run()
    run.delete("config.json")
    assert WorkerMachine(scene.context, run.run_url, 1, []).run() == ExitCode.OK
    record, beat = (run.read_json(f"machines/0001/{name}.json") for name in ("exit", "beat"))
    assert (record["outcome"], record["arms"]) == ("done", {})
    assert (beat["instance_id"], beat["arms"]) == (77, {})
    assert scene.destroyed == 1
    run.write_json("lease.json", end(scene.lease, "its flow ended").to_json())
    assert WorkerMachine(scene.context, run.run_url, 1, []).run() == ExitCode.LEASE_LOST


def test_all_arms_are_trained_then_it_destroys_itself(scene: Scene) -> None:
    assert scene.work() == ExitCode.OK
    record = scene.exit()
    assert record["outcome"] == "done"
    assert record["step"] == sum(TOTAL.values())
    for arm in ARMS:
        end = record["arms"][arm.value]
        assert (end["step"], end["durable_step"], end["outcome"]) == (
            TOTAL[arm],
            TOTAL[arm],
            "done",
        )
        newest = CheckpointStore(scene.run(arm)).newest()
        assert newest is not None
        assert newest.step == TOTAL[arm]
    [asked] = scene.script.seen
    assert (asked.method, asked.path) == ("DELETE", "/api/v0/instances/77/")
    assert asked.headers["authorization"] == f"Bearer {KEY.get_secret_value()}"
    assert scene.context.instance.alive_file is not None
    assert scene.context.instance.alive_file.exists()


def test_the_beat_tells_how_far_it_is(scene: Scene) -> None:
    scene.plan(r1=SLOW)
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        try:
            seen.append(scene.run().read_json("machines/0001/beat.json"))
        except FileNotFoundError:
            return False
        return seen[-1]["phase"] == "ending"

    scene.meanwhile(look, lambda: None)
    assert scene.work() == ExitCode.OK
    phases = [beat["phase"] for beat in seen]
    assert phases == sorted(phases, key=["probe", "train", "ending"].index)
    assert "train" in phases
    first, last = seen[0], scene.run().read_json("machines/0001/beat.json")
    assert first["total_steps"] == last["total_steps"] == sum(TOTAL.values())
    assert (first["attempt"], first["instance_id"]) == (1, 77)
    assert first["arms"]["sft"] == {
        "step": 0,
        "total_steps": TOTAL[Arm.SFT],
        "durable_step": -1,
        "first_step": 0,
        "useful_seconds": 0.0,
    }
    assert (first["arms"]["sft"]["first_step"], last["arms"]["sft"]["first_step"]) == (0, 0)
    steps = [beat["step"] for beat in seen]
    assert steps == sorted(steps)
    assert first["disk_free_bytes"] > 0
    assert (last["bytes_up"], last["bytes_down"]) == (0, 0)
    assert max(beat["peak_memory_bytes"] or 0 for beat in seen) > 10e6


def test_one_arm_that_fails_ends_the_others(scene: Scene) -> None:
    scene.plan(r1=SLOW, r1_sft={"crash": [1]})
    assert scene.work() == ExitCode.FAILURE
    record = scene.exit()
    assert record["outcome"] == "crash"
    assert record["message"] == "sft: ValueError: the fake crashes"
    assert record["arms"]["selfplay"]["outcome"] in {"interrupted", None}
    assert record["arms"]["sft"]["outcome"] == "crash"
    assert scene.destroyed == 1


def test_a_worker_without_a_word_is_judged_by_its_end(scene: Scene) -> None:
    command = [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"]
    assert scene.work(worker_command=command) == ExitCode.FAILURE
    record = scene.exit()
    assert record["outcome"] == "crash"
    assert record["message"].endswith(": exit code 3: no such thing")  # either may be first
    assert "no such thing" in record["log_tail"]


def test_a_worker_that_is_killed_is_a_crash_for_which_there_is_a_guess(scene: Scene) -> None:
    scene.plan(r1={"vanish": [1]})
    scene.work()
    assert scene.exit()["outcome"] == "crash"
    assert "out of memory" in scene.exit()["message"]


@pytest.mark.parametrize(("max_parallel", "shares"), [(1, "1"), (2, "2"), (16, "2")])
def test_workers_divide_the_memory(scene: Scene, max_parallel: int, shares: str) -> None:
    code = "import os, sys; print(os.environ['TSGB_MEMORY_SHARES']); sys.exit(3)"
    scene.work(worker_command=[sys.executable, "-c", code], max_parallel=max_parallel)
    assert scene.exit()["message"].endswith(f": exit code 3: {shares}")


def test_workers_do_not_get_the_key(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsgb.settings import child_environment, load_settings

    monkeypatch.setenv("CONTAINER_ID", "77")
    monkeypatch.setenv("CONTAINER_API_KEY", KEY.get_secret_value())
    settings = load_settings()
    assert settings.container_id == "77"
    assert "instance-key" not in repr(settings)
    assert "CONTAINER_API_KEY" not in child_environment(settings)


@pytest.mark.parametrize(
    "missing",
    [
        {"container_id": None},
        {"container_api_key": None},
        {"container_id": "seven"},
        {"vast_url": "http://vast.example.org"},
    ],
)
def test_without_a_way_to_destroy_itself_it_trains_nothing(
    scene: Scene, missing: dict[str, Any]
) -> None:
    assert scene.work(**missing) == ExitCode.USAGE
    assert scene.exit()["outcome"] == "config"
    assert (scene.claims(), scene.destroyed) == ([], 0)


@pytest.mark.parametrize("lease", ["absent", "others", "revoked", "ended", "over"])
def test_a_zombie_ends_before_any_worker_starts(scene: Scene, lease: str) -> None:
    now = datetime.now(UTC)
    match lease:
        case "absent":
            scene.run().delete("lease.json")
        case "others":
            scene.put(grant(scene.lease, run="r1", attempt=2, owner="me", now=now))
        case "revoked":
            scene.put(revoke(scene.lease, "enough"))
        case "ended":
            scene.put(end(scene.lease, "done"))
        case _:
            past = now - timedelta(hours=3)
            scene.put(grant(None, run="r1", attempt=1, owner="me", now=past))
    assert scene.work() == ExitCode.LEASE_LOST
    assert scene.exit()["outcome"] == "lease_lost"
    assert (scene.claims(), scene.destroyed) == ([], 1)


def test_a_zombie_leaves_the_record_of_its_attempt_alone(scene: Scene) -> None:
    scene.work()
    scene.put(end(scene.lease, "done"))
    assert scene.work() == ExitCode.LEASE_LOST
    assert scene.exit()["outcome"] == "done"


def test_a_revoked_lease_saves_and_ends(scene: Scene) -> None:
    scene.plan(r1=SLOW, r1_sft=SLOW)
    scene.meanwhile(scene.started, lambda: scene.put(revoke(scene.lease, "the budget is used up")))
    assert scene.work() == ExitCode.INTERRUPTED
    record = scene.exit()
    assert record["outcome"] == "interrupted"
    assert "the budget is used up" in record["message"]
    newest = CheckpointStore(scene.run()).newest()
    assert newest is not None
    assert newest.step == record["arms"]["selfplay"]["step"] > 0
    assert scene.destroyed == 1


def test_another_attempt_ends_it(scene: Scene) -> None:
    scene.plan(r1=SLOW, r1_sft=SLOW)
    second = grant(scene.lease, run="r1", attempt=2, owner="me", now=datetime.now(UTC))
    scene.meanwhile(scene.started, lambda: scene.put(second))
    assert scene.work() == ExitCode.LEASE_LOST
    assert (scene.exit()["outcome"], scene.destroyed) == ("lease_lost", 1)


def test_a_lease_that_nobody_renews_ends_it(scene: Scene) -> None:
    """The flow is dead; a worker that is deaf is taken away."""
    scene.plan(r1={"hang": [1]}, r1_sft={"hang": [1]})
    ttl = timedelta(seconds=3)
    scene.put(grant(None, run="r1", attempt=1, owner="me", now=datetime.now(UTC), ttl=ttl))
    assert scene.work(grace_seconds=0.2) == ExitCode.LEASE_LOST
    assert (scene.exit()["outcome"], scene.destroyed) == ("lease_lost", 1)


def test_a_store_that_hangs_holds_nothing_up(scene: Scene, tmp_path: Path) -> None:
    """It takes requests and never answers, as a dead disk behind a living server does."""
    (tmp_path / "dav").mkdir()
    answers, inner = threading.Event(), dav_app(tmp_path / "dav", None)
    answers.set()

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        answers.wait()
        return inner(environ, start)

    with serve_dav(app) as url:
        scene.store = f"{url}/runs"
        scene.begin()
        scene.plan(r1=SLOW, r1_sft=SLOW)
        ttl = timedelta(seconds=6)
        scene.put(grant(None, run="r1", attempt=1, owner="me", now=datetime.now(UTC), ttl=ttl))
        scene.meanwhile(scene.started, answers.clear)
        code = scene.work(grace_seconds=0.2)
        silent = not answers.is_set()
        answers.set()
        assert (code, silent, scene.destroyed) == (ExitCode.LEASE_LOST, True, 1)


def test_a_signal_is_passed_on_and_the_instance_left_to_the_flow(scene: Scene) -> None:
    scene.plan(r1=SLOW, r1_sft=SLOW)
    scene.meanwhile(scene.started, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert scene.work() == ExitCode.INTERRUPTED
    record = scene.exit()
    assert (record["outcome"], record["message"]) == ("interrupted", "stopped by SIGTERM")
    assert record["arms"]["selfplay"]["outcome"] == "interrupted"
    assert CheckpointStore(scene.run()).newest() is not None
    assert scene.destroyed == 0


def test_the_container_may_start_again_in_the_same_attempt(scene: Scene) -> None:
    scene.plan(r1={"vanish": [1]})
    scene.work()
    assert scene.exit()["outcome"] == "crash"
    scene.plan()
    assert scene.work() == ExitCode.OK
    record = scene.exit()
    assert record["outcome"] == "done"
    assert len(scene.claims()) == 2
    assert record["step"] == sum(TOTAL.values())


@pytest.mark.parametrize("what", ["small", "read-only", "no config", "no store"])
def test_what_is_wrong_with_a_machine_has_a_name(scene: Scene, what: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if what == "small":
        changes, outcome = {"min_free_gb": 1e9}, "disk_full"
    elif what == "read-only":
        (tmp_path / "file").touch()
        changes = {"cache_dir": tmp_path / "file" / "cache"}
        outcome = "bad_host"
    elif what == "no config":
        scene.run(Arm.SFT).delete("config.json")
        outcome = "config"
    else:
        url = "http://127.0.0.1:9/r1"
        machine = WorkerMachine(scene.context, url, 1, ARMS)
        assert machine.run() == ExitCode.STORE_UNREACHABLE
        assert scene.destroyed == 1
        return
    scene.work(**changes)
    assert (scene.exit()["outcome"], scene.destroyed) == (outcome, 1)
    assert scene.claims() == []


def test_whatever_goes_wrong_here_it_is_destroyed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(WorkerMachine, "_train", fails)
    assert scene.work() == ExitCode.FAILURE
    assert scene.exit()["message"] == "the watcher failed: RuntimeError: a bug"
    monkeypatch.setattr(WorkerMachine, "_record", fails)
    assert scene.work() == ExitCode.FAILURE
    assert scene.destroyed == 2


def test_a_container_that_starts_again_goes_on_counting(scene: Scene) -> None:
    """Within its attempt: what it did before is its own, and is not done twice."""
    arm = {"first_step": 0, "step": 4, "durable_step": 3, "useful_seconds": 12.5}
    before = {"arms": {"sft": {**arm, "first_step": 2}, "selfplay": arm}}
    scene.run().write_json("machines/0001/beat.json", before)
    scene.run(Arm.SFT).write_json("heartbeats/0001.json", {"step": 9, "total_steps": 9})
    assert scene.work() == ExitCode.OK
    ends = scene.exit()["arms"]
    beat = scene.run().read_json("machines/0001/beat.json")["arms"]
    for name, first in (("sft", 2), ("selfplay", 0)):
        assert beat[name]["first_step"] == first
        assert ends[name]["useful_seconds"] >= 12.5
        assert beat[name]["step"] == TOTAL[Arm(name)]


def test_what_came_before_the_watcher_is_traffic_too(scene: Scene, tmp_path: Path) -> None:
    counters = "eth0: {} 0 0 0 0 0 0 0 {} 0 0 0 0 0 0 0\n"
    now, then = tmp_path / "now", tmp_path / "then"
    now.write_text(counters.format(5_000, 700))
    then.write_text(counters.format(1_000, 100))
    assert scene.work(net_dev=now, net_before=then) == ExitCode.OK
    beat = scene.run().read_json("machines/0001/beat.json")
    assert (beat["bytes_down"], beat["bytes_up"]) == (4_000, 600)


def probe_command(**changes: Any) -> list[str]:
    """A program that finds a card as the real one does."""
    found = {"gpu_name": "NVIDIA GeForce RTX 3090", "cuda": "13.0", "torch_cuda": "13.0"}
    found |= {"memory_gb": 25.4, "free_gb": 25.0, "seconds": 2.0, "tflops": 60.0} | changes
    return [sys.executable, "-c", f"print({json.dumps(found)!r})"]


def test_the_first_heartbeat_has_the_probe_of_the_card(scene: Scene) -> None:
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        with suppress(FileNotFoundError):
            seen.append(scene.run().read_json("machines/0001/beat.json"))
        return bool(seen)

    scene.meanwhile(look, lambda: None)
    assert scene.work(card_gb=24.0, probe_command=probe_command()) == ExitCode.OK
    last = scene.run().read_json("machines/0001/beat.json")
    for beat in (seen[0], last):
        assert beat["probe"]["gpu_name"] == "NVIDIA GeForce RTX 3090"
        assert (beat["probe"]["memory_gb"], beat["probe"]["tflops"]) == (25.4, 60.0)


def test_a_machine_whose_card_fails_ends_before_any_worker(scene: Scene, tmp_path: Path) -> None:
    """What it has downloaded until then is told after the reason."""
    counters = tmp_path / "now"
    counters.write_text("eth0: 5000 0 0 0 0 0 0 0 700 0 0 0 0 0 0 0\n")
    (none := tmp_path / "then").write_text("")
    code = scene.work(
        card_gb=24.0, probe_command=probe_command(memory_gb=8.0), net_dev=counters, net_before=none
    )
    assert code == ExitCode.FAILURE
    record, beat = scene.exit(), scene.run().read_json("machines/0001/beat.json")
    assert record["outcome"] == "bad_host"
    assert record["message"].endswith("RTX 3090 has 8.0 GB, and 24 GB were promised")
    assert "probe" not in beat
    assert (beat["bytes_down"], beat["bytes_up"]) == (5000, 700)
    assert (scene.claims(), scene.destroyed) == ([], 1)


def test_a_lease_that_is_revoked_during_the_probe_ends_it(scene: Scene, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(300)"
    scene.meanwhile(begun.exists, lambda: scene.put(revoke(scene.lease, "enough")))
    command = [sys.executable, "-c", code]
    assert scene.work(card_gb=24.0, probe_command=command) == ExitCode.LEASE_LOST
    assert (scene.claims(), scene.destroyed) == ([], 1)


def test_work_that_needs_no_card_looks_for_none(scene: Scene) -> None:
    assert scene.work(probe_command=["/no/such/program"]) == ExitCode.OK
    assert "probe" not in scene.run().read_json("machines/0001/beat.json")
