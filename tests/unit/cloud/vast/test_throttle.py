"""Requests come no sooner than the table allows, and what heals is asked again in time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.scripted_http import Reply, Script, VirtualTime, serve
from tests.unit.cloud.vast.conftest import answered, scene
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.search import Search
from tsgb.cloud.vast.throttle import INTERVAL_SECONDS, Endpoint, RateLimiter
from tsgb.errors import ProviderRateLimited, ProviderUnreachable

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


# --- retries -------------------------------------------------------------------------------------


CALLS: list[Any] = [
    pytest.param(lambda vast: vast.account(), answered("account"), id="account"),
    pytest.param(lambda vast: vast.search(Search(disk_gb=8)), answered("search"), id="search"),
    pytest.param(lambda vast: vast.instances(), answered("list"), id="list"),
    pytest.param(lambda vast: vast.show(7835610), answered("show"), id="show"),
    pytest.param(lambda vast: vast.label(7, "x"), answered("label"), id="label"),
    pytest.param(lambda vast: vast.stop(7), answered("stop"), id="stop"),
    pytest.param(lambda vast: vast.change_bid(7, 0.2), answered("change_bid"), id="bid"),
    pytest.param(lambda vast: vast.destroy(7), answered("destroy"), id="destroy"),
]


@pytest.mark.parametrize(("call", "good"), CALLS)
def test_what_can_be_repeated_is(call: Callable[[VastClient], Any], good: Reply) -> None:
    bad = Reply(502, "<html>"), answered("too_often_text"), Reply(200, "")
    vast, script, _ = scene(*bad, good)
    call(vast)
    assert len(script.seen) == 4


@pytest.mark.parametrize(("call", "good"), CALLS)
def test_not_for_ever(call: Callable[[VastClient], Any], good: Reply) -> None:
    vast, script, time = scene(Reply(503, ""))
    with pytest.raises(
        ProviderUnreachable, match=r"after retrying for 60 s\. What is there is unknown"
    ):
        call(vast)
    assert 2 < len(script.seen) < 40
    # The last wait for a turn may pass the end, by its interval at most.
    assert sum(time.slept) < 66


@pytest.mark.parametrize(("call", "good"), CALLS)
def test_one_try_if_so_wanted(call: Callable[[VastClient], Any], good: Reply) -> None:
    vast, script, time = scene(Reply(503, ""), retry_seconds=0)
    with pytest.raises(ProviderUnreachable):
        call(vast)
    assert (len(script.seen), time.slept) == (1, [])


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    vast, script, time = scene(Reply(429, "", {"Retry-After": "3600"}))
    with pytest.raises(ProviderRateLimited) as caught:
        vast.instances()
    assert (caught.value.wait_seconds, time.slept, len(script.seen)) == (3600.0, [], 1)


def test_jitter_leaves_the_draws_of_a_run_alone() -> None:
    random.seed(7)
    before = random.getstate()
    scene(Reply(503, ""), Reply(503, ""), answered("list")).vast.instances()
    assert random.getstate() == before


def test_jitter_of_the_caller() -> None:
    vast, _, time = scene(
        Reply(503, ""), Reply(503, ""), answered("list"), jitter=lambda _, most: most
    )
    vast.instances()
    assert time.slept == [0.5, 0.5, 1.0]


def test_over_sockets() -> None:
    script = Script(
        [Reply(then="close"), Reply(200, {"x": "y" * 99}, then="cut"), answered("list")]
    )
    with serve(script) as url:
        assert len(scene(url=url, on_loopback=True).vast.instances()) == 2
    assert len(script.seen) == 3
