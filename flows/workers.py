"""Worker processes of a run: their command lines, their traces in the store, how they are driven.

It knows the worker's contract and the layout of a run in the store. It knows no Prefect and no
torch, and decides nothing that `tsgb.processes` can decide.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.interrupts import check_interrupt
from flows.progress import bar_of, listener
from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.filesystem import DEADLINE_SECONDS
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunLock, RunStore, open_run
from tsgb.checkpoint.urls import join_run
from tsgb.cloud.termination import JobEnd, TerminationReason
from tsgb.config import Arm, RunConfig, arm_run_id, parse_config
from tsgb.envs import Environment, make_environment
from tsgb.errors import (
    ExitCode,
    LeaseLost,
    Preempted,
    StoreError,
    StoreFull,
    StoreUnreachable,
    TSGBError,
    UsageError,
    WorkerFailed,
)
from tsgb.eval.additions import Additions
from tsgb.models.requirements import workers_at_a_time
from tsgb.plugins import Trust
from tsgb.processes import Job, JobState, LocalProcess, StartedJob, run_processes
from tsgb.settings import Settings, child_environment
from tsgb.types import CheckpointRef

_FAILURES: Mapping[object, tuple[TerminationReason, type[TSGBError]]] = {
    "lease_lost": (TerminationReason.LEASE_LOST, LeaseLost),
    "disk_full": (TerminationReason.DISK_FULL, StoreFull),
    "config": (TerminationReason.CONFIG, WorkerFailed),
}
"""Termination reasons and errors by the outcome in a worker's exit record."""

Checkpoints = dict[Arm, CheckpointRef]
"""The checkpoint of each arm at the end of a segment."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Starts the workers of one run and its arms.

    Example: `Workers(load_settings(), "file:///tmp/runs", "r1").newest([Arm.SELFPLAY])`
    """

    settings: Settings
    """Settings of this process."""
    store: str
    """URL of the store that holds the run."""
    run: str
    """Id of the run."""
    env: str | None = None
    """The run's world as this flow's own user named it: workers may import its module."""
    alone: Arm | None = None
    """The arm that rented machines train alone; None where one machine trains all arms."""

    @property
    def home(self) -> str:
        """Id of the run that keeps what renting writes: lease, ledger and attempts.

        It is the main run, or that of an arm which has machines to itself.
        """
        return arm_run_id(self.run, self.alone or Arm.SELFPLAY)

    def open_home(self, deadline_seconds: float = DEADLINE_SECONDS) -> RunStore:
        """Return the store of that run."""
        return self.open(self.alone or Arm.SELFPLAY, deadline_seconds)

    def open(
        self,
        arm: Arm = Arm.SELFPLAY,
        deadline_seconds: float = DEADLINE_SECONDS,
        cache: FileCache | None = None,
    ) -> RunStore:
        """Return the store of an arm's run; without a cache, what is verified lies in the store."""
        url = join_run(self.store, arm_run_id(self.run, arm))
        settings = self.settings
        return open_run(
            url,
            settings.webdav_user,
            settings.webdav_pass,
            manifest_key=settings.manifest_key,
            cache=cache,
            deadline_seconds=deadline_seconds,
        )

    def config(self, arm: Arm = Arm.SELFPLAY) -> RunConfig:
        """Return the stored configuration of an arm."""
        run = self.open(arm)
        return parse_config(run.read_text("config.json"), f"{run.run_url}/config.json")

    def world(self, config: RunConfig) -> Environment:
        """Return the world of a configuration; its module may be imported if the user named it."""
        return make_environment(
            config.env,
            world_seed=config.world_seed,
            world=config.world,
            trust=Trust.of(self.env),
        )

    def build(self, arm: Arm) -> None:
        """Build the models that the run needs, in as many parts as there are workers at a time."""
        run = self.open(arm)
        run.check_writable()  # a run that is resumed has written nothing yet
        num = self._at_a_time(arm, self.settings.max_parallel)
        jobs = [
            self._job(
                f"part {part + 1}",
                run,
                f"build-{part}",
                ["build", "--part", f"{part}/{num}"],
                heartbeat=f"builds/progress-{part}.json",
                at_a_time=num,
            )
            for part in range(num)
        ]
        self._drive("building models", jobs, at_a_time=num, stall_seconds=None)

    def train(
        self,
        targets: Mapping[Arm, int],
        attempt: int,
        label: str,
        pins: Mapping[Arm, str] | None = None,
    ) -> list[JobState]:
        """Bring every arm to its target; return how its worker ended, for each that had work left.

        Args:
            targets: Update to reach, by arm.
            attempt: Number of the attempt.
            label: Name of the stage, for people.
            pins: Hash of the only checkpoint to go on from, by arm; without it the newest one.
        """
        pinned = pins or {}
        reached = self.reached(targets)
        # All arms count, or the batches of one would depend on how far the others are.
        most = min(self.settings.max_parallel, len(targets))
        num = self._at_a_time(next(iter(targets)), most)
        jobs = [
            Job(
                arm.value,
                lambda arm=arm: self._trainer(
                    self.open(arm), attempt, targets[arm], num, pinned.get(arm)
                ),
            )
            for arm in targets
            if arm not in reached
        ]
        return self._run(label, jobs, at_a_time=num, stall_seconds=self.settings.stall_seconds)

    def reached(self, targets: Mapping[Arm, int]) -> Checkpoints:
        """Return the newest checkpoint of each arm that is at its target or beyond, read in full.

        Args:
            targets: Update to reach, by arm.
        """
        found: Checkpoints = {}
        for arm, ref in self.newest(targets).items():
            if ref.step < targets[arm]:
                continue
            valid = CheckpointReader(self.open(arm)).newest_valid(listener().note)
            if valid is not None and valid[0].step >= targets[arm]:
                found[arm] = valid[0]
        return found

    def verified(self, targets: Mapping[Arm, int]) -> Checkpoints:
        """Return the checkpoints of all arms at their targets, read in full.

        Raises:
            Preempted: One is not there: what was saved did not survive, and the next attempt starts
                from an older one.
        """
        found = self.reached(targets)
        for arm, target in targets.items():
            if arm not in found:
                raise Preempted(f"no checkpoint of {arm} at step {target} verifies")
        return found

    def newest(
        self, arms: Iterable[Arm], deadline_seconds: float = DEADLINE_SECONDS
    ) -> Checkpoints:
        """Return the newest checkpoint of each arm that has one, by name."""
        found = {arm: CheckpointReader(self.open(arm, deadline_seconds)).newest() for arm in arms}
        return {arm: ref for arm, ref in found.items() if ref is not None}

    def total_updates(self, arms: Iterable[Arm], deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """Return the updates that all arms together have in their newest checkpoints."""
        return sum(ref.step for ref in self.newest(arms, deadline_seconds).values())

    def evaluate(
        self,
        arm: Arm,
        eval_id: str,
        added: Additions | None = None,
    ) -> None:
        """Fill the cells of an evaluation, in as many parts as there are workers at a time."""
        num = self._at_a_time(arm, self.settings.max_parallel, evaluates=True)
        self._evaluate(arm, eval_id, range(num), num, added or Additions(), at_a_time=num)

    def evaluate_part(
        self, arm: Arm, eval_id: str, part: int, parts: int, added: Additions
    ) -> None:
        """Fill one part of an evaluation's cells, beside other machines that fill the others."""
        self._evaluate(arm, eval_id, [part], parts, added, at_a_time=1)

    def _evaluate(
        self,
        arm: Arm,
        eval_id: str,
        mine: Iterable[int],
        parts: int,
        added: Additions,
        *,
        at_a_time: int,
    ) -> None:
        run, own = self.open(arm), _arguments(added)
        jobs = [
            self._job(
                f"part {part + 1}",
                run,
                f"evaluate-{eval_id}-{part}",
                ["evaluate", "--eval-id", eval_id, "--part", f"{part}/{parts}", *own],
                heartbeat=f"reports/{eval_id}/progress-{part}.json",
                at_a_time=at_a_time,
            )
            for part in mine
        ]
        self._drive(
            f"evaluating {self.run}",
            jobs,
            at_a_time=at_a_time,
            stall_seconds=self.settings.stall_seconds,
        )

    def report(self, arm: Arm, eval_id: str, more_urls: Sequence[str]) -> None:
        """Merge the cells of this run and of further seeds into one report, kept in this run.

        A report that says that it is not valid is one too: whoever reads its summary decides.
        """
        arguments = ["report", "--eval-id", eval_id]
        for url in more_urls:
            arguments += ["--resume-path", url]
        job = self._job("report", self.open(arm), f"report-{eval_id}", arguments)
        label = "writing the report"
        states = self._run(label, [job], at_a_time=1, stall_seconds=None)
        check_ends(label, [state for state in states if state.exit_code != ExitCode.INVALID])

    def attempts(self, arm: Arm) -> int:
        """How many workers an arm took: attempts that came to train it.

        A rented machine that never boots has a number too, but claims no arm.
        """
        return len({claim.attempt for claim in self.open(arm).fencing_tokens()})

    def highest(self, arm: Arm) -> int:
        """Return the highest attempt begun on an arm; the next one has a higher number."""
        return _highest(self.open(arm))

    def wait_for_saver(self, arm: Arm) -> None:
        """Let a worker end that still saves, because the flow that started it was killed.

        Raises:
            UsageError: One works on after the grace for saving: somebody else's.
        """
        url = self.open(arm).run_url
        deadline = time.monotonic() + self.settings.grace_seconds
        while True:
            try:
                with RunLock(url):
                    return
            except UsageError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(self.settings.poll_seconds)

    def _at_a_time(self, arm: Arm, most: int, *, evaluates: bool = False) -> int:
        """Return how many workers run at a time: `most`, or as many as memory has room for."""
        if most == 1:
            return most
        config, settings = self.config(arm), self.settings
        num = workers_at_a_time(
            config,
            self.world(config),
            settings,
            settings.cache_dir / "models",
            most=most,
            evaluates=evaluates,
            shares=settings.memory_shares,
        )
        if num < most:
            listener().note(f"memory has room for {num} of {most} workers at a time")
        return num

    def _trainer(
        self, run: RunStore, attempt: int, target: int, at_a_time: int, pin: str | None
    ) -> StartedJob:
        return self._begin(
            run,
            f"train-{attempt:04d}",
            ["run", "--attempt", str(attempt), "--until-step", str(target)],
            heartbeat=f"heartbeats/{attempt:04d}.json",
            exit_record=f"exits/{attempt:04d}.json",
            at_a_time=at_a_time,
            more={} if pin is None else {"TSGB_RESUME_PINS": pin},
        )

    def _job(
        self,
        key: str,
        run: RunStore,
        log: str,
        arguments: Sequence[str],
        heartbeat: str | None = None,
        at_a_time: int = 1,
    ) -> Job:
        return Job(
            key,
            lambda: self._begin(run, log, arguments, heartbeat=heartbeat, at_a_time=at_a_time),
        )

    def _begin(
        self,
        run: RunStore,
        log: str,
        arguments: Sequence[str],
        *,
        heartbeat: str | None = None,
        exit_record: str | None = None,
        at_a_time: int = 1,
        more: Mapping[str, str] | None = None,
    ) -> StartedJob:
        verb, *rest = arguments
        # What the store names as the world is imported only if this flow's user named it too.
        own = ["--env", self.env] if self.env is not None and ":" in self.env else []
        command = [*self.settings.worker_command, verb, "--resume-path", run.run_url, *rest, *own]
        shares = self.settings.shared_by(at_a_time)
        environment = {**child_environment(self.settings), **shares, **(more or {})}
        log_path = self.settings.log_dir / run.run_id / f"{log}.log"
        return StartedJob(
            process=LocalProcess(command, log_path, environment),
            exit_record=lambda: _read(run, exit_record) if exit_record else None,
            progress=lambda: _glance(run, heartbeat) if heartbeat else None,
            log=str(log_path),
        )

    def _drive(
        self,
        label: str,
        jobs: Sequence[Job],
        *,
        at_a_time: int = 1,
        stall_seconds: float | None,
    ) -> None:
        """Run all jobs to their end; raise unless all end well."""
        states = self._run(label, jobs, at_a_time=at_a_time, stall_seconds=stall_seconds)
        check_ends(label, states)

    def _run(
        self, label: str, jobs: Sequence[Job], *, at_a_time: int, stall_seconds: float | None
    ) -> list[JobState]:
        def look(states: Sequence[JobState]) -> None:
            check_interrupt()
            listener().bars(label, [bar_of(state) for state in states])

        return run_processes(
            jobs,
            max_parallel=at_a_time,
            on_poll=look,
            stall_seconds=stall_seconds,
            grace_seconds=self.settings.grace_seconds,
            poll_seconds=self.settings.poll_seconds,
            clock=time.monotonic,
            sleep=time.sleep,
        )


def _arguments(added: Additions) -> list[str]:
    """Return the arguments by which a worker gets what the user added; it reads keys itself."""
    words = [word for path in added.target_class for word in ("--target-class", path)]
    words += [word for text in added.guards for word in ("--guard", text)]
    for endpoint in added.endpoints:
        words += ["--endpoint", endpoint.model_dump_json()]
    values = {
        "--judge-class": added.judge_class,
        "--judge": added.judge,
        "--adaptive": added.adaptive or None,
        "--max-requests": added.max_requests,
        "--max-cost": added.max_cost,
    }
    return words + [
        word for name, value in values.items() if value is not None for word in (name, str(value))
    ]


def check_ends(label: str, states: Sequence[JobState]) -> None:
    """Raise unless all ended well; a reason that no retry cures counts before a lost machine.

    Raises:
        Preempted: A worker vanished; the others have saved.
        TSGBError: A worker said why it cannot go on.
    """
    for state in states:
        if state.end is JobEnd.FAILED:
            _, error = failure_of(state)
            raise error(f"{label}: {state.key}: {state.message}")
    lost = [f"{s.key} ({s.message})" for s in states if s.end is JobEnd.PREEMPTED]
    if lost:
        error = Preempted(f"{label}: lost {', '.join(lost)}")
        listener().note(f"{error}; going on from the last checkpoint")
        raise error


def failure_of(state: JobState) -> tuple[TerminationReason, type[TSGBError]]:
    """Return the termination reason and the error of a worker that failed."""
    said = None if state.exit_record is None else state.exit_record.get("outcome")
    return _FAILURES.get(said, (TerminationReason.WORKER, WorkerFailed))


def _highest(run: RunStore) -> int:
    """Return the highest attempt begun: by this flow, or by a worker started by hand."""
    begun = run.attempt_documents("attempts")
    return max([*begun, *(claim.attempt for claim in run.fencing_tokens())], default=0)


def _read(run: RunStore, name: str) -> Mapping[str, Any] | None:
    """Read what a worker wrote; half a document, of one that died, is none.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    try:
        return run.read_json(name)
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        return None


def _glance(run: RunStore, name: str) -> Mapping[str, Any] | None:
    """Read like `_read`; a heartbeat that cannot be read now is read at the next look."""
    try:
        return _read(run, name)
    except StoreUnreachable:
        return None


def segment_targets(configs: Mapping[Arm, RunConfig], segment: int) -> dict[Arm, int]:
    """Return the update at which a segment ends, by arm."""
    return {arm: config.segment_target(segment) for arm, config in configs.items()}


def as_json(refs: Checkpoints) -> dict[str, dict[str, Any]]:
    """References as a flow returns them."""
    return {arm.value: asdict(ref) for arm, ref in refs.items()}
