"""A run whose workers keep dying, over a store that keeps failing, until it is done all the same.

    Chaos(run_url, server_disk, cache, seed=3).run(kills=10)

A life is a real worker process. It is forked from a process that has imported what a worker
imports, since the imports take seconds and everything else a fraction of one. The generator that
decides who dies when, and which byte rots, is the test's own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from pydantic import SecretStr

from tests.fakes.contexts import worker_context
from tests.fakes.dav_server import PASSWORD, USER
from tsgb.checkpoint.layout import CHECKPOINTS
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.errors import CheckpointError, ExitCode, TSGBError
from tsgb.plugins import Trust
from tsgb.worker.train import train

LIVES = 100
"""More than any run here needs."""
LIFE_SECONDS = 120.0
SIGTERM_SHARE = 0.3
ROT_SHARE = 0.5
NEW_MACHINE_SHARE = 0.75
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "tests.fakes.miniature", "peft"])


def live(
    url: str, cache: Path, log: Path, updates: Connection, *, waits_after: int | None = None
) -> None:
    """One worker's life, in a process of its own; after a later update than that it waits."""

    def tell(metrics: Mapping[str, Any]) -> None:
        updates.send(metrics["step"])
        if waits_after is not None and metrics["step"] > waits_after:
            signal.pause()

    with log.open("a") as sys.stderr:
        context = worker_context(
            cache, user=USER, password=SecretStr(PASSWORD), trust=Trust(all=True)
        )
        try:
            train(context, url, on_update=tell)
        except TSGBError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.exit(int(error.exit_code))


@dataclass
class Chaos:
    """What befalls one run."""

    url: str
    """Of the run, through the bad network."""
    disk: Path
    """Its directory on the server."""
    cache: Path
    """Of the machines on which the workers live."""
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    """SIGKILL, SIGTERM, rotten; and the lives that ended otherwise, by exit code."""

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)
        self.log = self.cache / f"chaos-{self.seed}.log"

    @property
    def kills(self) -> int:
        """Workers that a signal ended."""
        return self.counts["SIGKILL"] + self.counts["SIGTERM"]

    def run(self, kills: int) -> None:
        """Let workers live until so many were killed and the run is done."""
        for _ in range(LIVES):
            if self._rng.random() < NEW_MACHINE_SHARE:
                shutil.rmtree(self.cache / "files", ignore_errors=True)
            killed, code = self._live(mortal=self.kills < kills)
            if code == ExitCode.OK and not killed:
                return
            if killed:
                self.counts[killed] += 1
            else:
                self.counts[ExitCode(code).name] += 1
            self._rot()
        raise AssertionError(f"not done after {LIVES} lives: {self.counts}")

    def _live(self, *, mortal: bool) -> tuple[str | None, int]:
        """The name of the signal that ended it, and its exit code."""
        name = "SIGTERM" if self._rng.random() < SIGTERM_SHARE else "SIGKILL"
        updates, seconds = self._rng.randrange(4), self._rng.uniform(0, 0.3)
        listen, tell = FORKS.Pipe(duplex=False)
        process = FORKS.Process(
            target=live, args=(self.url, self.cache, self.log, tell), daemon=True
        )
        process.start()
        tell.close()
        sent = mortal and _after(listen, updates, seconds) and process.is_alive()
        if sent:
            os.kill(process.pid or 0, signal.Signals[name])
        process.join(LIFE_SECONDS)
        assert process.exitcode is not None, f"still alive after {LIFE_SECONDS:g} s"
        code = process.exitcode
        if sent and code in {-signal.Signals[name], ExitCode.INTERRUPTED}:
            return name, code
        assert code in set(ExitCode) - {ExitCode.FAILURE, ExitCode.LEASE_LOST}, self.log.read_text()
        return None, code

    def _rot(self) -> None:
        """Flip a bit of the newest sound checkpoint on the server's disk, unless it is the last."""
        if self._rng.random() >= ROT_SHARE:
            return
        sound = self._sound()
        if len(sound) < 2:
            return
        files = sorted((self.disk / CHECKPOINTS / sound[0]).iterdir())
        path = self._rng.choice(files)
        data = bytearray(path.read_bytes())
        data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(data)
        self.counts["rotten"] += 1

    def _sound(self) -> list[str]:
        """Checkpoints that verify, newest first."""
        reader = CheckpointReader(open_run(str(self.disk)))
        found: list[str] = []
        for path in sorted((self.disk / CHECKPOINTS).glob("step-*"), reverse=True):
            try:
                reader.read(reader.ref(path.name))
            except CheckpointError:
                continue
            found.append(path.name)
        return sorted(found, key=lambda name: name.split("-")[2:0:-1], reverse=True)


def _after(updates: Connection, number: int, seconds: float) -> bool:
    """Wait for so many updates and then so long; False if the process ended before."""
    try:
        for _ in range(number):
            updates.recv()
    except EOFError:
        return False
    time.sleep(seconds)
    return True
