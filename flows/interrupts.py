"""Ctrl-C and SIGTERM end an experiment, even where Python loses the exception.

A handler's `KeyboardInterrupt` is raised wherever the main thread happens to be. In a finaliser, a
weak reference's callback or a lock of asyncio it is printed or swallowed, and the run would go on.
So the signal is also recorded, and the loop that watches workers checks for it at each look.

Python hands signals to the main thread alone. Where it waits for flows in other threads, it asks
them to end by a `Stop`, which is looked at in the same places; so does who watches for the
cancellation of a flow run.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, current_thread, main_thread
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STEP_SECONDS = 0.5
_asked: list[int] = []


class Stop:
    """Asks the flow in one thread to end, once."""

    def __init__(self, raises: type[BaseException] = KeyboardInterrupt) -> None:
        """Let the thread work.

        Args:
            raises: Error by which it ends.
        """
        self._raises = raises
        self._asked = Event()
        self._was_told = False
        self._reason = ""

    def ask(self, reason: str = "") -> None:
        """Let the thread's next look, or its pause, raise the error.

        Args:
            reason: Message of the error.
        """
        self._reason = reason
        self._asked.set()

    def check(self) -> None:
        """Raise if the thread is asked, and was not told before.

        Raises:
            BaseException: Once, the error that was chosen.
        """
        if self._asked.is_set() and not self._was_told:
            self._was_told = True
            raise self._raises(self._reason) if self._reason else self._raises


_STOPS: ContextVar[tuple[Stop, ...]] = ContextVar("tsgb_stops", default=())


@contextmanager
def stopped_by(stop: Stop, *, alone: bool = False) -> Generator[None]:
    """Let a `Stop` end what runs inside, as a signal would.

    Args:
        stop: Asks for the end.
        alone: Whether the stops around it do not count inside, because whoever hears them asks this
            one: a thread of several.
    """
    token = _STOPS.set((stop,) if alone else (*_STOPS.get(), stop))
    try:
        yield
    finally:
        _STOPS.reset(token)


def pause(seconds: float) -> None:
    """Wait, as `time.sleep` does; whatever ends a flow cuts it short.

    Raises:
        BaseException: The flow shall end: a signal's `KeyboardInterrupt`, or the error of a `Stop`.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for stop in _STOPS.get():
            stop.check()
        time.sleep(min(left, _STEP_SECONDS))


@contextmanager
def interruptible() -> Generator[None]:
    """Let both signals raise `KeyboardInterrupt` inside, in the main thread.

    Prefect takes SIGTERM over during a flow and hands it on at the flow's end.
    """
    _asked.clear()
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def check_interrupt() -> None:
    """Raise what a signal would have raised, if Python lost it.

    A loop calls this that the exception would have ended; clean-up after it must not.

    Raises:
        BaseException: Once for all signals so far, `KeyboardInterrupt`; or the error of a `Stop`.
    """
    for stop in _STOPS.get():
        stop.check()
    if _asked and current_thread() is main_thread():
        _asked.clear()
        raise KeyboardInterrupt


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt
