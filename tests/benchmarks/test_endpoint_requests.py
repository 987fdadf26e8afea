"""Requests a second to an endpoint on loopback that takes 50 ms, 32 at a time, and CPU seconds.

`uv run --with geh==0.2.1 pytest tests/benchmarks/test_endpoint_requests.py -s --benchmark-enable`
prints the figures of the harness `geh` beside ours, from the same server; without it only ours.
With `TSGB_BENCHMARK_PEERS=1` in front, those of inspect_ai too, in an environment of its own that
`uv` makes. The server has a process of its own, so that its CPU time is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from shutil import which

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tsgb.targets.endpoint import EndpointKind, EndpointSpec
from tsgb.targets.http import HttpTarget
from tsgb.types import Message

ITEMS = 1600
INSPECT_ITEMS = 320
"""It is slower by an order of magnitude; its start is taken off."""
ROOT = Path(__file__).parents[2]
SERVER = """
import sys
from tests.fakes.endpoint_server import Fault, serving
message = {"role": "assistant", "content": "no"}
body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "score": 0.1}
body |= {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
with serving(otherwise=Fault(delay=0.05, body=body)) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""
INSPECT = """
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.solver import generate
samples = [Sample(input=f"prompt {i}") for i in range(int(sys.argv[2]))]
[log] = eval(
    Task(dataset=samples, solver=generate()), model="openai/m", model_base_url=sys.argv[1],
    max_connections=32, max_samples=32, display="none", log_dir=sys.argv[3],
    model_args={"api_key": "none", "responses_api": False},
)
assert log.status == "success" and len(log.samples) == int(sys.argv[2]), log.error
"""


@pytest.fixture
def port() -> Generator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)


def chats() -> list[list[Message]]:
    return [[{"role": "user", "content": f"prompt {i}"}] for i in range(ITEMS)]


def test_requests_a_second(benchmark: BenchmarkFixture, port: int, tmp_path: Path) -> None:
    spec = EndpointSpec(
        name="box", kind=EndpointKind.OPENAI, model="m", url=f"http://127.0.0.1:{port}/v1"
    )

    def ask() -> None:
        target = HttpTarget(spec, None)
        assert all(response.error is None for response in target.answer(chats()))
        target.close()

    figures = {"tsgb": measured(ask)}
    geh = which("geh")
    if geh is not None:
        figures["geh"] = measured(lambda: ask_by_geh(geh, port, tmp_path))
    if "TSGB_BENCHMARK_PEERS" in os.environ:
        ask_by_inspect(port, 1, tmp_path)
        start = measured(lambda: ask_by_inspect(port, 1, tmp_path), 1)
        whole = measured(lambda: ask_by_inspect(port, INSPECT_ITEMS + 1, tmp_path), INSPECT_ITEMS)
        seconds = INSPECT_ITEMS / whole[0] - 1 / start[0]
        cpu = whole[1] - start[1] / INSPECT_ITEMS
        figures["inspect_ai without its start"] = INSPECT_ITEMS / seconds, cpu
    benchmark.pedantic(ask, rounds=1)
    for name, (rate, cpu) in figures.items():
        benchmark.extra_info[name] = {"requests_per_s": rate, "cpu_s_per_1000": cpu}
        sys.stdout.write(f"\n{name}: {rate:.0f} requests/s, {cpu:.2f} CPU s per 1,000 items\n")


def measured(run: Callable[[], None], items: int = ITEMS) -> tuple[float, float]:
    """Requests a second, and CPU seconds of this process and its children per 1,000 items."""
    start, before = time.monotonic(), cpu_seconds()
    run()
    seconds = time.monotonic() - start
    return items / seconds, (cpu_seconds() - before) / items * 1000


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def ask_by_geh(geh: str, port: int, directory: Path) -> None:
    """Ask the same number of prompts through its http adapter, with its start included."""
    data = directory / "items.jsonl"
    rows = [{"id": str(i), "prompt": f"prompt {i}", "unsafe": i % 2 == 0} for i in range(ITEMS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = directory / "geh.yaml"
    document = {
        "version": 1,
        "run_name": "speed",
        "model": {
            "adapter": "http",
            "args": {
                "url": f"http://127.0.0.1:{port}/v1/chat/completions",
                "score_path": "score",
                "concurrency": 32,
            },
        },
        "datasets": [{"name": "items", "adapter": "local_jsonl", "path": str(data)}],
        "execution": {"batch_size": 32, "concurrency": 32},
        "output": {"run_dir": str(directory / "out")},
    }
    config.write_text(json.dumps(document))
    subprocess.run(
        [geh, "run", "--config", str(config)], check=True, capture_output=True, cwd=directory
    )


def ask_by_inspect(port: int, items: int, directory: Path) -> None:
    """Ask so many prompts through inspect_ai and the openai package."""
    command = ["uv", "run", "--no-project", "--with", "inspect-ai==0.3.285", "--with", "openai"]
    command += ["python", "-c", INSPECT, f"http://127.0.0.1:{port}/v1", str(items)]
    subprocess.run(
        [*command, str(directory / "logs")], check=True, capture_output=True, cwd=directory
    )
