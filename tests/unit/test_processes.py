"""How several workers are driven, and that none outlives the call that drives it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tsgb.cloud.termination import JobEnd, job_end
from tsgb.processes import Job, JobState, LocalProcess, ProcessStatus, StartedJob, run_processes


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeMachine:
    """Runs for some seconds, ends with a code; obeys SIGTERM after `save_seconds`, if ever."""

    def __init__(
        self, clock: FakeClock, seconds: float, code: int | None = 0, save_seconds: float = 0.0
    ) -> None:
        self.clock, self.code, self.save_seconds = clock, code, save_seconds
        self.seconds = seconds
        self.end: float | None = None
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("provision")
        self.end = self.clock.now + self.seconds

    def status(self) -> ProcessStatus:
        assert self.end is not None
        if self.clock.now < self.end:
            return ProcessStatus(running=True)
        return ProcessStatus(running=False, exit_code=self.code)

    def logs(self, max_bytes: int = 4096) -> str:
        return "first line\nKeyError: 'why'\n"

    def destroy(self, *, force: bool) -> None:
        if self.status().running:
            self.calls.append("kill" if force else "term")
            self.end = self.clock.now + (0.0 if force else self.save_seconds)
            self.code = -9 if force else 130


def drive(clock: FakeClock, machines: list[FakeMachine], **options: object) -> list[JobState]:
    jobs = [
        Job(str(index), lambda machine=machine: StartedJob(process=machine))
        for index, machine in enumerate(machines)
    ]
    return run_processes(jobs, clock=clock, sleep=clock.sleep, poll_seconds=1.0, **options)  # type: ignore[arg-type]


def test_all_jobs_run_with_at_most_max_parallel_at_a_time() -> None:
    clock = FakeClock()
    machines = [FakeMachine(clock, seconds) for seconds in (3, 5, 1, 1, 2)]
    widths: list[int] = []

    states = drive(
        clock,
        machines,
        max_parallel=2,
        on_poll=lambda states: widths.append(sum(state.running for state in states)),
    )

    assert [state.end for state in states] == [JobEnd.DONE] * 5
    assert max(widths) == 2
    assert clock.now == 7, "a free place is taken at the next look"
    assert all(machine.calls == ["provision"] for machine in machines)


def test_nothing_to_do_is_done_at_once() -> None:
    clock = FakeClock()
    assert drive(clock, []) == []
    assert clock.now == 0


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        pytest.param(None, JobEnd.PREEMPTED, id="vanished"),
        pytest.param(1, JobEnd.FAILED, id="crashed"),
    ],
)
def test_one_bad_end_stops_the_rest(code: int | None, outcome: JobEnd) -> None:
    clock = FakeClock()
    bad = FakeMachine(clock, 2, code)
    saves = FakeMachine(clock, 100, save_seconds=3)
    waits = FakeMachine(clock, 100)

    states = drive(clock, [bad, saves, waits], max_parallel=2)

    assert [state.end for state in states] == [outcome, None, None]
    assert saves.calls == ["provision", "term"], "it had time to save"
    assert waits.calls == [], "it was never started"


def test_a_deaf_worker_is_killed_after_the_grace() -> None:
    clock = FakeClock()
    deaf = FakeMachine(clock, 1000, save_seconds=1000)
    drive(clock, [FakeMachine(clock, 1, None), deaf], grace_seconds=10.0)
    assert deaf.calls == ["provision", "term", "kill"]
    assert clock.now == pytest.approx(11, abs=0.5)


def test_a_signal_ends_all_workers() -> None:
    clock = FakeClock()
    machines = [FakeMachine(clock, 100, save_seconds=2) for _ in range(2)]

    def interrupt(_: object) -> None:
        if clock.now >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(clock, machines, on_poll=interrupt)
    assert all(machine.calls == ["provision", "term"] for machine in machines)
    assert not any(machine.status().running for machine in machines)


def test_a_second_signal_does_not_wait_for_the_save() -> None:
    clock = FakeClock()
    slow = FakeMachine(clock, 1000, save_seconds=1000)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_processes([Job("0", lambda: StartedJob(process=slow))], clock=clock, sleep=sleep)
    assert slow.calls == ["provision", "term", "kill"]


def test_a_worker_without_a_sign_of_life_counts_as_preempted() -> None:
    clock = FakeClock()
    machine = FakeMachine(clock, 1000)
    job = Job(
        "0", lambda: StartedJob(process=machine, progress=lambda: {"step": min(int(clock.now), 20)})
    )
    (state,) = run_processes(
        [job], stall_seconds=30.0, clock=clock, sleep=clock.sleep, poll_seconds=1.0
    )
    assert state.end is JobEnd.PREEMPTED
    assert state.message == "no progress for too long; killed"
    assert machine.calls == ["provision", "kill"]
    assert clock.now == pytest.approx(51, abs=6)


def test_the_message_is_the_workers_own_or_the_end_of_its_log() -> None:
    clock = FakeClock()
    (state,) = drive(clock, [FakeMachine(clock, 1, 1)])
    assert state.message == "exit code 1: KeyError: 'why'"
    state.exit_record = {"outcome": "crash", "message": "KeyError: 'step'"}
    assert state.message == "KeyError: 'step'"


# Real processes -----------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def local(tmp_path: Path, code: str, **environment: str) -> LocalProcess:
    command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)]
    return LocalProcess(command, tmp_path / "worker.log", environment)


def ended(machine: LocalProcess) -> bool:
    return not machine.status().running


def test_local_machine_runs_a_command_in_its_environment(tmp_path: Path) -> None:
    machine = local(
        tmp_path,
        """
        import os, sys
        print(os.environ["OMP_NUM_THREADS"], os.environ["WORD"], os.getsid(0) == os.getpid())
        sys.exit(6)
        """,
        WORD="seven",
    )
    assert not machine.status().running
    machine.start()
    wait_until(lambda: ended(machine))
    assert machine.status() == ProcessStatus(running=False, exit_code=6)
    assert machine.logs() == "1 seven True\n"
    machine.destroy(force=True)


def test_local_machine_reports_the_signal_that_took_it(tmp_path: Path) -> None:
    machine = local(tmp_path, "import os; os.kill(os.getpid(), 9)")
    machine.start()
    wait_until(lambda: ended(machine))
    assert job_end(machine.status().exit_code, None) is JobEnd.PREEMPTED


def test_destroy_asks_first_and_kills_with_force(tmp_path: Path) -> None:
    machine = local(
        tmp_path,
        """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("saves", flush=True))
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
        """,
    )
    machine.start()
    wait_until(lambda: "ready" in machine.logs())
    machine.destroy(force=False)
    wait_until(lambda: "saves" in machine.logs())
    assert machine.status().running
    machine.destroy(force=True)
    wait_until(lambda: ended(machine))
    assert machine.status().exit_code == -signal.SIGKILL


def test_a_worker_is_told_once_to_save_when_its_flow_is_killed(tmp_path: Path) -> None:
    worker = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("saves", flush=True))
print("ready", os.getpid(), flush=True)
time.sleep(300)
"""
    flow = f"""
import sys, threading, time
from pathlib import Path
from tsgb.processes import LocalProcess
for _ in range(8):
    threading.Thread(target=time.sleep, args=[300], daemon=True).start()
machine = LocalProcess([sys.executable, "-c", {worker!r}], Path({str(tmp_path / "log")!r}), {{}})
machine.start()
time.sleep(300)
"""
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", flow])
    try:
        wait_until(lambda: log.exists() and "ready" in log.read_text())
    finally:
        parent.kill()
        parent.wait()
    pid = int(log.read_text().split()[1])
    try:
        wait_until(lambda: "saves" in log.read_text())
        time.sleep(0.3)
        assert log.read_text().count("saves") == 1
    finally:
        os.kill(pid, signal.SIGKILL)
