"""The machine of a run as its flow holds it: processes of this computer, or rented instances.

Both live by the same steps (`tsgb.cloud.lifecycle`) and leave the same documents in the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from flows.homes import one_budget, settle
from flows.progress import listener
from flows.rented import renting
from flows.workers import Checkpoints, Workers, check_ends, failure_of, segment_targets
from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.reject import ReaderWithout
from tsgb.cloud.bill import RentalBill
from tsgb.cloud.documents import AttemptResult, RunDocuments
from tsgb.cloud.lifecycle import Machine, Recovery
from tsgb.cloud.termination import JobEnd, TerminationReason
from tsgb.config import Arm, RunConfig
from tsgb.errors import CheckpointError, Preempted, StoreError
from tsgb.processes import JobState
from tsgb.run_options import MachineKind
from tsgb.types import CheckpointRef

LOAD_FAILURES = 2
"""Failures to load a checkpoint after which the next attempt begins at the one before it; as many
as those of rented machines (`tsgb.cloud.retry_policy`)."""
_LAST_SECONDS = 10.0
"""Deadline of the store for the end of an attempt, which may be the end of the whole flow."""


@contextmanager
def machine_of(
    kind: MachineKind,
    workers: Workers,
    configs: Mapping[Arm, RunConfig],
    on_bill: Callable[[RentalBill], None],
) -> Generator[Machine[Checkpoints]]:
    """Yield the machine that trains a run; when the context is left, nothing of it is at work.

    Args:
        kind: Kind of machine.
        workers: Workers of the run.
        configs: Configurations of the arms to train.
        on_bill: Called with the bill of rented machines at their end.

    Raises:
        TSGBError: Machines of that kind cannot be had.
    """
    if kind is MachineKind.RENTED:
        with one_budget(workers, configs):
            if workers.alone is None:
                settle(workers, configs, apart=False)
            with renting(workers, configs, on_bill) as rented:
                yield rented
    else:
        yield LocalMachine(workers, configs)


class LocalMachine(Machine[Checkpoints]):
    """Worker processes of this computer, one an arm.

    Example: `LocalMachine(workers, configs).attempt(segment=0)`
    """

    def __init__(self, workers: Workers, configs: Mapping[Arm, RunConfig]) -> None:
        """Prepare; nothing is read yet."""
        self._workers = workers
        self._configs = configs
        self._documents = RunDocuments(workers.open())
        self._label = ""
        self._built = False
        self._attempt = 0
        self._states: Sequence[JobState] = ()
        self._not_loaded = {arm: Counter[str]() for arm in configs}
        """Names of the checkpoints of each arm that this flow's workers could not load, with the
        number of times. A flow that is started again forgets them, since a person may have mended
        what they really failed on."""

    def recover(self, segment: int) -> Recovery:
        """Let workers end that still save, because the flow that started them was killed."""
        for arm in self._configs:
            self._workers.wait_for_saver(arm)
        newest = self._documents.attempt(max(map(self._workers.highest, self._configs)))
        if newest is not None and newest.intent is None and newest.result is None:
            self._conclude(newest.attempt, TerminationReason.STOPPED, "its flow had died")
        reached = self._workers.reached(segment_targets(self._configs, segment))
        return Recovery.REACHED if len(reached) == len(self._configs) else Recovery.IDLE

    def launch(self, segment: int) -> None:
        """Build the models that are in no cache, and number the attempt; `monitor` starts it."""
        if not self._built:
            self._workers.build(next(iter(self._configs)))
            self._built = True
        self._attempt = max(map(self._workers.highest, self._configs)) + 1
        self._documents.note(
            self._attempt,
            machine=MachineKind.LOCAL.value,
            started_at=datetime.now(UTC).isoformat(),
            until_step=sum(segment_targets(self._configs, segment).values()),
        )

    def monitor(self, segment: int) -> None:
        """Run the workers to the segment's end; one that does not end well stops the others."""
        self._states, self._label = (), f"segment {segment}"
        self._states = self._workers.train(
            segment_targets(self._configs, segment), self._attempt, self._label, self._pins()
        )

    @property
    def is_over(self) -> bool:
        """Always: its workers end at the end of a segment."""
        return True

    def release(self, reason: str) -> None:
        """Write down how the attempt ended; `monitor` has ended its processes."""
        if self._attempt == 0:
            return
        attempt, self._attempt = self._attempt, 0
        cause, message = _end_of(self._states)
        self._conclude(attempt, cause, message or reason)

    def check(self) -> None:
        """Raise the error for workers that did not end well, with a failure before a loss.

        Raises:
            Preempted: A worker vanished, the others have saved; or it could not load a checkpoint,
                and the next attempt tries again or goes on from the one before it.
            TSGBError: A worker said why it cannot go on.
        """
        failed = [state for state in self._states if state.end is JobEnd.FAILED]
        again = [self._tries_again(state) for state in failed]
        if failed and all(again):
            error = Preempted("; ".join(again))
            listener().note(str(error))
            raise error
        check_ends(self._label, self._states)

    def _tries_again(self, state: JobState) -> str:
        """Return how the next attempt goes on where a worker loaded nothing; empty if none does.

        Where two checkpoints do not load alike, neither is to blame.
        """
        name = str((state.exit_record or {}).get("not_loaded", ""))
        failed, arm = CheckpointName.parse(name), Arm(state.key)
        if failed is None:
            return ""
        counts = self._not_loaded[arm]
        counts[name] += 1
        what = f"{self._label}: {arm}: {state.message}"
        if counts[name] < LOAD_FAILURES:
            return f"{what}; trying it once more"
        has_gone_back = any(
            other is not None and failed < other for other in map(CheckpointName.parse, counts)
        )
        before = None if has_gone_back else self._before(arm)
        return "" if before is None else f"{what}; going on from {before.name}, the one before it"

    def _pins(self) -> dict[Arm, str]:
        """Return the hash of the checkpoint to go on from, for arms whose newest does not load."""
        found: dict[Arm, str] = {}
        for arm, ref in self._workers.newest(self._configs).items():
            if self._not_loaded[arm][ref.name] >= LOAD_FAILURES:
                before = self._before(arm)
                if before is not None:
                    found[arm] = before.sha256
        return found

    def _before(self, arm: Arm) -> CheckpointRef | None:
        """Return the newest checkpoint that verifies and may load; None if there is none."""
        names = [name for name, num in self._not_loaded[arm].items() if num >= LOAD_FAILURES]
        try:
            found = ReaderWithout(self._workers.open(arm), names).newest_valid(listener().note)
        except CheckpointError:
            return None
        return None if found is None else found[0]

    def verify(self, segment: int) -> Checkpoints:
        """Return the checkpoints at the end of the segment, each read in full.

        Raises:
            Preempted: One of them is not there after all.
        """
        return self._workers.verified(segment_targets(self._configs, segment))

    def _conclude(self, attempt: int, cause: TerminationReason, message: str) -> None:
        """Write down how an attempt ended, where the store takes it; nothing depends on it."""
        at = datetime.now(UTC)
        try:
            step = self._workers.total_updates(self._configs, _LAST_SECONDS)
            result = AttemptResult(cause=cause, message=message, at=at, step=step)
            documents = RunDocuments(self._workers.open(deadline_seconds=_LAST_SECONDS))
            documents.note(attempt, outcome=result.model_dump(mode="json"))
        except StoreError as error:
            listener().note(f"the end of attempt {attempt} is not written down: {error}")


def _end_of(states: Sequence[JobState]) -> tuple[TerminationReason, str]:
    """Return why the attempt is over, and one line for people; a failure counts before a loss."""
    for state in states:
        if state.end is JobEnd.FAILED:
            return failure_of(state)[0], f"{state.key}: {state.message}"
    for state in states:
        if state.end is JobEnd.PREEMPTED:
            return TerminationReason.PREEMPTED, f"{state.key}: {state.message}"
    done = bool(states) and all(state.end is JobEnd.DONE for state in states)
    return (TerminationReason.DONE if done else TerminationReason.STOPPED), ""
