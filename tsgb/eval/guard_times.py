"""The time that guards take for a prompt, on the machine that evaluates them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tsgb.eval.calibrated import CalibratedGuard
from tsgb.eval.usage import spread

NUM_TIMED = 20
"""Prompts that each guard is timed on."""
MOST_SECONDS = 5.0
"""Seconds after which a slow guard is not timed on another prompt."""


def time_guards(
    guards: Iterable[CalibratedGuard],
    prompts: Sequence[str],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Return the milliseconds that each guard takes for a prompt, one prompt at a time.

    A guard that is somebody's service is spared: each of its answers may cost money.

    Args:
        guards: They have scored something before, so that all is loaded.
        prompts: At most `NUM_TIMED` of them are scored.
        clock: Monotonic seconds.
    """
    found: dict[str, dict[str, Any]] = {}
    for guard in guards:
        if guard.name in {"none", "oracle"} or not guard.attacked:
            continue
        taken: list[float] = []
        for prompt in prompts[:NUM_TIMED]:
            start = clock()
            guard.score([prompt])
            taken.append(1000 * (clock() - start))
            if sum(taken) > 1000 * MOST_SECONDS:
                break
        if taken:
            found[guard.name] = spread(taken)
    return found
