"""A run on rented machines in virtual time: simulated service, machines that keep the contract, and
flows that can be killed at any call.

    with Fleet() as fleet:
        assert Flow(fleet).run() == "done"
        assert fleet.bill()["max_live"] == 1

Nothing here is slow: whoever sleeps puts the simulator's clock forward, and while it moves every
running machine does what tsgb/worker/machine.py does: reads its lease, beats, saves, ends itself.
A flow that is killed has no effect on anything from then on, whatever its `finally` tries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import SecretStr

from tests.fakes.filesystems import MemoryFiles
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.checkpoint.filesystem import FileSystem, open_filesystem
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.budget import Ledger
from tsgb.cloud.card import CardProbe
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.exchange import IN_STORE, Exchange
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.lease import Lease, LeaseState, LeaseTracker
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.reaper import ReapReport, reap
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider
from tsgb.cloud.vast.throttle import RateLimiter
from tsgb.worker.card_probe import unusable

SLICE_SECONDS = 5.0
DEAF: Mapping[str, Any] = {
    "machine_reads_lease": False,
    "steps": 10**6,
    "slice_seconds": 60.0,
    "save_seconds": 3600.0,
}
"""Arguments of a fleet whose machines work on whatever becomes of their lease, for hours of it."""
BEAT_SECONDS = 10.0
LEASE_SECONDS = 30.0
RUN = "r1"
IMAGE_GB = 0.05
"""A small image: most budgets here are a few cents, and about machines."""


@dataclass(slots=True)
class Box:
    """What one container knows; a restart begins with a new one."""

    number: int
    attempt: int
    starts: int
    since: float
    trains: bool = False
    first: int = 0
    step: int = 0
    saved: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    driver: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a probe of its card finds."""
    strips: tuple[str, ...] = ()
    """Variables that its host keeps from it."""
    ready_at: float = 0.0
    beat_at: float = -1e9
    read_at: float = -1e9
    watch: LeaseTracker | None = None
    lease: Lease | None = None
    ending: str | None = None


class Fleet:
    """The service, the store and the machines; the truth of every test."""

    def __init__(
        self,
        *,
        steps: int = 600,
        save_seconds: float = 60.0,
        boot_seconds: float = 30.0,
        machine_reads_lease: bool = True,
        fenced: bool = True,
        starts: bool = True,
        directory: Path | None = None,
        save_bytes: int = 0,
        card_gb: float = 0.0,
        slice_seconds: float = SLICE_SECONDS,
        **options: Any,
    ) -> None:
        """Prepare.

        Args:
            steps: of the whole work, one a second.
            save_seconds: between two checkpoints of a machine.
            boot_seconds: from `running` until it trains.
            machine_reads_lease: False takes the dead-man away.
            fenced: False lets a machine of an older attempt publish.
            starts: False has every bootstrap fail: the dead-man destroys it, and nobody says why.
            save_bytes: that each checkpoint sends, and the service bills.
            card_gb: memory that each machine's card must have; 0 is work without a card.
            slice_seconds: between two looks of all machines at the time.
            directory: of the store, which a reaper can find then; without it, memory.
            options: of the simulator.
        """
        image = Decimal(str(IMAGE_GB))  # and so in `mortal_flow`
        given = {"boot_seconds": (20.0, 60.0), "num_machines": 40, "credit": 25, "image_gb": image}
        self._simulator = VastSimulator(Options(**given | options), virtual=True)
        self.packages_gb = float(options.get("wheels_gb", 0.0))
        self.steps = steps
        self.save_seconds = save_seconds
        self.boot_seconds = boot_seconds
        self.machine_reads_lease = machine_reads_lease
        self.fenced = fenced
        self.starts = starts
        self.save_bytes = save_bytes
        self.card_gb = card_gb
        self._slice_seconds = slice_seconds
        self._directory = directory
        self._exchange = None if directory is None else Exchange(url=str(directory / IN_STORE))
        self.files: FileSystem = MemoryFiles(f"memory://fleet/{RUN}")
        if directory is not None:
            self.files = open_filesystem(str(directory / RUN))
        self.store = RunStore(self.files, self.files.url, sleep=lambda _: None)
        self._folders: dict[str, FileSystem] = {}
        self.documents = RunDocuments(self.store, self.seen)
        self.boxes: dict[int, Box] = {}
        self.published: list[tuple[int, int]] = []
        """(attempt, step) of every checkpoint, in the order in which they came."""
        self.claimed = 0
        self.liars: set[int] = set()
        """Attempts whose machines say that they have saved what is not there."""
        self.claims: dict[int, str] = {}
        """Attempts whose machines do nothing, and say at once that they ended so."""
        self.boast = 0
        """Updates that each of these says it saved, times the number of its attempt."""
        self.on_publish: Callable[[], object] = lambda: None
        self.events: list[tuple[float, Callable[[], object]]] = []

    def __enter__(self) -> Self:
        self._simulator.__enter__()
        self.vast = Driver(self._simulator)
        self._time = self.vast.sim("clock")["now"]
        return self

    def __exit__(self, *_: object) -> None:
        self.vast.http.close()
        self._simulator.__exit__()

    def folder(self, folder: str) -> FileSystem:
        """The files of an attempt in the exchange."""
        if folder not in self._folders:
            self._folders[folder] = MemoryFiles(f"memory://exchange/{RUN}/{folder}/{RUN}")
            if self._exchange is not None:
                url = f"{self._exchange.folder_url(RUN, folder)}/{RUN}"
                self._folders[folder] = open_filesystem(url)
        return self._folders[folder]

    def seen(self, folder: str) -> RunStore:
        """The run as the machine of an attempt sees it."""
        files = self.folder(folder)
        return RunStore(files, files.url, sleep=lambda _: None)

    def seen_by(self, attempt: int) -> RunStore:
        """The run as the machine of an attempt sees it, by the attempt's number."""
        found = self.documents.attempt(attempt)
        assert found is not None
        assert found.intent is not None
        return self.seen(found.intent.exchange)

    @property
    def key(self) -> str:
        return self._simulator.key

    @property
    def url(self) -> str:
        return self._simulator.url

    def seconds(self) -> float:
        """The clock of everybody."""
        return self._time

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._time, UTC)

    def advance(self, seconds: float) -> None:
        """Let time pass; machines work in it."""
        left = seconds
        while left > 0:
            part = min(self._slice_seconds, left)
            left -= part
            self._time = self.vast.sim("clock", {"advance_seconds": part})["now"]
            for due, event in sorted(self.events, key=lambda item: item[0]):
                if due <= self._time:
                    self.events = [item for item in self.events if item[1] is not event]
                    event()
            self._let_machines_work()

    def at(self, seconds_from_now: float, event: Callable[[], object]) -> None:
        """Have something happen later."""
        self.events.append((self._time + seconds_from_now, event))

    def bill(self) -> dict[str, Any]:
        return self.vast.sim("ledger")

    def live(self) -> list[int]:
        return [int(n) for n, bill in self.bill()["instances"].items() if bill["live"]]

    def ledger(self, budget: str = "5") -> Ledger:
        return Ledger.open(self.store, microdollars(budget))

    def progress(self) -> int:
        """Of the newest checkpoint."""
        try:
            return int(self.store.read_json("progress.json")["step"])
        except FileNotFoundError:
            return 0

    def reap(self) -> ReapReport:
        """One round of the reaper, which shares nothing with any flow but the store."""
        assert self._directory is not None
        limiter = RateLimiter(clock=self.seconds, sleep=self.advance)
        with VastClient(
            SecretStr(self.key),
            url=self.url,
            limiter=limiter,
            clock=self.seconds,
            sleep=self.advance,
            now=self.now,
        ) as vast:
            runs = DeploymentRuns(url=str(self._directory), exchange=self._exchange)
            return reap(VastProvider(vast), runs, "home", now=self.now, sleep=self.advance)

    def _let_machines_work(self) -> None:
        for row in self.vast.sim("state")["instances"]:
            label = InstanceLabel.parse(row["label"])
            if label is None or label.run != RUN:
                continue
            if row["phase"] != "running" or row["offline"]:
                if row["phase"] != "running":
                    self.boxes.pop(row["id"], None)
                continue
            box = self.boxes.get(row["id"])
            if box is None or box.starts != row["num_starts"]:
                box = Box(row["id"], label.attempt, row["num_starts"], self._time)
                box.watch = LeaseTracker(attempt=label.attempt, since=self._time)
                box.driver, box.strips = row["driver"], tuple(row["strips"])
                box.ready_at, box.bytes_down = row["ready_at"], row["downloaded_bytes"]
                self.boxes[row["id"]] = box
            self._work(box)

    def _work(self, box: Box) -> None:
        if box.ending is not None or (self.machine_reads_lease and not self._may_work(box)):
            self._leave(box, box.ending or "lease_lost")
            return
        if self._time < max(box.since, box.ready_at) + self.boot_seconds:
            return
        if not self.starts:
            self._destroy(box)
            return
        if box.attempt in self.claims:
            box.step = box.saved = self.boast * box.attempt
            self._leave(box, self.claims[box.attempt])
            return
        if not box.trains:
            if fault := self._fault_of_card(box):
                self._leave(box, "bad_host", fault)
                return
            box.trains = True
            self.claimed = max(self.claimed, box.attempt)
            box.first = box.step = box.saved = self.progress()
            box.since = self._time - self.boot_seconds
        started = self._time - box.since - self.boot_seconds
        box.step = min(self.steps, max(box.step, box.saved + int(started)))
        if box.step >= self.steps or started >= self.save_seconds:
            self._publish(box)
        if self._time - box.beat_at >= BEAT_SECONDS:
            box.beat_at = self._time
            self._beat(box)
        if box.saved >= self.steps:
            self._leave(box, "done")

    def _knows_of_card(self, box: Box) -> bool:
        return self.card_gb > 0 and "TSGB_CARD_GB" not in box.strips

    def _fault_of_card(self, box: Box) -> str:
        """As `tsgb.worker.card_probe` finds it."""
        if not self._knows_of_card(box):
            return ""
        if float(box.driver["cuda"]) < 13.0:
            return unusable(**{name: box.driver[name] for name in ("driver", "cuda", "torch_cuda")})
        return CardProbe.model_validate(box.driver).lacking(self.card_gb)

    def _may_work(self, box: Box) -> bool:
        assert box.watch is not None
        if self._time - box.read_at >= LEASE_SECONDS:
            box.read_at = self._time
            box.lease = RunDocuments(self.seen_by(box.attempt)).lease()
            if box.lease is None:
                return False
            box.watch = box.watch.saw(box.lease, self._time)
        standing = box.watch.standing(box.lease, self.now(), self._time)
        if standing is LeaseState.REVOKED:
            self._publish(box)
            box.ending = box.ending or "interrupted"
        return standing is LeaseState.HOLDS

    def _publish(self, box: Box) -> None:
        if self.fenced and box.attempt < self.claimed:
            self._leave(box, "lease_lost")
            return
        self.on_publish()
        box.saved, box.since = box.step, self._time - self.boot_seconds
        self.published.append((box.attempt, box.step))
        if self.save_bytes:
            box.bytes_up += self.save_bytes
            gigabytes = f"{Decimal(self.save_bytes) / 10**9}"
            self.vast.do(box.number, "traffic", charge="upload", gigabytes=gigabytes)
        self.store.write_json("progress.json", {"step": box.step, "attempt": box.attempt})

    def _word(self, box: Box) -> dict[str, Any]:
        arm = {"first_step": box.first, "step": box.step, "durable_step": box.saved}
        arm |= {"total_steps": self.steps, "useful_seconds": box.step - box.first}
        word = {"attempt": box.attempt, "instance_id": box.number, "arms": {"selfplay": arm}}
        if box.trains and self._knows_of_card(box):
            word["probe"] = box.driver
        return {**word, "bytes_up": box.bytes_up, "bytes_down": box.bytes_down}

    def _beat(self, box: Box) -> None:
        word = {**self._word(box), "updated_at": self.now().isoformat(), "phase": "train"}
        self.seen_by(box.attempt).write_json(f"machines/{box.attempt:04d}/beat.json", word)

    def _leave(self, box: Box, outcome: str, message: str = "") -> None:
        seen = self.seen_by(box.attempt)
        lease = RunDocuments(seen).lease()
        if lease is not None and lease.attempt == box.attempt:
            self._beat(box)
            word = {**self._word(box), "outcome": outcome, "ended_at": self.now().isoformat()}
            word["message"] = message
            seen.write_json(f"machines/{box.attempt:04d}/exit.json", word)
        box.ending = outcome
        self._destroy(box)

    def _destroy(self, box: Box) -> None:
        with suppress(httpx.HTTPError):  # then at the next look
            if self.vast.destroy(box.number).status_code in {200, 404}:
                self.boxes.pop(box.number, None)


CENT = Decimal("0.01")
MICRO = Decimal(10) ** 6


def spent(fleet: Fleet) -> Decimal:
    """Dollars, by the service's own bill."""
    return Decimal(fleet.bill()["spent"])


def causes(fleet: Fleet) -> list[str]:
    """How the attempts ended, oldest first."""
    return [ending.cause.value for ending in fleet.documents.endings()]


def assert_settled(fleet: Fleet, *, most: int = 1, budget: str = "5") -> None:
    """Nothing is left, nothing was double, the books agree with the bill."""
    assert fleet.live() == []
    assert fleet.bill()["max_live"] <= most
    ledger = fleet.ledger(budget)
    assert not any(account.is_open for account in ledger.accounts.values())
    assert abs(Decimal(ledger.spent) / MICRO - spent(fleet)) < CENT


def when_training(fleet: Fleet, what: Callable[[int], object], after: float = 120.0) -> None:
    """Do something to the machine that trains, so long after it began."""

    def look() -> None:
        trains = [box for box in fleet.boxes.values() if box.trains]
        if trains:
            fleet.at(after, lambda: what(trains[0].number))
        else:
            fleet.at(5, look)

    fleet.at(5, look)
