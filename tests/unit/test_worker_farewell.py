"""How several ends make one, and how a machine destroys itself when the service does not listen."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.scripted_http import Reply, Script, Seen, VirtualTime
from tsgb.cloud.termination import Cause, Signs, judge
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider
from tsgb.cloud.vast.throttle import RateLimiter
from tsgb.worker.ends import EXIT_CODES, WORST_FIRST, ArmEnd, exit_record, outcome_of, worst
from tsgb.worker.farewell import Instance, Patience, end_container

KEY = SecretStr("sentinel-instance-key")
GONE = Reply(404, {"success": False, "error": "no_such_instance", "msg": "not found"})
REFUSED = Reply(404, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
DONE = Reply(body={"success": True})


@pytest.mark.parametrize(
    ("exit_code", "record", "outcome"),
    [
        (0, None, "done"),
        (1, None, "crash"),
        (2, None, "config"),
        (5, None, "lease_lost"),
        (6, None, "disk_full"),
        (7, None, "store_unreachable"),
        (130, None, "interrupted"),
        (143, None, "interrupted"),
        (-signal.SIGTERM, None, "interrupted"),
        (-signal.SIGKILL, None, "crash"),
        (None, None, "crash"),
        (1, {"outcome": "disk_full"}, "disk_full"),
        (0, {"outcome": "crash"}, "crash"),
        (7, {"outcome": "what?"}, "store_unreachable"),
    ],
)
def test_a_workers_own_word_counts_first(
    exit_code: int | None, record: dict[str, str] | None, outcome: str
) -> None:
    assert outcome_of(exit_code, record) == outcome


def test_the_worst_decides() -> None:
    assert worst(["done", "done"]) == "done"
    assert worst(["done", "interrupted", "crash"]) == "crash"
    assert worst(["crash", "disk_full", "done"]) == "disk_full"
    assert worst(["config", "lease_lost"]) == "lease_lost"
    assert worst([]) == "crash"
    assert set(EXIT_CODES) < set(WORST_FIRST)


@pytest.mark.parametrize("outcome", WORST_FIRST)
def test_the_flow_knows_every_outcome(outcome: str) -> None:
    cause = judge(Signs(instance=None, exit_record={"outcome": outcome}))
    assert (cause is Cause.WORKER) == (outcome == "crash")


def ended(arm: str, outcome: str | None, step: int = 1) -> ArmEnd:
    return ArmEnd(arm=arm, outcome=outcome, step=step, message="why", log_tail="x" * 9000)


def test_a_machine_that_was_told_to_end_is_done_if_its_workers_are() -> None:
    both = [ended("a", "done", 3), ended("b", "done", 4)]
    record = exit_record(both, outcome="interrupted", message="revoked")
    assert (record["outcome"], record["step"]) == ("done", 7)
    assert exit_record(both, outcome="lease_lost", message="m")["outcome"] == "lease_lost"
    half = [*both, ended("c", None)]
    assert exit_record(half, outcome="interrupted", message="m")["outcome"] == "interrupted"
    assert exit_record(half, outcome="interrupted", message="m")["arms"]["c"]["outcome"] is None
    assert exit_record([], outcome="config", message="a\nb")["message"] == "a b"
    assert len(record["log_tail"]) < 4200


class Scene:
    def __init__(self, *replies: Reply) -> None:
        self.time = VirtualTime()
        self.script = Script(replies)
        client = VastClient(
            KEY,
            url="https://vast.example",
            retry_seconds=0,
            transport=self.script.transport,
            limiter=RateLimiter(clock=self.time.clock, sleep=self.time.sleep),
            clock=self.time.clock,
            sleep=self.time.sleep,
        )
        self.instance = Instance(7, KEY, VastProvider(client))

    def destroy(self) -> list[Seen]:
        self.instance.destroy(Patience.of(30.0), clock=self.time.clock, sleep=self.time.sleep)
        return self.script.seen


def test_patience_follows_the_lease() -> None:
    assert Patience.of(30.0) == Patience(least_seconds=3, most_seconds=60, fallback_seconds=600)


@pytest.mark.parametrize("last", [DONE, GONE])
def test_it_asks_until_it_works(last: Reply) -> None:
    scene = Scene(Reply(502), REFUSED, Reply(429), Reply(500), last)
    assert [seen.method for seen in scene.destroy()] == ["DELETE"] * 5
    assert scene.time.seconds - 1000 < 120


def test_after_ten_minutes_it_stops_itself_too_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[SecretStr] = []
    monkeypatch.setattr("tsgb.worker.farewell.end_container", lambda key, _: ended.append(key))
    tries = 0

    def respond(seen: Seen) -> Reply:
        nonlocal tries
        tries += 1
        if seen.method == "PUT":
            assert seen.body == {"state": "stopped"}
            return DONE
        return DONE if tries > 30 else REFUSED

    scene = Scene()
    scene.script._replies = respond
    seen = scene.destroy()
    first_stop = next(i for i, one in enumerate(seen) if one.method == "PUT")
    assert first_stop > 8
    assert seen[-1].method == "DELETE"
    assert ended == [KEY], "once"
    assert scene.time.seconds - 1000 > 600


def test_the_first_process_ends_only_if_it_is_ours(tmp_path: Path) -> None:
    killed: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))

    def end() -> None:
        end_container(KEY, lambda _: None, proc=tmp_path, kill=kill)

    end()
    (tmp_path / "1").mkdir()
    environ = tmp_path / "1" / "environ"
    environ.write_bytes(b"PATH=/bin\0CONTAINER_API_KEY=another\0")
    end()
    assert killed == []
    environ.write_bytes(f"PATH=/bin\0CONTAINER_API_KEY={KEY.get_secret_value()}\0".encode())
    end()
    assert killed == [(1, signal.SIGTERM), (1, signal.SIGKILL)]
