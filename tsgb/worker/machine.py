"""`tsgb worker machine`: the watcher of a rented machine. It starts its workers, and ends it.

Whatever happens, the last thing is that the instance is destroyed, with the instance's own key:
when the work is done or failed, when the lease is over, revoked or another attempt's, and when the
store is away for longer than the lease holds. Only a signal is left to whoever sent it. Nothing
that decides on this waits for the network; if this process itself dies, `infra/onstart.sh` acts.

It trains nothing and is torch-free. The workers' exit records count first, then their exit codes.
"""

from __future__ import annotations

import errno
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import join_run
from tsgb.cloud.connect import connect
from tsgb.cloud.lease import Standing
from tsgb.config import Arm, arm_run_id
from tsgb.errors import (
    ExitCode,
    StoreError,
    StoreUnreachable,
    TSGBError,
    UsageError,
)
from tsgb.logging import get_logger
from tsgb.processes import Attempt, Job, JobState, LocalMachine, run_processes
from tsgb.worker.ends import EXIT_CODES, ArmEnd, exit_record
from tsgb.worker.farewell import Instance, Patience
from tsgb.worker.places import Places
from tsgb.worker.signals import Signals
from tsgb.worker.vitals import Arms, Pulse
from tsgb.worker.watch import LeaseWatch, within

_TAIL_BYTES = 2048
_BEAT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the environment says of this machine; the command line fills it in."""

    places: Places
    container_id: str | None
    container_key: SecretStr | None
    vast_url: str
    worker_command: Sequence[str]
    worker_environment: Mapping[str, str]
    log_dir: Path
    max_parallel: int
    poll_seconds: float
    lease_poll_seconds: float
    """Every other pace follows it."""
    min_free_bytes: int
    net_dev: Path
    net_before: Path | None
    """The same counters as they were when the container started."""
    alive_file: Path | None
    """Touched at every look, for the dead-man in `infra/onstart.sh`."""


class Ended(Exception):  # noqa: N818 - an end, and no error of ours
    """The work on this machine ends before its workers do."""

    def __init__(self, outcome: str, message: str, *, signalled: bool = False) -> None:
        """Say how, in the words of an exit record, and why."""
        super().__init__(message)
        self.outcome = outcome
        self.signalled = signalled
        """By a signal, so that whoever sent it decides about the instance."""


class WorkerMachine:
    """All arms of one attempt on this machine."""

    def __init__(self, given: Given, run_url: str, attempt: int, arms: Sequence[Arm]) -> None:
        """Open the stores; nothing is read or written.

        Args:
            given: The machine.
            run_url: Of the main run.
            attempt: The fencing token.
            arms: What is trained, in the order in which it starts.
        """
        self._given = given
        self._attempt = attempt
        self._name = f"machines/{attempt:04d}"
        self._run = self._open(run_url)
        store = self._run.run_url.rpartition("/")[0]
        runs = {
            arm.value: self._open(join_run(store, arm_run_id(self._run.run_id, arm)))
            for arm in arms
        }
        self._arms = Arms(runs, attempt)
        self._lease = LeaseWatch(self._run, attempt, every_seconds=given.lease_poll_seconds)
        self._patience = Patience.of(given.lease_poll_seconds)
        self._signals = Signals()
        self._states: Sequence[JobState] = []
        self._holds = False
        """This start holds the lease, so the attempt's records are its to write."""
        self._store_seconds = 4 * given.lease_poll_seconds
        """How long the end waits for the store: it costs money."""

    def run(self) -> ExitCode:
        """Train, leave a record, destroy this instance."""
        self._signals = Signals.installed()
        try:
            instance = self._instance()
        except TSGBError as error:
            return _exit_code(self._leave(Ended("config", str(error))))
        pulse = self._pulse(instance)
        try:
            return self._run_until_destroyed(instance, pulse)
        finally:
            self._lease.stop()
            pulse.stop()

    def _run_until_destroyed(self, instance: Instance, pulse: Pulse) -> ExitCode:
        end: Ended | None = None
        try:
            self._hold()
            self._begin(pulse)
            pulse.enter("train")
            self._train()
        except Ended as early:
            end = early
        except Exception as error:  # noqa: BLE001 - whatever it is, the machine costs money
            get_logger().error("the watcher failed", traceback=traceback.format_exc())
            end = Ended("crash", f"the watcher failed: {type(error).__name__}: {error}")
        pulse.enter("ending")
        outcome = self._leave(end)
        if end is not None and end.signalled:
            return ExitCode.INTERRUPTED
        instance.destroy(self._patience, sleep=self._sleep)
        return _exit_code(outcome)

    def _open(self, url: str) -> RunStore:
        places = self._given.places
        return open_run(
            url,
            places.user,
            places.password,
            manifest_key=places.manifest_key,
            deadline_seconds=self._given.lease_poll_seconds,
        )

    def _instance(self) -> Instance:
        number, key = self._given.container_id, self._given.container_key
        if number is None or not number.isdecimal() or key is None:
            raise UsageError(
                "this machine could not destroy itself: CONTAINER_ID or CONTAINER_API_KEY is not "
                "set; nothing is trained"
            )
        provider = connect(key, self._given.vast_url, retry_seconds=0)
        return Instance(int(number), key, provider)

    def _pulse(self, instance: Instance) -> Pulse:
        return Pulse(
            self._run,
            self._arms,
            attempt=self._attempt,
            instance_id=instance.id,
            every_seconds=min(_BEAT_SECONDS, self._given.lease_poll_seconds),
            disk=self._given.places.cache_dir,
            net_dev=self._given.net_dev,
            net_before=self._given.net_before,
            pids=self._pids,
        )

    def _pids(self) -> list[int]:
        machines = [state.attempt.machine for state in self._states if state.attempt is not None]
        return [m.pid for m in machines if isinstance(m, LocalMachine) and m.pid is not None]

    # Before the workers start

    def _hold(self) -> None:
        """Wait for the first word about the lease; a zombie ends here."""
        self._lease.start()
        ends_at = time.monotonic() + 10 * self._given.lease_poll_seconds
        while not self._lease.known:
            self._check_signal()
            error = self._lease.error
            if self._lease.failures > 1 and not isinstance(error, StoreUnreachable):
                raise Ended("config", str(error))
            if time.monotonic() > ends_at:
                raise Ended("store_unreachable", str(error or "the lease could not be read"))
            self._sleep(self._given.poll_seconds)
        if not self._lease.standing().may_work:
            raise Ended("lease_lost", self._lease.words)
        self._holds = True

    def _begin(self, pulse: Pulse) -> None:
        """See what this machine is good for; each thing that is wrong has an outcome of its own."""
        self._probe_disk()

        def begin() -> None:
            # An earlier start of this attempt may have left both.
            self._run.delete(f"{self._name}/exit.json")
            self._arms.begin(self._said_before())
            self._run.write_json(f"{self._name}/beat.json", pulse.beat())

        try:
            within(self._store_seconds, begin, tick=self._tick)
        except StoreUnreachable as error:
            raise Ended("store_unreachable", str(error)) from error
        except TSGBError as error:
            raise Ended("config", str(error)) from error
        pulse.start()

    def _said_before(self) -> Mapping[str, Any]:
        try:
            return self._run.read_json(f"{self._name}/beat.json")
        except StoreUnreachable:
            raise
        except (FileNotFoundError, StoreError):
            return {}

    def _probe_disk(self) -> None:
        disk = self._given.places.cache_dir
        try:
            disk.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=disk) as file:
                file.write(bytes(1 << 20))
            free = shutil.disk_usage(disk).free
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise Ended(
                "disk_full" if full else "bad_host", f"{disk} cannot be written: {error.strerror}"
            ) from error
        if free < self._given.min_free_bytes:
            raise Ended(
                "disk_full",
                f"{disk}: {free / 1e9:.1f} GB free, {self._given.min_free_bytes / 1e9:.1f} needed",
            )

    # While they work

    def _train(self) -> None:
        run_processes(
            [Job(arm, lambda arm=arm: self._worker(arm)) for arm in self._arms.runs],
            max_parallel=self._given.max_parallel,
            on_poll=self._look,
            grace_seconds=self._given.places.grace_seconds,
            poll_seconds=self._given.poll_seconds,
            sleep=self._sleep,
        )

    def _worker(self, arm: str) -> Attempt:
        url = self._arms.runs[arm].run_url
        # The code here is the bundle that this run's user packed, and nothing else of theirs.
        words = ["run", "--resume-path", url, "--attempt", str(self._attempt), "--trust-config"]
        path = self._given.log_dir / self._run.run_id / f"{arm}-{self._attempt:04d}.log"
        command = [*self._given.worker_command, *words]
        # Without the store: how it ended is judged from its exit code here, and read in full later.
        return Attempt(
            machine=LocalMachine(command, path, self._given.worker_environment), log=str(path)
        )

    def _look(self, states: Sequence[JobState]) -> None:
        self._states = states
        self._tick()
        self._check_signal()
        standing = self._lease.standing()
        if standing is Standing.REVOKED:
            raise Ended("interrupted", self._lease.words)
        if not standing.may_work:
            raise Ended("lease_lost", self._lease.words)

    def _check_signal(self) -> None:
        if self._signals.received is not None:
            name = signal.Signals(self._signals.received).name
            raise Ended("interrupted", f"stopped by {name}", signalled=True)

    def _sleep(self, seconds: float) -> None:
        self._tick()
        time.sleep(seconds)

    def _tick(self) -> None:
        if self._given.alive_file is not None:
            with suppress(OSError):
                self._given.alive_file.touch()

    # At the end

    def _leave(self, end: Ended | None) -> str:
        """Write the exit record, or give up in time; the outcome."""
        try:
            return self._record(end)
        except Exception:  # noqa: BLE001 - the machine costs money
            get_logger().error("no exit record", traceback=traceback.format_exc())
            return "crash" if end is None else end.outcome

    def _record(self, end: Ended | None) -> str:
        ends = self._ends()
        for one in ends:
            if one.log_tail:
                sys.stdout.write(f"[{one.arm}]\n{one.log_tail.rstrip()}\n")
        sys.stdout.flush()
        record = exit_record(
            ends,
            outcome=None if end is None else end.outcome,
            message="" if end is None else str(end),
        )
        log = get_logger().bind(outcome=record["outcome"], reason=record["message"])
        log.info("this machine ends")
        name = f"{self._name}/exit.json"

        def write() -> None:
            if not self._holds and self._is_there(name):
                return  # what this attempt left when it ended counts, and no zombie's word
            self._run.write_json(name, {"attempt": self._attempt, **record})

        try:
            within(self._store_seconds, write, tick=self._tick)
        except TSGBError as error:
            log.warning("exit record not written", error=str(error))
        return str(record["outcome"])

    def _is_there(self, name: str) -> bool:
        try:
            self._run.read_bytes(name)
        except FileNotFoundError:
            return False
        return True

    def _ends(self) -> list[ArmEnd]:
        records = self._records()
        states = {state.key: state for state in self._states}
        ends: list[ArmEnd] = []
        for arm in self._arms.runs:
            known = self._arms.progress.get(arm)
            step, durable = (0, -1) if known is None else (known.step, known.durable_step)
            attempt = states[arm].attempt if arm in states else None
            if attempt is None:
                ends.append(ArmEnd(arm=arm, outcome=None, step=step, durable_step=durable))
                continue
            ends.append(
                ArmEnd.of(
                    arm,
                    exit_code=attempt.machine.status().exit_code,
                    record=records.get(arm, {}),
                    step=step,
                    durable_step=durable,
                    useful_seconds=0.0 if known is None else known.useful_seconds,
                    earlier_seconds=0.0 if known is None else known.earlier_seconds,
                    log_tail=attempt.machine.logs(_TAIL_BYTES),
                )
            )
        return ends

    def _records(self) -> Mapping[str, Mapping[str, Any]]:
        """What the workers left; nothing if there were none, or the store does not answer."""
        if not self._states:
            return {}

        def look() -> Mapping[str, Mapping[str, Any]]:
            self._arms.look()
            return self._arms.exits()

        try:
            return within(self._store_seconds, look, tick=self._tick)
        except TSGBError as error:
            get_logger().warning("exit records not read", reason=str(error))
            return {}


def _exit_code(outcome: str) -> ExitCode:
    return EXIT_CODES.get(outcome, ExitCode.FAILURE)
