"""Laws of the pace, of the limit on requests at a time, and of the budget of repeated requests."""

from __future__ import annotations

from threading import Thread

from hypothesis import given
from hypothesis import strategies as st

from tsgb.services import RepeatRules
from tsgb.targets.pacing import AdaptiveLimit, Pace, RepeatBudget


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@given(
    st.integers(1, 90),
    st.lists(st.floats(0, 30), min_size=1, max_size=300),
)
def test_no_minute_has_more_than_allowed(per_minute: int, gaps: list[float]) -> None:
    clock = Clock()
    pace = Pace(per_minute, clock)
    times: list[float] = []
    for gap in gaps:
        clock.seconds += gap
        times.append(clock.seconds + pace.delay())
    for i in range(len(times) - per_minute):
        assert times[i + per_minute] - times[i] >= 60 - 1e-6


@given(
    st.integers(10, 500),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 100)), min_size=1, max_size=60),
)
def test_no_minute_has_more_weight_than_allowed_and_its_last(
    per_minute: int, events: list[tuple[float, int]]
) -> None:
    clock = Clock()
    pace = Pace(per_minute, clock)
    sent: list[tuple[float, int]] = []
    for gap, weight in events:
        clock.seconds += gap
        sent.append((clock.seconds + pace.delay(weight), weight))
    for start, _ in sent:
        window = [weight for time, weight in sent if start <= time < start + 60 - 1e-6]
        assert sum(window) <= per_minute + window[-1] + 1e-6


def test_threads_share_a_pace() -> None:
    """Unlike a sleep before each call, which N threads do at the same time."""
    pace = Pace(60, lambda: 0.0)
    delays: list[float] = []
    threads = [Thread(target=lambda: delays.append(pace.delay())) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(delays) == [float(i) for i in range(32)]


def test_without_a_limit_nobody_waits() -> None:
    pace = Pace(None, lambda: 5.0)
    assert [pace.delay(1e9) for _ in range(3)] == [0.0] * 3


def test_the_limit_falls_once_for_what_was_under_way_and_rises_slowly() -> None:
    clock = Clock()
    limit = AdaptiveLimit(32, clock)
    clock.seconds = 10.0
    for sent_at in (9.0, 9.5, 9.9):
        limit.lower(sent_at)
    assert limit.limit == 25  # not 16
    limit.lower(10.0)
    assert limit.limit == 20
    for _ in range(20):
        limit.raise_slowly()
    assert limit.limit == 21
    for _ in range(10_000):
        limit.raise_slowly()
    assert limit.limit == 32
    assert [value for _, value in limit.history][:3] == [25, 20, 21]


def test_the_limit_never_falls_below_one() -> None:
    clock = Clock()
    limit = AdaptiveLimit(4, clock)
    for second in range(50):
        clock.seconds = second
        limit.lower(second)
    assert limit.limit == 1


def test_nobody_enters_a_full_or_closed_limit() -> None:
    clock = Clock()
    limit = AdaptiveLimit(1, clock)
    looks = iter([False, True])
    assert limit.enter(lambda: False)
    assert not limit.enter(lambda: next(looks))  # looked twice, and did not enter
    limit.leave()
    limit.close(5.0)
    looks = iter([False, True])
    assert not limit.enter(lambda: next(looks))
    clock.seconds = 5.0
    assert limit.enter(lambda: False)


def test_the_budget_of_repeats_grows_with_the_questions() -> None:
    budget = RepeatBudget(RepeatRules(free_repeats=2, repeats_a_question=0.5))
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.count_question()
    assert not budget.take()
    budget.count_question()
    assert [budget.take() for _ in range(2)] == [True, False]
