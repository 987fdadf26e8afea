"""What a machine tells of itself while it works: `machines/0003/beat.json`.

It reads the arms' heartbeats, the network's counters and the disk, on a thread of its own: a store
that hangs silences it and holds nobody up.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.errors import StoreError
from tsgb.logging import get_logger
from tsgb.worker.places import read_config


class Traffic(NamedTuple):
    """Bytes since some beginning.

    Example: `Traffic(up=1_048_576, down=52_428_800)`
    """

    up: int
    down: int

    def since(self, before: Traffic) -> Traffic:
        """What came on top; a counter that began anew counts from zero."""
        return Traffic(*(b - a if b >= a else b for a, b in zip(before, self, strict=True)))


def read_traffic(path: Path) -> Traffic:
    """All interfaces but the loopback of a file like `/proc/net/dev`; zero if there is none."""
    up = down = 0
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, colon, counters = line.partition(":")
            fields = counters.split()
            if colon and name.strip() != "lo" and len(fields) > 8:
                down += int(fields[0])
                up += int(fields[8])
    return Traffic(up, down)


def peak_memory_bytes(pids: Iterable[int]) -> int:
    """Of these processes together, as far as they are alive."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            found = re.search(
                r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
            )
            total += int(found[1]) * 1024 if found else 0
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an arm is.

    Example: `Progress(step=120, total_steps=500, durable_step=100)`
    """

    step: int
    total_steps: int
    durable_step: int
    """Of the newest checkpoint in the store; -1 if there is none."""
    first_step: int = 0
    """Where this attempt found it."""
    earlier_seconds: float = 0.0
    """Useful ones before the container was started again, in this attempt."""
    useful_seconds: float = 0.0
    """Spent on updates by this attempt, those before a restart among them."""


class Arms:
    """The runs of the arms, and how far they are."""

    def __init__(self, runs: Mapping[str, RunStore], attempt: int) -> None:
        self.runs = runs
        self._name = f"{attempt:04d}.json"
        self.progress: dict[str, Progress] = {}
        """As last read."""

    @property
    def step(self) -> int:
        """The sum."""
        return sum(known.step for known in self.progress.values())

    @property
    def total_steps(self) -> int:
        """The sum."""
        return sum(known.total_steps for known in self.progress.values())

    def begin(self, before: Mapping[str, Any]) -> None:
        """Read where each arm stands, and forget how its last start in this attempt ended.

        Args:
            before: The machine's last beat in this attempt, if its container was started again.

        Raises:
            CheckpointError: An arm has no configuration.
            StoreError: The store cannot be read or written.
        """
        for arm, run in self.runs.items():
            total = read_config(run).total_steps
            newest = CheckpointReader(run).newest()
            step = -1 if newest is None else newest.step
            said = before.get("arms", {}).get(arm, {})
            known = Progress(
                step=max(step, 0),
                total_steps=total,
                durable_step=step,
                first_step=int(said.get("first_step", max(step, 0))),
                useful_seconds=float(said.get("useful_seconds", 0.0)),
                earlier_seconds=float(said.get("useful_seconds", 0.0)),
            )
            self._know(arm, known)
            for folder in ("exits", "heartbeats"):
                run.delete(f"{folder}/{self._name}")

    def look(self) -> None:
        """Read the heartbeats; one that cannot be read changes nothing."""
        for arm, run in self.runs.items():
            with suppress(FileNotFoundError, StoreError, KeyError, TypeError, ValueError):
                beat = run.read_json(f"heartbeats/{self._name}")
                earlier = self.progress[arm].earlier_seconds
                known = replace(
                    self.progress[arm],
                    step=int(beat["step"]),
                    total_steps=int(beat["total_steps"]),
                    durable_step=int(beat.get("durable_step", -1)),
                    useful_seconds=round(earlier + float(beat.get("useful_seconds", 0.0)), 3),
                )
                self._know(arm, known)

    def exits(self) -> dict[str, dict[str, Any]]:
        """The exit records, of those that left one."""
        found: dict[str, dict[str, Any]] = {}
        for arm, run in self.runs.items():
            with suppress(FileNotFoundError, StoreError):
                found[arm] = run.read_json(f"exits/{self._name}")
        return found

    def _know(self, arm: str, known: Progress) -> None:
        self.progress = {**self.progress, arm: known}  # another thread may be reading the old one


class Pulse:
    """Writes the beat at once, at each change of phase, and every so often."""

    def __init__(
        self,
        run: RunStore,
        arms: Arms,
        *,
        attempt: int,
        instance_id: int,
        every_seconds: float,
        disk: Path,
        net_dev: Path,
        net_before: Path | None,
        pids: Callable[[], Iterable[int]],
    ) -> None:
        """Write nothing yet.

        Args:
            run: The main run.
            arms: Their heartbeats are read with each beat.
            attempt: The fencing token.
            instance_id: Of the rental service.
            every_seconds: Between two beats.
            disk: A directory on the disk that fills up.
            net_dev: Counters of the network.
            net_before: The same when the container started; None begins to count now.
            pids: Of the workers that run now.
        """
        self._run = run
        self._arms = arms
        self._attempt = attempt
        self._instance_id = instance_id
        self._every_seconds = every_seconds
        self._disk = disk
        self._net_dev = net_dev
        self._pids = pids
        self._before = read_traffic(net_before or net_dev)
        self._peak_memory_bytes = 0
        self._phase = "probe"
        self._changed = threading.Event()
        self._stopped = False

    def enter(self, phase: str) -> None:
        """Go on in another phase: probe, train or ending."""
        self._phase = phase
        self._changed.set()

    def start(self) -> None:
        """Beat until `stop` or the end of the process."""
        threading.Thread(target=self._work, name="pulse", daemon=True).start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped = True
        self._changed.set()

    def beat(self) -> dict[str, Any]:
        """Look at everything once."""
        self._arms.look()
        traffic = read_traffic(self._net_dev).since(self._before)
        self._peak_memory_bytes = max(self._peak_memory_bytes, peak_memory_bytes(self._pids()))
        return {
            "attempt": self._attempt,
            "instance_id": self._instance_id,
            "updated_at": datetime.now(UTC).isoformat(),
            "phase": self._phase,
            "arms": {
                arm: {
                    "step": known.step,
                    "total_steps": known.total_steps,
                    "durable_step": known.durable_step,
                    "first_step": known.first_step,
                    "useful_seconds": known.useful_seconds,
                }
                for arm, known in self._arms.progress.items()
            },
            "step": self._arms.step,
            "total_steps": self._arms.total_steps,
            "disk_free_bytes": shutil.disk_usage(self._disk).free,
            "bytes_up": traffic.up,
            "bytes_down": traffic.down,
            "peak_memory_bytes": self._peak_memory_bytes or None,
        }

    def _work(self) -> None:
        name = f"machines/{self._attempt:04d}/beat.json"
        told = None
        while not self._stopped:
            self._changed.clear()
            try:
                beat = self.beat()
                said = {key: beat[key] for key in ("phase", "step", "total_steps")}
                if said != told:  # for whoever reads the container's log
                    told = said
                    get_logger().info("beat", **said)
                self._run.write_json(name, beat)
            except (StoreError, OSError) as error:
                get_logger().warning("beat not written", reason=str(error))
            self._changed.wait(self._every_seconds)
