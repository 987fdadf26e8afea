"""How much longer training takes because it saves: a loop of real steps, with saves and without.

    pytest tests/benchmarks/test_stall.py -q --benchmark-enable --benchmark-only -s

The saves are a worker's own, at their automatic interval, to a server in a process of its own:
nginx where it is installed, else wsgidav. Blocked is what the worker accounts for, the time in
which a step could not begin. The difference in wall-clock time also holds what hashing and sending,
and here the server too, take away from the steps of a machine with few cores. Loops without saves
run before, between and after; how far those differ among themselves is the noise. Three minutes.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch
from pydantic import SecretStr

from tests.benchmarks.test_saves import NUM_TENSORS
from tests.fakes.dav_programs import run_program
from tests.fakes.dav_server import PASSWORD, USER
from tests.fakes.miniature import miniature_config
from tsgb.checkpoint.layout import KEEP_CHECKPOINTS
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.trainer.loop import Trainer
from tsgb.trainer.state import CheckpointBuffers
from tsgb.types import Buffer
from tsgb.worker.build import setup_torch
from tsgb.worker.checkpointing import Checkpointer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES_MB = (359, 718)
WITH_SECONDS, WITHOUT_SECONDS = 60.0, 10.0
STEP_SECONDS = 0.3
WIDTH = 1024
WSGIDAV = """
import sys
from pathlib import Path
from tests.fakes.dav_server import dav_app, serve
with serve(dav_app(Path(sys.argv[1]))) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def server() -> Iterator[str]:
    with ExitStack() as opened:
        # Not below pytest's directory, which nobody but its owner may enter.
        directory = Path(opened.enter_context(TemporaryDirectory(prefix="tsgb-dav-")))
        try:
            url, _ = opened.enter_context(run_program("nginx", directory))
        except pytest.skip.Exception:
            command = [sys.executable, "-c", WSGIDAV, str(directory)]
            process = opened.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert process.stdout is not None
            url = process.stdout.readline().strip()
        yield url


@dataclass
class Progress:
    step: int = 0
    episode: int = 0


@dataclass
class Training:
    """As much of a trainer as saving sees: steps of work, and a state of some size."""

    megabytes: int
    state: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        size = self.megabytes * 1_000_000 // NUM_TENSORS // 4
        self._tensors = {
            f"t{i:04d}": torch.randn(size, generator=generator) for i in range(NUM_TENSORS)
        }
        self._weights = torch.randn(WIDTH, WIDTH, generator=generator, requires_grad=True)
        self._batch = torch.randn(WIDTH, WIDTH, generator=generator)
        self._repeats = 1
        self._repeats = max(1, round(STEP_SECONDS / min(self._seconds() for _ in range(20))))

    def _seconds(self) -> float:
        begin = time.monotonic()
        self.work()
        return time.monotonic() - begin

    def work(self) -> None:
        """One step: forward and backward, and an update of some of the state."""
        for _ in range(self._repeats):
            loss = torch.tanh(self._batch @ self._weights).square().mean()
            self._weights.grad = None
            loss.backward()
        self._tensors[f"t{self.state.step % NUM_TENSORS:04d}"].add_(1.0)
        self.state.step += 1

    def files(self, *, buffers: CheckpointBuffers) -> dict[str, Buffer]:
        return {"state.safetensors": buffers.fill("state.safetensors", self._tensors, {})}


@dataclass
class Measured:
    """Of one loop."""

    steps: list[float] = field(default_factory=list)
    """Seconds from the start of each step to the start of the next."""
    blocked: float = 0.0
    saves: int = 0

    @property
    def mean(self) -> float:
        return statistics.fmean(self.steps)

    @property
    def error(self) -> float:
        return statistics.stdev(self.steps) / math.sqrt(len(self.steps))


def run(training: Training, seconds: float, saves: Checkpointer | None = None) -> Measured:
    found = Measured()
    durable = None if saves is None else saves.saved
    end = time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        training.work()
        worked = time.monotonic()
        if saves is not None:
            saves.after_update(cast("Trainer", training), lambda: "", worked - begin)
            found.saves += saves.saved is not durable
            durable = saves.saved
        done = time.monotonic()
        found.blocked += done - worked
        found.steps.append(done - begin)
    return found


def saves_to(url: str, training: Training, directory: Path) -> Checkpointer:
    """A worker's, after checkpoint 0."""
    run = open_run(f"{url}/r{training.megabytes}", USER, SecretStr(PASSWORD))
    store = CheckpointStore(run)
    config = miniature_config({"checkpoint_interval": None})
    saves = Checkpointer(
        store, config, attempt=store.claim(), spool_root=directory, keep=KEEP_CHECKPOINTS
    )
    assert saves.resume(pytest.fail) is None
    saves.save_now(cast("Trainer", training), lambda: "")
    return saves


@pytest.mark.benchmark(group="training with saves at the automatic interval, beside none")
def test_stall(benchmark: Any, tmp_path: Path) -> None:
    setup_torch()  # one thread, as a worker has it

    def measure() -> dict[str, str]:
        report: dict[str, str] = {}
        with server() as url:
            for megabytes in SIZES_MB:
                training = Training(megabytes)
                saves = saves_to(url, training, tmp_path)
                before = run(training, WITHOUT_SECONDS)
                saving = run(training, WITH_SECONDS, saves)
                interval = saves.interval_seconds
                saves.settle(cast("Trainer", training), lambda: "")
                after = run(training, WITHOUT_SECONDS)
                none = Measured(before.steps + after.steps)
                noise = max(abs(before.mean - after.mean) / 2, math.hypot(none.error, saving.error))
                report[f"{megabytes} MB"] = (
                    f"step {none.mean:.3f} s, interval {interval:.0f} s, {saving.saves} saves in "
                    f"{WITH_SECONDS:g} s; blocked {saving.blocked:.3f} s = "
                    f"{saving.blocked / sum(saving.steps):.2%} of step time; wall clock "
                    f"{saving.mean / none.mean - 1:+.2%}, noise {noise / none.mean:.2%}"
                )
        return report

    found = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(found)
    for size, line in found.items():
        print(f"\n{size}: {line}")  # noqa: T201 - with -s
