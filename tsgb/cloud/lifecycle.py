"""One attempt on one rented machine, step by step, from what is there to what is left.

    reconcile -> search -> intend -> create -> provision -> boot -> train -> destroy -> verify

Its caller says how a step is run: flows/ makes each a Prefect task. Its errors say whether to run
it again: only `Preempted` means yes. Running it again is always safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tsgb.cloud import launch, monitor, terminate
from tsgb.cloud.documents import Intent
from tsgb.cloud.offers import Appraisal
from tsgb.cloud.preemption import Workload
from tsgb.cloud.provider import LaunchSpec
from tsgb.cloud.recover import reconcile
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import Preempted, ProviderUnreachable

MAX_OUTAGES = 10
"""Attempts in a row that may end because the service does not answer, each after minutes; then a
person has to look."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")


class Step(Protocol):
    """Runs a step under its name."""

    def __call__(self, name: str, what: Callable[[], R], /) -> R:
        """Run the step now, once; its errors pass through."""
        ...


def plainly(_name: str, what: Callable[[], R]) -> R:
    """Call a step and do nothing else."""
    return what()


class Work(Protocol[T_co]):
    """The work for machines, as far as renting has to know it."""

    def begun(self) -> int:
        """Return the highest attempt that was ever begun on it."""
        ...

    def is_finished(self) -> bool:
        """Return whether nothing is left to do."""
        ...

    def load(self) -> Workload:
        """Return the demands on a machine now, for the choice among offers."""
        ...

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        """Return the rental to ask for, so that the machine does the work."""
        ...

    def verify(self) -> T_co:
        """Read the result in full.

        Raises:
            Preempted: It is not there after all.
        """
        ...

    def show(self, running: RunningInstance) -> None:
        """Tell a person how far it is."""
        ...


class Lifecycle(Generic[T]):
    """One run on rented machines, over all attempts of one flow.

    Example: `Lifecycle(session, work).attempt()`
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

    def attempt(self, step: Step = plainly) -> T:
        """Take a machine from an offer to its end; return the result once all work is done.

        Raises:
            Preempted: The machine is gone, or none came of it: run it again.
            TSGBError: Running it again would not help.
        """
        try:
            result = self._attempt(step)
        except ProviderUnreachable as error:
            self._outages += 1
            if self._outages > MAX_OUTAGES:
                raise
            raise Preempted(str(error)) from error
        return result

    def _attempt(self, step: Step) -> T:
        session = self.session
        self.running = step("reconcile", lambda: reconcile(session))
        if self.running is None:
            if self._work.is_finished():
                return step("verify", self._work.verify)
            self.running = self._rent(step)
        running = self.running
        try:
            for name, enough in (
                ("provision", monitor.is_there),
                ("boot", monitor.has_said_something),
                ("train", monitor.never),
            ):
                step(name, lambda enough=enough: self._watch(running, enough))
                if running.cause is not None:
                    break
        except BaseException as error:
            # Not as a step: nothing that a step needs may keep a machine alive.
            terminate.release(
                session, running, f"its flow was stopped by {type(error).__name__}: {error}"
            )
            raise
        self._outages = 0
        try:
            step("destroy", lambda: terminate.release(session, running, ""))
        finally:
            terminate.release(session, running, "its flow was stopped")
        assert running.cause is not None
        if running.cause is not TerminationReason.DONE:
            raise terminate.error_of(session, running.cause, running.message, running.stop)
        return step("verify", self._work.verify)

    def _rent(self, step: Step) -> RunningInstance:
        session = self.session
        chosen: Appraisal = step("search", lambda: launch.find_offer(session, self._work.load()))
        attempt = self._next()
        intent = step("intend", lambda: launch.intend(session, chosen, attempt))
        request = self._work.request(attempt, intent)
        return step("create", lambda: launch.rent(session, attempt, intent, request))

    def _next(self) -> int:
        """Return a number that no attempt has had: the fencing token of all that it writes."""
        lease = self.session.documents.lease()
        leased = 0 if lease is None else lease.attempt
        return max(self._work.begun(), leased, self.session.ledger.highest) + 1

    def _watch(self, running: RunningInstance, enough: Callable[[RunningInstance], bool]) -> None:
        monitor.watch(self.session, running, enough, self._work.show)
