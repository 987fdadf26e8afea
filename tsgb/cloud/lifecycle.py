"""The life of a segment on a machine, the same for processes of this computer and for instances.

    recover -> launch -> monitor -> terminate -> verify

Its caller says how a step is run: flows/ makes each a Prefect task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Step(Protocol):
    """Runs a step under its name."""

    def __call__(self, name: str, function: Callable[[], R], /) -> R:
        """Run the step now, once; its errors pass through."""
        ...


def plainly(_name: str, function: Callable[[], R]) -> R:
    """Call a step and do nothing else."""
    return function()


class Recovery(StrEnum):
    """What `Machine.recover` found."""

    REACHED = "reached"
    """The end of the segment is reached: its checkpoints are in the store."""
    WORKING = "working"
    """A machine is at work on it."""
    IDLE = "idle"
    """No machine is left, and there is work for one."""


class Machine(ABC, Generic[T]):
    """The machine of a run, over all attempts of one flow.

    `attempt` may be called again after any error, and always goes on from what is in the store; it
    helps after `Preempted` and `StoreUnreachable`, and after no other error.
    """

    def attempt(self, segment: int, step: Step = plainly) -> T:
        """Bring all arms to the end of a segment on one machine; return their checkpoints.

        Args:
            segment: Number of the segment, from 0.
            step: Runs each step.

        Raises:
            Preempted: The machine is gone, or none came of it.
            TSGBError: Another attempt would fail alike.
        """
        found = step("recover", lambda: self.recover(segment))
        if found is Recovery.REACHED:
            return step("verify", lambda: self.verify(segment))
        if found is Recovery.IDLE:
            step("launch", lambda: self.launch(segment))
        try:
            step("monitor", lambda: self.monitor(segment))
        except BaseException as error:
            # Not as a step: nothing that a step needs may keep a machine alive.
            self.release(f"its flow was stopped by {type(error).__name__}: {error}")
            raise
        if self.is_over:
            try:
                step("terminate", lambda: self.release(""))
            finally:
                self.release("its flow was stopped")
            self.check()
        return step("verify", lambda: self.verify(segment))

    @abstractmethod
    def recover(self, segment: int) -> Recovery:
        """Find what an earlier attempt left: adopt what still works, end and write down the rest.

        Raises:
            LeaseLost: Another flow works on this run.
        """

    @abstractmethod
    def launch(self, segment: int) -> None:
        """Start a machine on the segment, under a number that no attempt has had."""

    @abstractmethod
    def monitor(self, segment: int) -> None:
        """Watch the machine until the segment's end is reached, or the machine is over."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether the machine has ended, so that it is to be terminated."""

    @abstractmethod
    def release(self, reason: str) -> None:
        """Let the machine save, end it, and write down how it ended; a further call does nothing.

        Args:
            reason: Reason to stop a machine that is still at work.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise the error for a machine that ended before its work was done."""

    @abstractmethod
    def verify(self, segment: int) -> T:
        """Return the checkpoints at the end of the segment.

        Raises:
            Preempted: One of them is not there after all.
        """
