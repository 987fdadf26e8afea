"""Worker processes of a run: their command lines, their traces in the store, how they are driven.

It knows the worker's contract and the layout of a run in the store. It knows no Prefect and no
torch, and decides nothing that `tsgb.processes` can decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from flows.interrupts import check_interrupt
from flows.progress import bar_of, listener
from tsgb.checkpoint.filesystem import DEADLINE_SECONDS
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunLock, RunStore, open_run
from tsgb.checkpoint.urls import join_run
from tsgb.cloud.termination import JobEnd
from tsgb.config import Arm, RunConfig, arm_run_id, parse_config
from tsgb.errors import (
    LeaseLost,
    Preempted,
    StoreError,
    StoreFull,
    TSGBError,
    UsageError,
    WorkerFailed,
)
from tsgb.processes import Job, JobState, LocalProcess, StartedJob, run_processes
from tsgb.settings import Settings, child_environment
from tsgb.types import CheckpointRef

Watch = Callable[[Sequence[JobState]], None]


@dataclass(frozen=True, slots=True)
class Workers:
    """Starts the workers of one run and its arms.

    Example: `Workers(load_settings(), "file:///tmp/runs", "r1").train([Arm.SELFPLAY], 0)`
    """

    settings: Settings
    """Settings of this process."""
    store: str
    """URL of the store that holds the run."""
    run: str
    """Id of the run."""
    env: str | None = None
    """The run's world as this flow's own user named it: workers may import its module."""

    def open(self, arm: Arm = Arm.SELFPLAY, deadline_seconds: float = DEADLINE_SECONDS) -> RunStore:
        """The store of an arm's run; no cache, so that what is verified lies in the store."""
        url = join_run(self.store, arm_run_id(self.run, arm))
        settings = self.settings
        return open_run(
            url,
            settings.webdav_user,
            settings.webdav_pass,
            manifest_key=settings.manifest_key,
            deadline_seconds=deadline_seconds,
        )

    def config(self, arm: Arm = Arm.SELFPLAY) -> RunConfig:
        """The stored configuration of an arm."""
        run = self.open(arm)
        return parse_config(run.read_text("config.json"), f"{run.run_url}/config.json")

    def build(self, arm: Arm, watch: Watch) -> None:
        """Build the models that the run needs, in as many parts as there are workers at a time."""
        run, num = self.open(arm), self.settings.max_parallel
        run.check_writable()  # a run that is resumed has written nothing yet
        jobs = [
            self._job(
                f"part {part + 1}",
                run,
                f"build-{part}",
                ["build", "--part", f"{part}/{num}"],
                heartbeat=f"builds/progress-{part}.json",
            )
            for part in range(num)
        ]
        self._drive("building models", jobs, watch, stall_seconds=None)

    def train(self, arms: Sequence[Arm], index: int, watch: Watch) -> dict[str, CheckpointRef]:
        """Bring every arm to the end of segment `index`; what is there already is not done again.

        Raises:
            Preempted: A worker vanished; the others have saved.
            WorkerFailed: A worker said why it cannot go on.
        """
        targets = {arm: self.config(arm).segment_target(index) for arm in arms}
        jobs = [
            Job(arm.value, lambda arm=arm, target=target: self._attempt(self.open(arm), target))
            for arm, target in targets.items()
            if self._reached(arm, target) is None
        ]
        label = f"segment {index}"
        self._drive(label, jobs, watch, stall_seconds=self.settings.stall_seconds)
        return self._verified(label, targets)

    def finished(self, arms: Sequence[Arm]) -> dict[str, CheckpointRef]:
        """The last checkpoint of every arm, read in full.

        Raises:
            Preempted: One is not there.
        """
        return self._verified("training", {arm: self.config(arm).total_steps for arm in arms})

    def are_finished(self, arms: Sequence[Arm]) -> bool:
        """Whether nothing is left to train, by the names of the newest checkpoints."""
        newest = {arm: CheckpointReader(self.open(arm)).newest() for arm in arms}
        return all(
            ref is not None and ref.step >= self.config(arm).total_steps
            for arm, ref in newest.items()
        )

    def total_updates(self, arms: Sequence[Arm]) -> int:
        """Updates that all arms together have in their newest checkpoints."""
        newest = [CheckpointReader(self.open(arm)).newest() for arm in arms]
        return sum(ref.step for ref in newest if ref is not None)

    def _verified(self, label: str, targets: Mapping[Arm, int]) -> dict[str, CheckpointRef]:
        refs: dict[str, CheckpointRef] = {}
        for arm, target in targets.items():
            ref = self._reached(arm, target)
            if ref is None:
                # What was saved did not survive: the next attempt starts from an older one.
                raise Preempted(f"{label}: no checkpoint of {arm} at step {target} verifies")
            refs[arm.value] = ref
        return refs

    def evaluate(
        self,
        arm: Arm,
        eval_id: str,
        watch: Watch,
        *,
        target_class: Sequence[str] = (),
        judge_class: str | None = None,
    ) -> None:
        """Fill the cells of an evaluation, in as many parts as there are workers at a time."""
        run, num = self.open(arm), self.settings.max_parallel
        own = [word for path in target_class for word in ("--target-class", path)]
        own += [] if judge_class is None else ["--judge-class", judge_class]
        jobs = [
            self._job(
                f"part {part + 1}",
                run,
                f"evaluate-{eval_id}-{part}",
                ["evaluate", "--eval-id", eval_id, "--part", f"{part}/{num}", *own],
                heartbeat=f"reports/{eval_id}/progress-{part}.json",
            )
            for part in range(num)
        ]
        stall_seconds = self.settings.stall_seconds
        self._drive(f"evaluating {self.run}", jobs, watch, stall_seconds=stall_seconds)

    def report(self, arm: Arm, eval_id: str, more_urls: Sequence[str], watch: Watch) -> None:
        """Merge the cells of this run and of further seeds into one report, kept in this run."""
        arguments = ["report", "--eval-id", eval_id]
        for url in more_urls:
            arguments += ["--resume-path", url]
        job = self._job("report", self.open(arm), f"report-{eval_id}", arguments)
        self._drive("writing the report", [job], watch, stall_seconds=None)

    def attempts(self, arm: Arm) -> int:
        """How many workers an arm took: attempts that came to train it.

        A rented machine that never boots has a number too, but claims no arm.
        """
        return len({claim.attempt for claim in self.open(arm).fencing_tokens()})

    def highest(self, arm: Arm) -> int:
        """The highest attempt that was begun on an arm; the next one has a higher number."""
        return _highest(self.open(arm))

    def _reached(self, arm: Arm, target: int) -> CheckpointRef | None:
        """The newest checkpoint, read in full, if it is at `target` or beyond."""
        checkpoints = CheckpointReader(self.open(arm))
        newest = checkpoints.newest()
        if newest is None or newest.step < target:
            return None
        found = checkpoints.newest_valid(listener().note)
        return found[0] if found is not None and found[0].step >= target else None

    def _attempt(self, run: RunStore, target: int) -> StartedJob:
        self._wait_for(run)
        number = _highest(run) + 1
        run.write_json(
            f"attempts/{number:04d}.json",
            {
                "attempt": number,
                "machine": "local",
                "until_step": target,
                "started_at": datetime.now(UTC).isoformat(),
            },
        )
        return self._begin(
            run,
            f"train-{number:04d}",
            ["run", "--attempt", str(number), "--until-step", str(target)],
            heartbeat=f"heartbeats/{number:04d}.json",
            exit_record=f"exits/{number:04d}.json",
        )

    def _wait_for(self, run: RunStore) -> None:
        """Let a worker end that still saves, because the flow that started it was killed."""
        deadline = time.monotonic() + self.settings.grace_seconds
        while True:
            try:
                with RunLock(run.run_url):
                    return
            except UsageError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(self.settings.poll_seconds)

    def _job(
        self,
        key: str,
        run: RunStore,
        log: str,
        arguments: Sequence[str],
        heartbeat: str | None = None,
    ) -> Job:
        return Job(key, lambda: self._begin(run, log, arguments, heartbeat=heartbeat))

    def _begin(
        self,
        run: RunStore,
        log: str,
        arguments: Sequence[str],
        *,
        heartbeat: str | None = None,
        exit_record: str | None = None,
    ) -> StartedJob:
        verb, *rest = arguments
        # What the store names as the world is imported only if this flow's user named it too.
        own = ["--env", self.env] if self.env is not None and ":" in self.env else []
        command = [*self.settings.worker_command, verb, "--resume-path", run.run_url, *rest, *own]
        log_path = self.settings.log_dir / run.run_id / f"{log}.log"
        return StartedJob(
            process=LocalProcess(command, log_path, child_environment(self.settings)),
            exit_record=lambda: _read(run, exit_record) if exit_record else None,
            progress=lambda: _glance(run, heartbeat) if heartbeat else None,
            log=str(log_path),
        )

    def _drive(
        self, label: str, jobs: Sequence[Job], watch: Watch, *, stall_seconds: float | None
    ) -> None:
        def look(states: Sequence[JobState]) -> None:
            check_interrupt()
            listener().bars(label, [bar_of(state) for state in states])
            watch(states)

        states = run_processes(
            jobs,
            max_parallel=self.settings.max_parallel,
            on_poll=look,
            stall_seconds=stall_seconds,
            grace_seconds=self.settings.grace_seconds,
            poll_seconds=self.settings.poll_seconds,
            clock=time.monotonic,
            sleep=time.sleep,
        )
        _raise_for(label, states)


def _raise_for(label: str, states: Sequence[JobState]) -> None:
    """Raise unless all are done; a reason that no retry cures counts before a lost machine."""
    for state in states:
        if state.end is JobEnd.FAILED:
            raise _failure(state)(f"{label}: {state.key}: {state.message}")
    lost = [f"{s.key} ({s.message})" for s in states if s.end is JobEnd.PREEMPTED]
    if lost:
        error = Preempted(f"{label}: lost {', '.join(lost)}")
        listener().note(f"{error}; going on from the last checkpoint")
        raise error


def _failure(state: JobState) -> type[TSGBError]:
    said = None if state.exit_record is None else state.exit_record.get("outcome")
    if said == "lease_lost":
        return LeaseLost
    return StoreFull if said == "disk_full" else WorkerFailed


def _highest(run: RunStore) -> int:
    """The highest attempt that was begun: by us, or by a worker that somebody started by hand."""
    begun = run.attempt_documents("attempts")
    return max([*begun, *(claim.attempt for claim in run.fencing_tokens())], default=0)


def _read(run: RunStore, name: str) -> Mapping[str, Any] | None:
    try:
        return run.read_json(name)
    except FileNotFoundError:
        return None


def _glance(run: RunStore, name: str) -> Mapping[str, Any] | None:
    """Read like `_read`; a heartbeat that cannot be read now is read at the next look."""
    try:
        return _read(run, name)
    except StoreError:
        return None


def as_json(refs: Mapping[str, CheckpointRef]) -> dict[str, dict[str, Any]]:
    """References as a flow returns them."""
    return {arm: asdict(ref) for arm, ref in refs.items()}
