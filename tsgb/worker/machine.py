"""`tsgb worker machine`: the watcher of a rented machine, which starts the workers of all arms.

At its end the watcher destroys its instance with the instance's own key: when the work is done or
has failed, when the lease has ended or belongs to another attempt, and when the store was
unreachable for longer than the lease lasts. After a signal, the sender of the signal decides. No
decision waits for the network, and if the watcher itself dies, `infra/onstart.sh` destroys the
instance.

The watcher trains nothing and is torch-free. The exit record of a worker counts before its exit
code.
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
from typing import Any

from tsgb.checkpoint.documents import MAX_JSON_BYTES
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.urls import join_run
from tsgb.cloud.card import CardProbe
from tsgb.cloud.connect import connect
from tsgb.cloud.lease import LeaseState
from tsgb.config import Arm, arm_run_id
from tsgb.errors import (
    ExitCode,
    StoreError,
    StoreUnreachable,
    TSGBError,
    UsageError,
)
from tsgb.logging import get_logger
from tsgb.processes import Job, JobState, LocalProcess, StartedJob, run_processes
from tsgb.worker.card_probe import CardFault, probe_card
from tsgb.worker.context import MachineContext, StopSignals
from tsgb.worker.exit_record import EXIT_CODES, WorkerEnd, machine_exit_record
from tsgb.worker.heartbeat import ArmMonitor, MachineHeartbeat
from tsgb.worker.lease_monitor import LeaseMonitor, run_within
from tsgb.worker.self_destruct import DestroySchedule, SelfDestruct

_TAIL_BYTES = 2048
"""Bytes of each worker's log that go into the exit record."""
_HEARTBEAT_SECONDS = 10.0
"""Seconds between two heartbeats, unless the lease is read more often."""


class MachineEnd(Exception):  # noqa: N818 - an end, not an error
    """The work on this machine ends before its workers do."""

    def __init__(self, outcome: str, message: str, *, signalled: bool = False) -> None:
        """Describe the end.

        Args:
            outcome: Outcome for the exit record.
            message: Reason, for people.
            signalled: Whether a signal ended it, whose sender decides about the instance.
        """
        super().__init__(message)
        self.outcome = outcome
        self.signalled = signalled


class WorkerMachine:
    """One attempt at all arms of a run, on this machine."""

    def __init__(
        self, context: MachineContext, run_url: str, attempt: int, arms: Sequence[Arm]
    ) -> None:
        """Open the stores; nothing is read or written.

        Args:
            context: Settings of this machine.
            run_url: URL of the main run; of an arm's own, if that arm is alone and not self-play.
            attempt: Fencing token.
            arms: Arms to train, in the order in which their workers start. Without any, the machine
                shows that it could: it does all but train.
        """
        self._context = context
        self._poll_seconds = context.worker.poll_seconds
        self._lease_poll_seconds = context.instance.lease_poll_seconds
        self._attempt = attempt
        self._name = f"machines/{attempt:04d}"
        self._run = self._open(run_url)
        store, _, name = self._run.run_url.rpartition("/")
        own = {arm: name for arm in arms if len(arms) == 1}
        ids = {arm: arm_run_id(name, arm) for arm in arms} if Arm.SELFPLAY in arms else own
        if arms and not ids:
            raise UsageError(f"arms {', '.join(arms)} lack 'selfplay', whose run is the main one")
        runs = {arm.value: self._open(join_run(store, run_id)) for arm, run_id in ids.items()}
        self._arms = ArmMonitor(runs, attempt)
        self._lease = LeaseMonitor(self._run, attempt, every_seconds=self._lease_poll_seconds)
        self._signals = StopSignals()
        self._states: Sequence[JobState] = []
        self._has_lease = False
        """Whether the lease was valid at this start, so that this process may replace records."""
        self._store_seconds = 4 * self._lease_poll_seconds
        """Seconds that an end waits for the store, because the machine costs money meanwhile."""

    def run(self) -> ExitCode:
        """Train, write an exit record and destroy this instance; return the exit code."""
        self._signals = StopSignals.installed()
        try:
            instance = self._instance()
        except TSGBError as error:
            return _exit_code(self._try_to_record(MachineEnd("config", str(error))))
        heartbeat = self._heartbeat(instance)
        try:
            return self._run_until_destroyed(instance, heartbeat)
        finally:
            self._lease.stop()
            heartbeat.stop()

    def _run_until_destroyed(self, instance: SelfDestruct, heartbeat: MachineHeartbeat) -> ExitCode:
        end: MachineEnd | None = None
        try:
            self._wait_for_lease()
            self._begin(heartbeat)
            heartbeat.enter("train")
            self._train()
        except MachineEnd as early:
            end = early
        except Exception as error:  # noqa: BLE001 - whatever it is, the machine costs money
            get_logger().error("the watcher failed", traceback=traceback.format_exc())
            end = MachineEnd("crash", f"the watcher failed: {type(error).__name__}: {error}")
        heartbeat.enter("ending")
        outcome = self._try_to_record(end, heartbeat)
        if end is not None and end.signalled:
            return ExitCode.INTERRUPTED
        instance.destroy(DestroySchedule.of(self._lease_poll_seconds), sleep=self._sleep)
        return _exit_code(outcome)

    def _open(self, url: str) -> RunStore:
        return self._context.open(url, deadline_seconds=self._lease_poll_seconds)

    def _instance(self) -> SelfDestruct:
        settings = self._context.instance
        number, key = settings.container_id, settings.container_api_key
        if number is None or not number.isdecimal() or key is None:
            raise UsageError(
                "this machine could not destroy itself: CONTAINER_ID or CONTAINER_API_KEY is not "
                "set; nothing is trained"
            )
        provider = connect(key, self._context.cloud.vast_url, retry_seconds=0)
        return SelfDestruct(int(number), key, provider)

    def _heartbeat(self, instance: SelfDestruct) -> MachineHeartbeat:
        settings = self._context.instance
        return MachineHeartbeat(
            self._run,
            self._arms,
            attempt=self._attempt,
            instance_id=instance.instance_id,
            every_seconds=min(_HEARTBEAT_SECONDS, self._lease_poll_seconds),
            disk=self._context.worker.cache_dir,
            net_dev=settings.net_dev,
            net_before=settings.net_before,
            pids=self._pids,
        )

    def _pids(self) -> list[int]:
        processes = [state.started.process for state in self._states if state.started is not None]
        return [p.pid for p in processes if isinstance(p, LocalProcess) and p.pid is not None]

    # Before the workers start

    def _wait_for_lease(self) -> None:
        """Wait until the lease is read, and end the machine if the lease is over."""
        self._lease.start()
        ends_at = time.monotonic() + 10 * self._lease_poll_seconds
        while not self._lease.known:
            self._check_signal()
            error = self._lease.error
            if self._lease.failures > 1 and not isinstance(error, StoreUnreachable):
                raise MachineEnd("config", str(error))
            if time.monotonic() > ends_at:
                raise MachineEnd("store_unreachable", str(error or "the lease could not be read"))
            self._sleep(self._poll_seconds)
        if not self._lease.standing().may_work:
            raise MachineEnd("lease_lost", self._lease.reason)
        self._has_lease = True

    def _begin(self, heartbeat: MachineHeartbeat) -> None:
        """Check disk, card and store; each fault ends the machine with an outcome of its own."""
        self._probe_disk()
        heartbeat.probe = self._probe_card()

        def begin() -> None:
            # An earlier start of this attempt may have left both.
            self._run.delete(f"{self._name}/exit.json")
            self._arms.begin(self._earlier_heartbeat())
            self._run.write_json(f"{self._name}/beat.json", heartbeat.measure())

        try:
            run_within(self._store_seconds, begin, tick=self._tick)
        except StoreUnreachable as error:
            raise MachineEnd("store_unreachable", str(error)) from error
        except TSGBError as error:
            raise MachineEnd("config", str(error)) from error
        heartbeat.start()

    def _earlier_heartbeat(self) -> Mapping[str, Any]:
        try:
            return self._run.read_json(f"{self._name}/beat.json")
        except StoreUnreachable:
            raise
        except (FileNotFoundError, StoreError):
            return {}

    def _probe_card(self) -> CardProbe | None:
        """Return what the card has done in the probe; None for work that needs no card."""
        settings = self._context.instance

        def sleep(seconds: float) -> None:
            self._check_signal()
            if not self._lease.standing().may_work:
                raise MachineEnd("lease_lost", self._lease.reason)
            self._sleep(seconds)

        if not settings.card_gb:
            return None
        try:
            return probe_card(
                settings.probe_command,
                self._context.environment,
                card_gb=settings.card_gb,
                sleep=sleep,
            )
        except CardFault as fault:
            raise MachineEnd("bad_host", str(fault)) from fault

    def _probe_disk(self) -> None:
        disk = self._context.worker.cache_dir
        try:
            disk.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=disk) as file:
                file.write(bytes(1 << 20))
            free = shutil.disk_usage(disk).free
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise MachineEnd(
                "disk_full" if full else "bad_host", f"{disk} cannot be written: {error.strerror}"
            ) from error
        needed = self._context.instance.min_free_gb
        if free < needed * 1e9:
            raise MachineEnd("disk_full", f"{disk}: {free / 1e9:.1f} GB free, {needed:.1f} needed")

    # While the workers run

    def _train(self) -> None:
        if not self._arms.runs:
            raise MachineEnd("done", "no arms to train: this machine could")
        run_processes(
            [Job(arm, lambda arm=arm: self._worker(arm)) for arm in self._arms.runs],
            max_parallel=self._at_a_time,
            on_poll=self._look,
            grace_seconds=self._context.worker.grace_seconds,
            poll_seconds=self._poll_seconds,
            sleep=self._sleep,
        )

    @property
    def _at_a_time(self) -> int:
        """Number of workers that run at a time; all arms count, also those that have ended."""
        return min(self._context.worker.max_parallel, len(self._arms.runs))

    def _worker(self, arm: str) -> StartedJob:
        url = self._arms.runs[arm].run_url
        # The only code here is the archive that the user of this run packed.
        arguments = ["run", "--resume-path", url, "--attempt", str(self._attempt), "--trust-config"]
        path = self._context.worker.log_dir / self._run.run_id / f"{arm}-{self._attempt:04d}.log"
        command = [*self._context.worker.worker_command, *arguments]
        # No exit record is read while workers run, so that the loop never waits for the store.
        shared = self._context.worker.shared_by(self._at_a_time)
        environment = {**self._context.environment, **shared}
        return StartedJob(process=LocalProcess(command, path, environment), log=str(path))

    def _look(self, states: Sequence[JobState]) -> None:
        self._states = states
        self._tick()
        self._check_signal()
        standing = self._lease.standing()
        if standing is LeaseState.REVOKED:
            raise MachineEnd("interrupted", self._lease.reason)
        if not standing.may_work:
            raise MachineEnd("lease_lost", self._lease.reason)

    def _check_signal(self) -> None:
        if self._signals.received is not None:
            name = signal.Signals(self._signals.received).name
            raise MachineEnd("interrupted", f"stopped by {name}", signalled=True)

    def _sleep(self, seconds: float) -> None:
        self._tick()
        time.sleep(seconds)

    def _tick(self) -> None:
        alive_file = self._context.instance.alive_file
        if alive_file is not None:
            with suppress(OSError):
                alive_file.touch()

    # At the end

    def _try_to_record(
        self, end: MachineEnd | None, heartbeat: MachineHeartbeat | None = None
    ) -> str:
        """Write the exit record if the store takes it in time; return the outcome."""
        try:
            return self._record(end, heartbeat)
        except Exception:  # noqa: BLE001 - the machine costs money
            get_logger().error("no exit record", traceback=traceback.format_exc())
            return "crash" if end is None else end.outcome

    def _record(self, end: MachineEnd | None, heartbeat: MachineHeartbeat | None) -> str:
        ends = self._ends()
        for one in ends:
            if one.log_tail:
                sys.stdout.write(f"[{one.arm}]\n{one.log_tail.rstrip()}\n")
        sys.stdout.flush()
        record = machine_exit_record(
            ends,
            outcome=None if end is None else end.outcome,
            message="" if end is None else str(end),
        )
        log = get_logger().bind(outcome=record["outcome"], reason=record["message"])
        log.info("this machine ends")
        name = f"{self._name}/exit.json"

        def write() -> None:
            if not self._has_lease and self._exists(name):
                return  # keep the record that this attempt wrote while it had the lease
            self._run.write_json(name, {"attempt": self._attempt, **record})
            if heartbeat is not None and self._has_lease:
                heartbeat.write_if_none()  # after the record, so that nobody sees it alone

        try:
            run_within(self._store_seconds, write, tick=self._tick)
        except TSGBError as error:
            log.warning("exit record not written", error=str(error))
        return str(record["outcome"])

    def _exists(self, name: str) -> bool:
        try:
            self._run.read_bytes(name, MAX_JSON_BYTES)
        except FileNotFoundError:
            return False
        return True

    def _ends(self) -> list[WorkerEnd]:
        records = self._records()
        states = {state.key: state for state in self._states}
        ends: list[WorkerEnd] = []
        for arm in self._arms.runs:
            known = self._arms.progress.get(arm)
            step, durable = (0, -1) if known is None else (known.step, known.durable_step)
            started = states[arm].started if arm in states else None
            if started is None:
                ends.append(WorkerEnd(arm=arm, outcome=None, step=step, durable_step=durable))
                continue
            ends.append(
                WorkerEnd.of(
                    arm,
                    exit_code=started.process.status().exit_code,
                    record=records.get(arm, {}),
                    step=step,
                    durable_step=durable,
                    useful_seconds=0.0 if known is None else known.useful_seconds,
                    earlier_seconds=self._arms.earlier_seconds.get(arm, 0.0),
                    log_tail=started.process.logs(_TAIL_BYTES),
                )
            )
        return ends

    def _records(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the workers' exit records; none if the store does not answer in time."""
        if not self._states:
            return {}

        def read() -> Mapping[str, Mapping[str, Any]]:
            self._arms.read()
            return self._arms.exits()

        try:
            return run_within(self._store_seconds, read, tick=self._tick)
        except TSGBError as error:
            get_logger().warning("exit records not read", reason=str(error))
            return {}


def _exit_code(outcome: str) -> ExitCode:
    return EXIT_CODES.get(outcome, ExitCode.FAILURE)
