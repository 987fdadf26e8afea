"""A rented machine that trains a run: the steps of its life, on an account that rents instances.

One instance serves as many segments as it survives. Why a step may die at any point and be done
again is told in each step's own module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tsgb.cloud import launch, monitor, terminate
from tsgb.cloud.documents import Intent
from tsgb.cloud.lifecycle import Machine, Recovery, Step, plainly
from tsgb.cloud.preemption import Workload
from tsgb.cloud.provider import LaunchSpec
from tsgb.cloud.recover import reconcile
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import CheckpointError, Preempted, ProviderUnreachable, StoreError

MAX_OUTAGES = 10
"""Attempts in a row that may end because the service does not answer, or takes no requests."""
MAX_OUTAGE_SECONDS = 3600.0
"""Seconds for which such attempts may go on in any case; then a person has to look."""

COPY_SECONDS = 3600.0
"""Seconds after which the checkpoints that a machine says it has saved are looked for."""
_VAIN_LOOKS = 2
"""Looks in a row that may find none of them; a slow store may hide them once."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """The work for machines, as far as renting has to know it."""

    def begun(self) -> int:
        """Return the highest attempt that was ever begun on it."""
        ...

    def is_reached(self, segment: int) -> bool:
        """Return whether the store has the end of a segment."""
        ...

    def has_saved(self, segment: int, running: RunningInstance) -> bool:
        """Return whether a machine says that it saved the end of a segment and goes on."""
        ...

    def load(self) -> Workload:
        """Return the demands on a machine now, for the choice among offers."""
        ...

    def card_gb(self) -> float:
        """Return the memory that a machine's card must have, GB; 0 for work without a card."""
        ...

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        """Return the rental to ask for, so that the machine does the work."""
        ...

    def promote(self, attempt: int, tick: Callable[[], object]) -> None:
        """Take over what the machine of an attempt has saved so far.

        Args:
            attempt: Number of the attempt.
            tick: To be called every few minutes: it renews the lease of a machine at work.
        """
        ...

    def collect(self, working: int | None) -> None:
        """Take over what all machines have saved that are gone, and delete what they left.

        Args:
            working: The attempt whose machine is at work, if there is one.
        """
        ...

    def updates(self) -> int:
        """Return the updates in the newest checkpoints of the run, all arms together."""
        ...

    def verify(self, segment: int) -> T_co:
        """Return the result of a segment.

        Raises:
            Preempted: It is not there after all.
        """
        ...

    def show(self, running: RunningInstance) -> None:
        """Tell a person how far it is."""
        ...


class RentedMachine(Machine[T]):
    """The instances of one run, one at a time.

    Example: `RentedMachine(session, work).attempt(segment=0)`
    """

    def __init__(self, session: Session, work: Work[T]) -> None:
        """Prepare; nothing is asked yet.

        Args:
            session: The documents, the provider, the clocks.
            work: What is to be done.
        """
        self.session = session
        self.running: RunningInstance | None = None
        self._work = work
        self._outages = 0
        self._outage_since = 0.0
        self._looked_at = 0.0
        self._known_step, self._num_saves = 0, 0
        """Updates that the machine told of last, and its saves since the last copy of one."""
        self._vain_looks = 0

    def attempt(self, segment: int, step: Step = plainly) -> T:
        """See `Machine.attempt`; a service that does not answer for minutes costs the attempt."""
        try:
            return super().attempt(segment, step)
        except ProviderUnreachable as error:
            clock = self.session.clock()
            if self._outages == 0:
                self._outage_since = clock
            self._outages += 1
            lasts = clock - self._outage_since
            if self._outages > MAX_OUTAGES and lasts > MAX_OUTAGE_SECONDS:
                raise
            raise Preempted(str(error)) from error

    def recover(self, segment: int) -> Recovery:
        """Go on with the instance at work, or with one that an earlier flow left; end all others.

        Raises:
            LeaseLost: Another flow works on this run.
            ProviderUnreachable: What is there could not be read, or something would not go.
        """
        if self.running is None or not self.running.at_work:
            self.running = reconcile(self.session)
        self._work.collect(None if self.running is None else self.running.attempt)
        if self.running is not None:
            return Recovery.WORKING
        return Recovery.REACHED if self._work.is_reached(segment) else Recovery.IDLE

    def launch(self, segment: int) -> None:  # noqa: ARG002 - an instance works to the run's end
        """Find an offer and rent it."""
        session = self.session
        load = self._work.load()
        chosen = launch.find_offer(session, load)
        attempt = self._next()
        intent = launch.intend(
            session, chosen, attempt, card_gb=self._work.card_gb(), start_gb=load.restore_gb
        )
        request = self._work.request(attempt, intent)
        self.running = launch.rent(session, attempt, intent, request)

    def monitor(self, segment: int) -> None:
        """Watch until the instance has saved the segment's end, or is over."""
        session, running = self.session, self._running()
        for enough, news in (
            (monitor.is_there, "is up"),
            (monitor.has_said_something, "is at work"),
        ):
            if running.cause is None and not enough(running):
                monitor.watch(session, running, enough, self._work.show)
                if running.cause is None:
                    session.note(f"instance {running.instance_id} {news}")

        self._looked_at, self._vain_looks = session.clock(), 0
        self._known_step, self._num_saves = running.step, 0

        def has_saved(found: RunningInstance) -> bool:
            self._copy_if_due(found)
            # One that was asked to stop saves once more before it goes.
            return found.at_work and self._work.has_saved(segment, found)

        if running.cause is None:
            monitor.watch(session, running, has_saved, self._work.show)
        self._outages = 0

    @property
    def is_over(self) -> bool:
        """Whether there is a termination reason."""
        return self._running().cause is not None

    def release(self, reason: str) -> None:
        """Let the instance save, destroy it, and write down its end and its cost."""
        if self.running is not None:
            attempt = self.running.attempt
            terminate.release(self.session, self.running, reason, lambda: self._saved(attempt))

    def check(self) -> None:
        """Raise the error for an instance that ended before its work was done.

        Raises:
            Preempted: Another instance may do.
            TSGBError: Another one would fail alike.
        """
        running = self._running()
        assert running.cause is not None
        if running.cause is not TerminationReason.DONE:
            raise terminate.error_of(self.session, running.cause, running.message, running.stop)

    def verify(self, segment: int) -> T:
        """Return the result of a segment, as `Work.verify` does.

        A machine that says it has saved what is not there is given up.
        """
        running = self.running
        if running is None or not running.at_work:
            self._work.collect(None)
            try:
                return self._work.verify(segment)
            except Preempted as error:
                if running is None or running.cause is not TerminationReason.DONE:
                    raise
                # It said that it was done: a host that lies is avoided, and counts.
                raise terminate.belied(self.session, running, str(error)) from error
        self._work.promote(running.attempt, lambda: monitor.look_if_due(self.session, running))
        try:
            return self._work.verify(segment)
        except Preempted as error:
            running.cause, running.message = TerminationReason.BAD_HOST, str(error)
            self.release("")
            raise

    def close(self, reason: str) -> None:
        """End the lease, and the instance if it is still at work; for the end of the flow.

        Raises:
            ProviderError: The instance may be there; the reaper ends it.
        """
        try:
            if self.running is not None and self.running.at_work:
                self.release(f"its flow ended: {reason}")
        finally:
            self.session.end(reason)

    def _copy_if_due(self, running: RunningInstance) -> None:
        """Take over what a machine says it has saved; one that has not is a bad host.

        Else a host could tell of new steps, save none of them, and be paid until the budget is
        used up. Beside this look, each so many saves are taken over as the settings name.
        """
        session, every = self.session, self.session.monitor_policy.copy_every
        if not running.at_work:
            return
        self._num_saves += running.step > self._known_step
        self._known_step = running.step
        is_look = session.clock() - self._looked_at >= COPY_SECONDS
        if not is_look and not 0 < every <= self._num_saves:
            return
        self._num_saves = 0
        if is_look:
            self._looked_at = session.clock()
        try:
            before = self._work.updates()
            if running.step <= before:
                return  # it says no more than is known; how long it may do so is another rule
            self._work.promote(running.attempt, lambda: monitor.look_if_due(session, running))
            after = self._work.updates()
        except (StoreError, CheckpointError) as error:
            session.note(f"what instance {running.instance_id} has saved is not known: {error}")
            return
        if after > before:
            self._looked_at, self._vain_looks = session.clock(), 0
        elif is_look:
            self._vain_looks += 1
        if self._vain_looks >= _VAIN_LOOKS and running.cause is None:
            running.cause = TerminationReason.BAD_HOST
            running.message = (
                f"it says that it has saved {running.step} updates, and the run holds {after}"
            )

    def _saved(self, attempt: int) -> int:
        """Take over what an attempt saved; return the updates that the run holds now."""
        self._work.promote(attempt, lambda: None)
        return self._work.updates()

    def _running(self) -> RunningInstance:
        assert self.running is not None, "recover or launch comes first"
        return self.running

    def _next(self) -> int:
        """Return a number that no attempt has had: the fencing token of all that it writes."""
        lease = self.session.documents.lease()
        leased = 0 if lease is None else lease.attempt
        return max(self._work.begun(), leased, self.session.ledger.highest) + 1
