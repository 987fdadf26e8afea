"""Stage 2 in a cluster: two Dask workers, each a process of its own as an operator starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.stage2 import stage2
from flows.task_runners import cluster_of
from tests.fakes.control_plane import free_port, wait_for
from tests.flows.conftest import Behave
from tests.flows.test_stage1 import train
from tsgb.errors import UsageError
from tsgb.settings import load_settings

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]
ELSEWHERE = "10.0.0.5"


@dataclass
class Cluster:
    """A Dask scheduler and its workers, whose output is in files."""

    home: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self, num: int) -> None:
        self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        for index in range(num):
            own = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", f"w{index}"]
            self._start("worker", self.address, *own, "--local-directory", str(self.home))

    def stop(self) -> None:
        for process in self.processes:  # a worker whose scheduler has gone may never end
            process.kill()
            process.wait()

    def _start(self, *words: str) -> None:
        with (self.home / f"dask-{len(self.processes)}.log").open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
                    env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
                    stdout=output,
                    stderr=output,
                )
            )


@pytest.fixture
def cluster(tmp_path: Path, store: Path) -> Iterator[Callable[[int], Cluster]]:
    made = Cluster(tmp_path)

    def start(num: int) -> Cluster:
        made.start(num)
        return made

    yield start
    made.stop()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.slow
def test_two_dask_workers_fill_the_cells_that_one_machine_fills(
    store: Path,
    cluster: Callable[[int], Cluster],
    behave: Behave,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behave({"apart": {"cell_seconds": 1}})
    assert train("apart", arms=["selfplay", "sft"]).is_completed()
    here = stage2("apart")
    directory = Path(here["report"]).parent
    cells = names(directory / "cells")
    for path in (directory / "cells").iterdir():
        path.unlink()
    Path(here["summary_path"]).unlink()

    address = cluster(2).address
    monkeypatch.setenv("TSGB_TASK_RUNNER", f"dask:{address}")
    there = stage2("apart")
    assert there == here
    assert names(directory / "cells") == cells
    logs = [path.read_text() for path in sorted(directory.parents[2].parent.glob("dask-*.log"))]
    took = ["evaluate-apart-part" in text for text in logs]
    assert took == [False, True, True], "both workers filled cells"


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_loses_nothing(
    store: Path,
    cluster: Callable[[int], Cluster],
    behave: Behave,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behave({"mourned": {"cell_seconds": 4}})
    assert train("mourned", arms=["selfplay", "sft"]).is_completed()
    started = cluster(2)
    monkeypatch.setenv("TSGB_TASK_RUNNER", f"dask:{started.address}")

    def kill_the_first() -> None:
        wait_for("a cell", lambda: bool(list(store.glob("mourned/reports/*/progress-*"))), 120)
        started.processes[1].kill()

    killer = Thread(target=kill_the_first)
    killer.start()
    done = stage2("mourned")
    killer.join()
    assert len(names(Path(done["report"]).parent / "cells")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_of_this_machine_is_made_and_ended(
    store: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(f"prefect_{runner}", reason=f"the extra {runner} is not installed")
    assert train("own", arms=["selfplay", "sft"]).is_completed()
    monkeypatch.setenv("TSGB_MAX_PARALLEL", "2")
    monkeypatch.setenv("TSGB_TASK_RUNNER", runner)
    done = stage2("own")
    assert len(names(Path(done["report"]).parent / "cells")) == 2


def test_what_cannot_be_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(runner: str) -> str:
        monkeypatch.setenv("TSGB_TASK_RUNNER", runner)
        with pytest.raises(UsageError) as caught:
            cluster_of(load_settings(), "http://127.0.0.1:8080/dav")
        return str(caught.value)

    far = f"dask:tcp://{ELSEWHERE}:8786"
    if find_spec("prefect_ray") is None:
        assert "pip install 'tsgb[ray]'" in asked("ray")
    assert "set PREFECT_API_URL, or leave the address away" in asked(far)
    with temporary_settings({PREFECT_API_URL: f"http://{ELSEWHERE}:4200/api"}):
        assert "cannot reach the store http://127.0.0.1:8080/dav" in asked(far)


def test_code_of_the_users_stays_on_this_machine(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at that address, and nobody is asked."""
    assert train("bound").is_completed()
    monkeypatch.setenv("TSGB_TASK_RUNNER", f"dask:tcp://127.0.0.1:{free_port()}")
    done = stage2("bound", judge_class="tsgb:SimpleJudge")
    request = json.loads((Path(done["report"]).parent / "request.json").read_text())
    assert request["judge_class"] == "tsgb:SimpleJudge"
