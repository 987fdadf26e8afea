"""How a machine destroys itself while its provider does not answer as it should."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.scripted_http import Reply, Script, Seen, VirtualTime
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider
from tsgb.cloud.vast.throttle import RateLimiter
from tsgb.worker.self_destruct import DestroySchedule, SelfDestruct, end_container

KEY = SecretStr("sentinel-instance-key")
GONE = Reply(404, {"success": False, "error": "no_such_instance", "msg": "not found"})
REFUSED = Reply(404, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
DONE = Reply(body={"success": True})


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
        self.instance = SelfDestruct(7, KEY, VastProvider(client))

    def destroy(self) -> list[Seen]:
        self.instance.destroy(
            DestroySchedule.of(30.0), clock=self.time.clock, sleep=self.time.sleep
        )
        return self.script.seen


def test_the_schedule_follows_the_lease() -> None:
    assert DestroySchedule.of(30.0) == DestroySchedule(
        min_pause_seconds=3, max_pause_seconds=60, fallback_seconds=600
    )


@pytest.mark.parametrize("last", [DONE, GONE])
def test_it_asks_until_it_works(last: Reply) -> None:
    scene = Scene(Reply(502), REFUSED, Reply(429), Reply(500), last)
    assert [seen.method for seen in scene.destroy()] == ["DELETE"] * 5
    assert scene.time.seconds - 1000 < 120


def test_after_ten_minutes_it_stops_itself_too_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[SecretStr] = []
    monkeypatch.setattr("tsgb.worker.self_destruct.end_container", lambda key, _: ended.append(key))
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
