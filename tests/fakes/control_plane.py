"""A real Prefect server and a process worker, started, stopped and killed as an operator does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]
POOL = "tsgb-local"
TINY: Mapping[str, Any] = {
    "profile": "smoke",
    "arms": ["selfplay"],
    "overrides": {
        "segments": 2,
        "attacker": {"sft_steps": 2, "warmup_steps": 0},
        "guard": {"sft_steps": 2},
        "selfplay": {"rounds": 1, "attacker_steps": 2, "guard_steps": 2},
    },
}
"""Parameters of a run of two segments with four updates each."""


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Look until a condition holds; a busy machine does not reach the end."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.3)


class ControlPlane:
    """Server and worker in one directory, with settings of their own.

    Example: `with ControlPlane(tmp_path) as plane: plane.deploy(); plane.run("tsgb/stage1")`
    """

    def __init__(
        self,
        home: Path,
        plan: Mapping[str, Any] | None = None,
        *,
        more: Mapping[str, str] | None = None,
        trains: bool = False,
    ) -> None:
        """Choose a port.

        Args:
            home: Directory of databases, logs, store and cache.
            plan: Behaviour of the fake worker, by run id; see `tests/fakes/worker.py`.
            more: Further variables of all processes.
            trains: Whether the real worker trains, in place of the fake one.
        """
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "TSGB_", "RCLONE_", "VAST_"))
        }
        self.environment = {
            **kept,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_CLI_COLORS": "false",
            "TSGB_STORE": str(home / "store"),
            "TSGB_CACHE_DIR": str(home / "cache"),
            "TSGB_RETRY_DELAY_SECONDS": "0",
            "TSGB_WORKER_COMMAND": shlex.join(
                [sys.executable, str(ROOT / "tests" / "fakes" / "worker.py")]
            ),
            "TSGB_FAKE": json.dumps(plan or {}),
            "PYTHONPATH": str(ROOT),
            **(more or {}),
        }
        if trains:
            del self.environment["TSGB_WORKER_COMMAND"]
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    # -- processes -------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start the server on the port and database of the last one, and wait for its answer."""
        words = ["server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(self.port)]
        self.server = self._start(words, "server.log")
        wait_for("the server", self.is_healthy, 180)

    def stop_server(self) -> None:
        """End the server and wait."""
        self.server = _ended(self.server, signal.SIGTERM)

    def start_worker(self) -> None:
        """Start a worker of the pool, which makes the pool."""
        self.worker = self._start(
            ["worker", "start", "--pool", POOL, "--type", "process"], "worker.log"
        )
        wait_for("the worker to make its pool", self.has_pool, 120)

    def end_worker(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the worker by a signal and wait."""
        self.worker = _ended(self.worker, number)

    def __enter__(self) -> Self:
        try:
            self.start_server()
            self.start_worker()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self.end_worker()
        self.stop_server()
        for number in self.processes():
            os.kill(number, signal.SIGKILL)

    def _start(self, words: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.home / log).open("ab") as output:
            return subprocess.Popen(
                [*PREFECT, *words], env=self.environment, cwd=ROOT, stdout=output, stderr=output
            )

    def processes(self, *words: str) -> list[int]:
        """Return live processes of this control plane whose command has all these words."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                mine = f"={self.home}/".encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if mine and command and all(word in command for word in words):
                found.append(int(entry.name))
        return found

    # -- its API ---------------------------------------------------------------------------------

    def is_healthy(self) -> bool:
        """Whether the server answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def has_pool(self) -> bool:
        """Whether the work pool is there."""
        return httpx.get(f"{self.url}/work_pools/{POOL}", timeout=30).status_code == 200

    def find(self, kind: str, **body: Any) -> list[dict[str, Any]]:
        """Return objects of a kind: `flow_runs`, `task_runs`, `artifacts`, ..."""
        answer = httpx.post(f"{self.url}/{kind}/filter", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def flow_runs(self, prefix: str = "") -> list[dict[str, Any]]:
        """Return flow runs by the beginning of their names, the earliest first."""
        runs = self.find("flow_runs", sort="EXPECTED_START_TIME_ASC")
        return [run for run in runs if run["name"].startswith(prefix)]

    def flow_run(self, number: str) -> dict[str, Any]:
        """Return a flow run."""
        return httpx.get(f"{self.url}/flow_runs/{number}", timeout=30).json()

    def state(self, number: str) -> str:
        """Return the type of a flow run's state."""
        return self.flow_run(number)["state_type"]

    def task_runs(self, number: str) -> dict[str, str]:
        """Return the state names of a flow run's task runs, by name."""
        runs = self.find("task_runs", flow_runs={"id": {"any_": [number]}})
        return {run["name"]: run["state_name"] for run in runs}

    def intervals(self, deployment: str) -> list[float]:
        """Return the seconds between two runs of each active schedule."""
        found = httpx.get(f"{self.url}/deployments/name/{deployment}", timeout=30).json()
        return [entry["schedule"]["interval"] for entry in found["schedules"] if entry["active"]]

    def automated(self) -> list[dict[str, Any]]:
        """Return flow runs that an automation has created, whatever their name is by now."""
        return [
            run for run in self.flow_runs() if (run["created_by"] or {}).get("type") == "AUTOMATION"
        ]

    # -- its command line ------------------------------------------------------------------------

    def prefect(self, *words: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        """Call `prefect` as a user does."""
        return subprocess.run(
            [*PREFECT, *words],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def deploy(self) -> None:
        """Deploy all flows from the file."""
        done = self.prefect("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, deployment: str, **parameters: Any) -> str:
        """Create a run of a deployment; return the flow run's id."""
        found = httpx.get(f"{self.url}/deployments/name/{deployment}", timeout=30).json()
        wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self._post(f"deployments/{found['id']}/create_flow_run", wanted)["id"]

    def set_state(self, number: str, kind: str, *, force: bool = False, **state: Any) -> None:
        """Set a flow run's state, as the UI does."""
        self._post(
            f"flow_runs/{number}/set_state", {"state": {"type": kind, **state}, "force": force}
        )

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Post to the API; while SQLite is locked, as Prefect's own clients do, once more."""
        for _ in range(20):
            answer = httpx.post(f"{self.url}/{path}", json=body, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()


def _ended(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    if process is None:
        return
    process.send_signal(number)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
