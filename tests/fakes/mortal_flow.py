"""A flow on a simulated fleet that can be killed at any call, or told lies.

It does what flows/ do with a rented machine, without Prefect. Once it is killed it has no effect on
anything, whatever its `finally` tries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import SecretStr

from tests.fakes.filesystems import Killed
from tests.fakes.fleet import IMAGE_GB, Fleet
from tests.fakes.vast.faults import PRESETS
from tsgb.checkpoint.filesystem import DirectoryEntry, FileAddress, FileSystem
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.documents import Intent, RunDocuments
from tsgb.cloud.forecast import StartDownloads, workload
from tsgb.cloud.policy import LaunchPolicy, MonitorPolicy
from tsgb.cloud.preemption import Workload
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.provider import InstanceState, LaunchSpec
from tsgb.cloud.rented_machine import RentedMachine
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider
from tsgb.cloud.vast.throttle import RateLimiter
from tsgb.errors import Preempted, StoreUnreachable
from tsgb.types import Buffer


@dataclass
class Mortal:
    """One process that may be killed: after that nothing of it has any effect."""

    kill_at: str | None = None
    """The point at which it dies, as in `passed`; `#2` behind it means the second time."""
    dead: bool = False
    passed: list[str] = field(default_factory=list[str])
    on_pass: Callable[[str], object] = lambda _point: None
    on_sleep: Callable[[], object] = lambda: None
    on_answer: Callable[[Any], Any] = lambda body: body
    """Changes what the service says to this process alone."""
    refused: str | None = None
    """A preset of the simulator's faults that answers every request of this process."""
    cut_until: float | None = None
    """The store does not answer this process until then."""
    seconds: Callable[[], float] = lambda: 0.0

    def cut_store(self, seconds: float) -> None:
        self.cut_until = self.seconds() + seconds

    def check_store(self) -> None:
        self.alive()
        if self.cut_until is not None and self.seconds() < self.cut_until:
            raise StoreUnreachable("the store does not answer")

    def at(self, point: str) -> None:
        """Pass a point, or die there."""
        self.alive()
        self.passed.append(point)
        self.on_pass(point)
        if self.kill_at in {point, f"{point}#{self.passed.count(point)}"}:
            self.dead = True
            raise Killed(point)

    def alive(self) -> None:
        if self.dead:
            raise Killed("dead already")


class Flow:
    """What flows/ do with a rented machine, without Prefect: attempts until the work is done."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        kill_at: str | None = None,
        budget: str = "5",
        cap: float = 0.3,
        owner: str = "flow",
        patience: MonitorPolicy | None = None,
        session_type: type[Session] = Session,
        journal: RunStore | None = None,
        **terms: Any,
    ) -> None:
        self.fleet = fleet
        self.mortal = Mortal(kill_at, seconds=fleet.seconds)
        self.told: list[str] = []
        limiter = RateLimiter(clock=fleet.seconds, sleep=self._sleep)
        self.vast = VastClient(
            SecretStr(fleet.key),
            url=fleet.url,
            limiter=limiter,
            transport=_MortalWire(self.mortal),
            clock=fleet.seconds,
            sleep=self._sleep,
            now=fleet.now,
        )
        files = _MortalFiles(fleet.files, self.mortal)
        self.session = session_type(
            documents=RunDocuments(RunStore(files, files.url, sleep=lambda _: None), self._seen),
            provider=VastProvider(self.vast),
            launch_policy=LaunchPolicy(
                budget=microdollars(budget),
                cap=cap,
                **{"gpu_ram_gb": 0, "image_gb": IMAGE_GB, **terms},
            ),
            owner=owner,
            journal=journal,
            monitor_policy=patience or MonitorPolicy(),
            now=fleet.now,
            clock=fleet.seconds,
            sleep=self._sleep,
            note=self.told.append,
        )
        self.machine = RentedMachine(self.session, _Steps(fleet))
        self.attempts = 0

    def _seen(self, folder: str) -> RunStore:
        files = _MortalFiles(self.fleet.folder(folder), self.mortal, "exchange ")
        return RunStore(files, files.url, sleep=lambda _: None)

    def run(self, most: int = 60) -> str:
        """Attempts until the work is done, or what it raises; `killed` if it was."""
        try:
            while True:
                self.attempts += 1
                try:
                    done = self.machine.attempt(0)
                except (Preempted, StoreUnreachable):
                    if self.attempts >= most:
                        raise
                    self._sleep(1)
                else:
                    self.machine.close("done")
                    return done
        except Killed:
            return "killed"
        except Exception as error:
            self.mortal.alive()
            self.machine.close(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.mortal.dead = True

    def _sleep(self, seconds: float) -> None:
        self.mortal.alive()
        phase = self.phase()
        if phase is not None:
            self.mortal.at(phase)
        self.mortal.on_sleep()
        self.fleet.advance(seconds)
        self.mortal.alive()

    def phase(self) -> str | None:
        running = self.machine.running if hasattr(self, "machine") else None
        if running is None or running.finished:
            return None
        if running.instance is None or running.instance.state is not InstanceState.RUNNING:
            return "loading"
        if running.beat_at is None:
            return "boot"
        return "training" if running.step == 0 else "after a checkpoint"


class _Steps:
    """The work, as far as renting knows it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def begun(self) -> int:
        return self._fleet.claimed

    def is_reached(self, segment: int) -> bool:
        del segment
        return self._fleet.progress() >= self._fleet.steps

    def load(self) -> Workload:
        packages_gb = self._fleet.packages_gb
        image_gb = IMAGE_GB if packages_gb else 0.0  # else by the intended rental alone
        start = StartDownloads(image_gb=image_gb, packages_gb=packages_gb)
        return workload(0.2, disk_gb=20, start=start)

    def card_gb(self) -> float:
        return self._fleet.card_gb

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        return LaunchSpec(
            image="img", label=intent.label, price=intent.price, disk_gb=intent.disk_gb
        )

    def promote(self, attempt: int, tick: Callable[[], object]) -> None:
        """The fleet's machines save into the run."""

    def collect(self, working: int | None) -> None:
        """Likewise."""

    def updates(self) -> int:
        return self._fleet.progress()

    def has_saved(self, segment: int, running: RunningInstance) -> bool:
        return running.attempt in self._fleet.liars and bool(running.heartbeat)

    def verify(self, segment: int) -> str:
        if not self.is_reached(segment):
            raise Preempted("not there")
        return "done"

    def show(self, running: RunningInstance) -> None:
        """Nobody looks."""


class _MortalWire(httpx.BaseTransport):
    """Requests of a process: killed before one leaves, or before its answer is read."""

    def __init__(self, mortal: Mortal) -> None:
        self._mortal = mortal
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        name = _name_of(request)
        self._mortal.alive()
        if name:
            self._mortal.at(f"{name} not sent")
        if self._mortal.refused is not None:
            made = PRESETS[self._mortal.refused]
            return httpx.Response(made.status, json=made.body, request=request)
        try:
            answer = self._inner.handle_request(request)
            answer.read()
        finally:
            if name and not self._mortal.dead:
                self._mortal.at(f"{name} answered")
        return _changed(answer, request, self._mortal.on_answer)

    def close(self) -> None:
        self._inner.close()


def _changed(
    answer: httpx.Response, request: httpx.Request, change: Callable[[Any], Any]
) -> httpx.Response:
    try:
        before = answer.json()
    except ValueError:
        return answer
    after = change(before)
    if after == before:
        return answer
    return httpx.Response(answer.status_code, json=after, request=request)


def _name_of(request: httpx.Request) -> str | None:
    if request.method == "PUT" and "/asks/" in request.url.path:
        return "create"
    return "delete" if request.method == "DELETE" else None


class _MortalFiles:
    """The store of a process that may die; `before attempts/0001.json` is a point."""

    def __init__(self, inner: FileSystem, mortal: Mortal, place: str = "") -> None:
        self._inner = inner
        self._mortal = mortal
        self._place = place
        self.url = inner.url

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        self._mortal.check_store()
        return self._inner.read(path, max_bytes)

    def write(self, path: str, data: Buffer) -> None:
        self._mortal.check_store()
        self._mortal.at(f"before {self._place}{path}")
        self._inner.write(path, data)
        self._mortal.at(f"after {self._place}{path}")

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        self._mortal.check_store()
        return self._inner.entries(path)

    def delete(self, path: str) -> None:
        self._mortal.alive()
        self._inner.delete(path)

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        del source, target
        return False

    def delete_dir(self, path: str) -> None:
        self._mortal.alive()
        self._inner.delete_dir(path)
