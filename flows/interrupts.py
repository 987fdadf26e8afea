"""Ctrl-C and SIGTERM end an experiment, even where Python loses the exception.

A handler's `KeyboardInterrupt` is raised wherever the main thread happens to be. In a finaliser, a
weak reference's callback or a lock of asyncio it is printed or swallowed, and the run would go on.
So the signal is also recorded, and the loop that watches workers checks for it at each look.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []


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
    if _asked:
        _asked.clear()
        raise KeyboardInterrupt


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt
