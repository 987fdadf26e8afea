"""A signal whose exception got lost ends the experiment all the same."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from flows.interrupts import check_interrupt, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_somebody_swallowed_is_raised_at_the_next_look(number: signal.Signals) -> None:
    with interruptible():
        check_interrupt()
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
        check_interrupt()  # once: what cleans up now may look, too


def test_afterwards_signals_mean_what_they_meant() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    check_interrupt()
