"""Heartbeats of a worker (`heartbeats/0003.json`) and of a rented machine (`.../beat.json`).

A heartbeat is written on a thread of its own, so that a store that hangs delays nothing else.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tsgb.checkpoint.documents import count_in, seconds_in
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.urls import local_path
from tsgb.cloud.card import CardProbe
from tsgb.cloud.documents import arms
from tsgb.errors import StoreError
from tsgb.logging import get_logger
from tsgb.worker.context import read_config

LOCAL_SECONDS = 1.0
"""Seconds between two heartbeats of a worker in a store on this machine's disk."""
REMOTE_SECONDS = 5.0
"""Seconds between two heartbeats of a worker in any other store."""
FLUSH_SECONDS = 5.0
"""Seconds that the last heartbeat may take to arrive."""


class HeartbeatWriter:
    """Writes the newest heartbeat, at once to a local disk and on a thread to any other store."""

    def __init__(self, run: RunStore, name: str) -> None:
        """Write nothing yet.

        Args:
            run: The run.
            name: Path of the heartbeat in the run.
        """
        self._run = run
        self._name = name
        self._remote = local_path(run.run_url) is None
        self._wake = threading.Condition()
        self._next: Mapping[str, Any] | None = None
        self._writing = False
        self._thread: threading.Thread | None = None

    @property
    def every_seconds(self) -> float:
        """Seconds between two heartbeats."""
        return REMOTE_SECONDS if self._remote else LOCAL_SECONDS

    def put(self, content: Mapping[str, Any]) -> None:
        """Write this heartbeat next, instead of one that still waits."""
        if not self._remote:
            self._write(content)
            return
        with self._wake:
            self._next = content
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until the newest heartbeat is written, or until the timeout."""
        with self._wake:
            self._wake.wait_for(lambda: self._next is None and not self._writing, timeout_seconds)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._writing = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._next is not None)
                content, self._next, self._writing = self._next, None, True
            if content is not None:
                self._write(content)

    def _write(self, content: Mapping[str, Any]) -> None:
        try:
            self._run.write_json(self._name, content)
        except StoreError as error:
            get_logger().warning("heartbeat not written", reason=str(error))


class Traffic(NamedTuple):
    """Bytes over all network interfaces except the loopback.

    Example: `Traffic(up=1_048_576, down=52_428_800)`
    """

    up: int
    """Bytes sent."""
    down: int
    """Bytes received."""

    def since(self, before: Traffic) -> Traffic:
        """Return the bytes since `before`; a counter that fell was reset to zero."""
        return Traffic(*(b - a if b >= a else b for a, b in zip(before, self, strict=True)))


def read_traffic(path: Path) -> Traffic:
    """Read the counters of a file like `/proc/net/dev`; zero if there is none."""
    up = down = 0
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, colon, counters = line.partition(":")
            fields = counters.split()
            if colon and name.strip() != "lo" and len(fields) > 8:
                down += int(fields[0])
                up += int(fields[8])
    return Traffic(up, down)


def peak_memory_of(pids: Iterable[int]) -> int:
    """Return the sum of the peak resident bytes of these processes; ended ones count nothing."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            found = re.search(
                r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
            )
            total += int(found[1]) * 1024 if found else 0
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmProgress:
    """Progress of an arm, as in `machines/0003/beat.json`.

    Example: `ArmProgress(step=120, total_steps=500, durable_step=100)`
    """

    step: int
    """Updates made."""
    total_steps: int
    """Updates of the whole run."""
    durable_step: int
    """Step of the newest checkpoint in the store; -1 if there is none."""
    first_step: int = 0
    """Step from which this attempt resumed."""
    useful_seconds: float = 0.0
    """Seconds that this attempt spent on updates, also before a restart of its container."""


class ArmMonitor:
    """Reads the progress of the arms of a machine from their runs."""

    def __init__(self, runs: Mapping[str, RunStore], attempt: int) -> None:
        """Read nothing yet.

        Args:
            runs: The run of each arm.
            attempt: Number of the attempt.
        """
        self.runs = runs
        self.progress: dict[str, ArmProgress] = {}
        """Progress of each arm, as last read."""
        self.earlier_seconds: dict[str, float] = {}
        """Useful seconds of each arm from before the container restarted in this attempt."""
        self._name = f"{attempt:04d}.json"

    @property
    def step(self) -> int:
        """Updates made, over all arms."""
        return sum(arm.step for arm in self.progress.values())

    @property
    def total_steps(self) -> int:
        """Updates of all arms' whole runs."""
        return sum(arm.total_steps for arm in self.progress.values())

    def begin(self, before: Mapping[str, Any]) -> None:
        """Read the progress of each arm, and delete records of an earlier start in this attempt.

        Args:
            before: The machine's last heartbeat in this attempt; empty at its first start.

        Raises:
            CheckpointError: An arm has no configuration.
            StoreError: The store cannot be read or written.
        """
        for arm, run in self.runs.items():
            total = read_config(run).total_steps
            newest = CheckpointReader(run).newest()
            step = -1 if newest is None else newest.step
            earlier = arms(before).get(arm, {})
            self.earlier_seconds[arm] = seconds_in(earlier, "useful_seconds")
            first_step = count_in(earlier, "first_step")
            progress = ArmProgress(
                step=max(step, 0),
                total_steps=total,
                durable_step=step,
                first_step=first_step if "first_step" in earlier else max(step, 0),
                useful_seconds=self.earlier_seconds[arm],
            )
            self._update(arm, progress)
            for folder in ("exits", "heartbeats"):
                run.delete(f"{folder}/{self._name}")

    def read(self) -> None:
        """Read the workers' heartbeats; one that cannot be read changes nothing."""
        for arm, run in self.runs.items():
            with suppress(
                FileNotFoundError, StoreError, KeyError, TypeError, ValueError, OverflowError
            ):
                heartbeat = run.read_json(f"heartbeats/{self._name}")
                seconds = self.earlier_seconds[arm] + seconds_in(heartbeat, "useful_seconds")
                progress = replace(
                    self.progress[arm],
                    step=int(heartbeat["step"]),
                    total_steps=int(heartbeat["total_steps"]),
                    durable_step=int(heartbeat.get("durable_step", -1)),
                    useful_seconds=round(seconds, 3),
                )
                self._update(arm, progress)

    def exits(self) -> dict[str, dict[str, Any]]:
        """Return the exit records of the workers that have written one, by arm."""
        found: dict[str, dict[str, Any]] = {}
        for arm, run in self.runs.items():
            with suppress(FileNotFoundError, StoreError):
                found[arm] = run.read_json(f"exits/{self._name}")
        return found

    def _update(self, arm: str, progress: ArmProgress) -> None:
        self.progress = {
            **self.progress,
            arm: progress,
        }  # another thread may read the old one


class MachineHeartbeat:
    """Writes a machine's heartbeat at its start, at each change of phase, and at an interval."""

    def __init__(
        self,
        run: RunStore,
        arms: ArmMonitor,
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
            arms: Progress of the arms, read for each heartbeat.
            attempt: Number of the attempt.
            instance_id: The provider's number of this instance.
            every_seconds: Seconds between two heartbeats.
            disk: Directory on the disk whose free space is reported.
            net_dev: File with the counters of the network.
            net_before: Copy of that file from the start of the container; None counts from now.
            pids: Returns the process ids of the workers that run now.
        """
        self._run = run
        self._arms = arms
        self._attempt = attempt
        self._name = f"machines/{attempt:04d}/beat.json"
        self._instance_id = instance_id
        self._every_seconds = every_seconds
        self._disk = disk
        self._net_dev = net_dev
        self._pids = pids
        self._before = read_traffic(net_before or net_dev)
        self._peak_memory_bytes = 0
        self._phase = "probe"
        self.probe: CardProbe | None = None
        """What the probe of the card found; None on a machine that needs none."""
        self._changed = threading.Event()
        self._stopped = False
        self._started = False

    def enter(self, phase: str) -> None:
        """Report at once that a phase begins: `probe`, `train` or `ending`."""
        self._phase = phase
        self._changed.set()

    def start(self) -> None:
        """Begin to write, until `stop` or the end of the process."""
        self._started = True
        threading.Thread(target=self._work, name="machine heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Write no more."""
        self._stopped = True
        self._changed.set()

    def write_if_none(self) -> None:
        """Write one heartbeat unless `start` was called: its traffic is billed in any case.

        Raises:
            StoreError: The store does not take it.
        """
        if not self._started:
            with suppress(OSError):  # of a disk that cannot be read
                self._run.write_json(self._name, self.measure())

    def measure(self) -> dict[str, Any]:
        """Read progress, counters and disk now, and return the heartbeat's document."""
        self._arms.read()
        traffic = read_traffic(self._net_dev).since(self._before)
        self._peak_memory_bytes = max(self._peak_memory_bytes, peak_memory_of(self._pids()))
        return {
            "attempt": self._attempt,
            "instance_id": self._instance_id,
            "updated_at": datetime.now(UTC).isoformat(),
            "phase": self._phase,
            "arms": {arm: asdict(found) for arm, found in self._arms.progress.items()},
            "step": self._arms.step,
            "total_steps": self._arms.total_steps,
            "disk_free_bytes": shutil.disk_usage(self._disk).free,
            "bytes_up": traffic.up,
            "bytes_down": traffic.down,
            "peak_memory_bytes": self._peak_memory_bytes or None,
            **({} if self.probe is None else {"probe": self.probe.model_dump()}),
        }

    def _work(self) -> None:
        logged = None
        while not self._stopped:
            self._changed.clear()
            try:
                heartbeat = self.measure()
                facts = {key: heartbeat[key] for key in ("phase", "step", "total_steps")}
                if facts != logged:  # the container's log shows progress too
                    logged = facts
                    get_logger().info("heartbeat", **facts)
                self._run.write_json(self._name, heartbeat)
            except (StoreError, OSError) as error:
                get_logger().warning("heartbeat not written", reason=str(error))
            self._changed.wait(self._every_seconds)
