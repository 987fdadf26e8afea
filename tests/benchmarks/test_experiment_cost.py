"""What a whole experiment costs: wall time, CPU time and memory of all its processes.

    pytest tests/benchmarks/test_experiment_cost.py --benchmark-enable --benchmark-only -s

Measured once with no models built, and once more with all of them cached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
PROFILE = "smoke"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("models", ["built", "cached"])
def test_experiment(benchmark: Any, cache: Path, tmp_path: Path, models: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))}
    environment |= {"TSGB_CACHE_DIR": str(cache), "TSGB_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "tsgb.cli", "experiment", "--profile", PROFILE]

    def run() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *command, "--run-id", f"bench-{models}", "--json"],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    benchmark.group = f"experiment, profile {PROFILE}"
    used = benchmark.pedantic(run, rounds=1)
    assert used.pop("code") == 0
    benchmark.extra_info.update(used)
    sys.stdout.write(f"\nexperiment, profile {PROFILE}, models {models}: {used}\n")
