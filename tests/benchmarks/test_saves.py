"""What a save costs, beside torch.distributed.checkpoint, orbax and raw httpx, in one run.

    pytest tests/benchmarks/test_saves.py -q --benchmark-enable --benchmark-only

The state is that of two LoRA adapters (r 16) of a 3 B model with bf16 moments: 359 MB in 1,512
tensors; `TSGB_BENCH_MB=718` takes fp32 moments. orbax is measured where it is installed
(`uv pip install orbax-checkpoint jax`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr
from torch import Tensor

from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tsgb.checkpoint.codec import TensorFile
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.saver import Saver, Snapshot
from tsgb.checkpoint.store import CheckpointStore
from tsgb.types import CheckpointRef

pytestmark = pytest.mark.slow
MEGABYTES = int(os.environ.get("TSGB_BENCH_MB", "359"))
NUM_TENSORS = 1512
ROUNDS = 5


def make_state() -> dict[str, Tensor]:
    size = MEGABYTES * 1_000_000 // NUM_TENSORS // 4
    generator = torch.Generator().manual_seed(0)
    return {f"t{i:04d}": torch.randn(size, generator=generator) for i in range(NUM_TENSORS)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return make_state()


def saver_of(root: str, user: str | None = None, password: str = "") -> Saver[TensorFile]:
    store = CheckpointStore(open_run(root, user, SecretStr(password)))
    store.claim()

    def commit(snapshot: Snapshot) -> CheckpointRef:
        ref = store.publish(snapshot.step, 0, snapshot.files, "0" * 64)
        store.prune(1)
        return ref

    return Saver(commit, TensorFile)


Ways = tuple[Callable[[int], None], Callable[[], None]]
"""Begin a save of step n; wait until it is durable."""


def own(state: dict[str, Tensor], root: Path) -> Ways:
    saver = saver_of(str(root / "run"))

    def begin(step: int) -> None:
        saver.submit(lambda stage: Snapshot(step, 0, {"state": stage.fill(state, {})}, ""))

    return begin, lambda: (saver.flush(), saver.check())[1]


def distributed(state: dict[str, Tensor], root: Path) -> Ways:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=0, world_size=1)
    pending: list[Any] = []

    def begin(step: int) -> None:
        pending.append(dcp.async_save(state, checkpoint_id=root / f"dcp-{step}"))

    def wait() -> None:
        while pending:
            future = pending.pop()
            getattr(future, "upload_completion", future).result()

    return begin, wait


def orbax(state: dict[str, Tensor], root: Path) -> Ways:
    ocp = pytest.importorskip("orbax.checkpoint")
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())

    def begin(step: int) -> None:
        checkpointer.save(root / f"orbax-{step}", args=ocp.args.StandardSave(arrays))

    return begin, checkpointer.wait_until_finished


@pytest.mark.benchmark(group=f"blocking time of a save, {MEGABYTES} MB")
@pytest.mark.parametrize("way", [own, distributed, orbax])
def test_blocking_time(
    benchmark: Any,
    state: dict[str, Tensor],
    tmp_path: Path,
    way: Callable[[dict[str, Tensor], Path], Ways],
) -> None:
    begin, wait = way(state, tmp_path)
    steps = iter(range(100))

    def setup() -> None:
        wait()

    begin(next(steps))  # memory is allocated once in a run
    benchmark.pedantic(lambda: begin(next(steps)), setup=setup, rounds=ROUNDS, iterations=1)
    wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    directory = tmp_path / "server"
    directory.mkdir()
    with serve(dav_app(directory)) as url:
        yield url


@pytest.mark.benchmark(group="PUT of 64 MB to wsgidav")
@pytest.mark.parametrize("way", ["store", "httpx"])
def test_put(benchmark: Any, server: str, way: str) -> None:
    data = memoryview(os.urandom(64_000_000))
    if way == "store":
        files = open_filesystem(server, USER, SecretStr(PASSWORD))
        benchmark.pedantic(lambda: files.write("a", data), rounds=ROUNDS, iterations=1)
        return
    content = bytes(data)
    with httpx.Client(auth=(USER, PASSWORD), timeout=60) as client:

        def put() -> None:
            client.put(f"{server}/b", content=content).raise_for_status()

        benchmark.pedantic(put, rounds=ROUNDS, iterations=1)


MEMORY = """
import resource, sys
from tests.benchmarks.test_saves import Snapshot, make_state, saver_of
state = make_state()
saver = saver_of(*sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in range(3):
    saver.submit(lambda stage: Snapshot(step, 0, {"state": stage.fill(state, {})}, ""))
    saver.flush()
    saver.check()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.benchmark(group="memory of saving to wsgidav")
def test_memory(benchmark: Any, server: str) -> None:
    """How far the peak grows, in sizes of the state: one staged copy, and nothing else."""
    command = [sys.executable, "-c", MEMORY, f"{server}/run", USER, PASSWORD]

    def measure() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    grown = int(benchmark.pedantic(measure, rounds=1)) / (MEGABYTES * 1e6)
    benchmark.extra_info["states"] = round(grown, 2)
    assert grown < 1.25
