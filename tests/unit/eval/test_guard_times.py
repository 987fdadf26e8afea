"""Guards are timed on one prompt at a time, and nobody's service is asked for it."""

from collections.abc import Iterator, Sequence

import numpy as np

from tsgb.eval.calibrated import CalibratedGuard, no_guard
from tsgb.eval.guard_times import NUM_TIMED, time_guards
from tsgb.protocols import Scores


class SizedGuard:
    """Keeps how many prompts it was given at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, prompts: Sequence[str]) -> Scores:
        self.sizes.append(len(prompts))
        return np.zeros(len(prompts))


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def test_each_guard_of_this_machine_scores_prompts_one_by_one() -> None:
    mine, service = SizedGuard(), SizedGuard()
    guards = [
        no_guard(),
        CalibratedGuard("mine", mine, 0.0),
        CalibratedGuard("service", service, 0.0, attacked=False),
    ]
    clock = ticking(0.004)
    found = time_guards(guards, [f"prompt {i}" for i in range(50)], lambda: next(clock))
    assert mine.sizes == [1] * NUM_TIMED
    assert service.sizes == []
    assert found == {"mine": {"n": NUM_TIMED, "quantiles": [4.0] * NUM_TIMED}}


def test_a_slow_guard_is_timed_on_few_prompts() -> None:
    slow, clock = SizedGuard(), ticking(3.0)
    found = time_guards([CalibratedGuard("slow", slow, 0.0)], ["a"] * 20, lambda: next(clock))
    assert found["slow"]["n"] == len(slow.sizes) == 2
