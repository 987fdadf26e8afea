"""SIGTERM and SIGINT, read between two updates."""

from __future__ import annotations

import os
import signal
from types import FrameType

from tsgb.errors import (
    Interrupted,
)


class Signals:
    """SIGTERM and SIGINT set a flag, read between two updates; a second one exits at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    @classmethod
    def installed(cls) -> Signals:
        """Take over both signals (main thread only)."""
        signals = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signals._handle)
        return signals

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def check(self) -> None:
        """Stop here if a signal has come.

        Raises:
            Interrupted: one has.
        """
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Interrupted(f"stopped by {name}; the same command goes on from here")
