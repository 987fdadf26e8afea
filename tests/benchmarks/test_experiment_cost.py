"""What an experiment costs, and how much of it is Prefect: CPU seconds of all its processes.

    pytest tests/benchmarks/test_experiment_cost.py --benchmark-enable --benchmark-only -s

The same experiment runs four times: with an embedded server and nothing in the cache (no migrated
database, no built models), with one and the cache of the first, with a server that runs already,
and without Prefect (`experiment_otherwise.py`). Worker processes are the same in all four, and most
of the cost; how many CPU seconds they take differs from run to run by more than Prefect costs. So
each is waited for by a small process that writes down what the worker used, and that is taken off:
what remains is the processes that start the workers, and the embedded server. Of the server that
runs already, what it used meanwhile is given apart: others use it, too.

It is measured with compiled bytecode, as any second start has it: without (PYTHONDONTWRITEBYTECODE
in the environment), importing Prefect costs twice as much.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import embedded
from tsgb.settings import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# A process of its own, so that what it sums up is this one command and its descendants.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "code": done.returncode,
    "wall_seconds": round(time.monotonic() - start, 1),
    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    "peak_rss_mb": round(used.ru_maxrss / 1024),
}))
"""
# Becomes the parent of a worker, and appends the CPU seconds of it and its descendants to a file.
COUNT = """
import os, sys
worker = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(worker, 0)
with open(sys.argv[1], "a") as file:
    file.write(f"{used.ru_utime + used.ru_stime}\\n")
sys.exit(os.waitstatus_to_exitcode(status))
"""
PROFILE = "smoke"
OTHERWISE = Path(__file__).with_name("experiment_otherwise.py")
WAYS = ["embedded-cold", "embedded-warm", "on-server", "without-prefect"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def rests() -> Iterator[dict[str, float]]:
    """CPU seconds without those of workers, by way; at the end, what Prefect costs is printed."""
    found: dict[str, float] = {}
    yield found
    plain = found.pop("without-prefect", None)
    for way, rest in found.items():
        if plain is not None:
            sys.stdout.write(f"\nPrefect, {way}: {rest - plain:.1f} CPU s\n")


@pytest.mark.parametrize("way", WAYS)
def test_experiment(
    benchmark: Any, cache: Path, tmp_path: Path, way: str, rests: dict[str, float]
) -> None:
    counted = tmp_path / "workers"
    worker = [sys.executable, "-I", "-S", "-c", COUNT, str(counted), sys.executable]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))},
        "TSGB_CACHE_DIR": str(cache),
        "TSGB_STORE": str(tmp_path / "store"),
        "TSGB_WORKER_COMMAND": shlex.join([*worker, "-m", "tsgb.cli", "worker"]),
        "PYTHONPATH": str(OTHERWISE.parents[2]),
    }
    command = [str(OTHERWISE), way, f"bench-{way}"]
    if way.startswith("embedded"):
        words = ["experiment", "--profile", PROFILE, "--run-id", f"bench-{way}", "--json"]
        command = ["-m", "tsgb.cli", *words]

    def run() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, sys.executable, *command],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    benchmark.group = f"experiment, profile {PROFILE}"
    if way == "on-server":
        with embedded.start(tmp_path / "server", "shared", child_environment()) as api:
            api.wait()
            environment["PREFECT_API_URL"] = api.url
            before = cpu_seconds(api.process.pid)
            used = benchmark.pedantic(run, rounds=1)
            used["server_cpu_seconds"] = round(cpu_seconds(api.process.pid) - before, 1)
    else:
        used = benchmark.pedantic(run, rounds=1)
    assert used.pop("code") == 0
    workers = sum(map(float, counted.read_text().split()))
    rests[way] = used["cpu_seconds"] - workers
    used["without_workers"] = round(rests[way], 1)
    benchmark.extra_info.update(used)
    sys.stdout.write(f"\nexperiment, profile {PROFILE}, {way}: {used}\n")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
