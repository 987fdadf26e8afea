"""Ctrl-C and SIGTERM end an experiment, even where Python loses the exception.

A handler's `KeyboardInterrupt` is raised wherever the main thread happens to be. In a finaliser, a
weak reference's callback or a lock of asyncio it is printed or swallowed, and the run would go on.
So the signal is also recorded, and the loop that watches workers checks for it at each look.

Python hands signals to the main thread alone. Where it waits for flows in other threads, it asks
them to end by a `Stop`, which is looked at in the same places.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []


class Stop:
    """Asks the flow in one thread to end, once."""

    def __init__(self) -> None:
        self._asked = Event()
        self._was_told = False

    def ask(self) -> None:
        """Let the thread's next look, or its pause, raise what a signal raises."""
        self._asked.set()

    def check(self) -> None:
        """Raise if the thread is asked, and was not told before.

        Raises:
            KeyboardInterrupt: Once.
        """
        if self._asked.is_set() and not self._was_told:
            self._was_told = True
            raise KeyboardInterrupt

    def pause(self, seconds: float) -> None:
        """Wait; an unheard wish to end cuts it short.

        Raises:
            KeyboardInterrupt: Once.
        """
        if self._was_told:
            time.sleep(seconds)
        else:
            self._asked.wait(seconds)
            self.check()


_STOP: ContextVar[Stop | None] = ContextVar("tsgb_stop", default=None)


@contextmanager
def stopped_by(stop: Stop) -> Generator[None]:
    """Let a `Stop` take the place of signals in this thread."""
    token = _STOP.set(stop)
    try:
        yield
    finally:
        _STOP.reset(token)


def pause(seconds: float) -> None:
    """Wait, as `time.sleep` does; whatever ends a flow cuts it short.

    Raises:
        KeyboardInterrupt: The flow shall end.
    """
    stop = _STOP.get()
    if stop is None:
        time.sleep(seconds)
    else:
        stop.pause(seconds)


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
        KeyboardInterrupt: Once for all signals so far.
    """
    stop = _STOP.get()
    if stop is not None:
        stop.check()
    elif _asked:
        _asked.clear()
        raise KeyboardInterrupt


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt
