"""No request arrives sooner after another than the table allows, as the service sees them."""

from __future__ import annotations

import threading
from contextlib import suppress
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.scripted_http import VirtualTime
from tests.unit.cloud.vast.conftest import answered, scene
from tsgb.cloud.vast.search import Search
from tsgb.cloud.vast.throttle import INTERVAL_SECONDS, Endpoint, RateLimiter

SECONDS = st.floats(0, 30)
REQUESTS = st.lists(
    st.tuples(st.sampled_from(Endpoint), SECONDS, SECONDS, SECONDS, st.booleans()), max_size=60
)


@given(REQUESTS)
def test_never_sooner_than_the_table_allows(
    requests: list[tuple[Endpoint, float, float, float, bool]],
) -> None:
    """Requests take unequal times to arrive, and fail: neither lets the next one come too early."""
    time = VirtualTime()
    limiter = RateLimiter(clock=time.clock, sleep=time.sleep)
    arrivals: dict[Endpoint, list[float]] = {}
    for endpoint, pause, there, back, fails in requests:
        time.seconds += pause
        with suppress(ZeroDivisionError), limiter.turn(endpoint):
            time.seconds += there
            arrivals.setdefault(endpoint, []).append(time.seconds)
            time.seconds += back
            assert 1 / (not fails)
    for endpoint, times in arrivals.items():
        for first, second in pairwise(times):
            assert second - first >= INTERVAL_SECONDS[endpoint] - 1e-6


@given(st.sampled_from(Endpoint), st.integers(1, 25))
def test_no_longer_than_needed(endpoint: Endpoint, num: int) -> None:
    time = VirtualTime()
    limiter = RateLimiter(clock=time.clock, sleep=time.sleep)
    for _ in range(num):
        with limiter.turn(endpoint):
            pass
    assert abs(sum(time.slept) - (num - 1) * INTERVAL_SECONDS[endpoint]) < 1e-6


def test_endpoints_do_not_wait_for_each_other() -> None:
    time = VirtualTime()
    limiter = RateLimiter(clock=time.clock, sleep=time.sleep)
    for endpoint in Endpoint:
        with limiter.turn(endpoint):
            pass
    assert time.slept == []


def test_threads_take_turns() -> None:
    time = VirtualTime()
    limiter = RateLimiter(clock=time.clock, sleep=time.sleep)
    inside: list[int] = []

    def work() -> None:
        for _ in range(20):
            with limiter.turn(Endpoint.SHOW):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(time.slept) == 79
    assert sum(time.slept) == 79 * INTERVAL_SECONDS[Endpoint.SHOW]


def test_every_call_goes_through_it() -> None:
    vast, script, time = scene(answered("search"))
    for _ in range(21):
        vast.search(Search(disk_gb=8))
    assert sum(time.slept) == 120.0
    vast, script, time = scene(answered("destroy"))
    vast.destroy(7)
    vast.destroy(8)
    vast.stop(8)
    vast.label(8, "x")
    assert time.slept == [3.0, 1.0]
    assert len(script.seen) == 4


def test_clients_of_a_process_share_one() -> None:
    time = VirtualTime()
    limiter = RateLimiter(clock=time.clock, sleep=time.sleep)
    for _ in range(3):
        scene(answered("list"), limiter=limiter).vast.instances()
    assert time.slept == [1.0, 1.0]
