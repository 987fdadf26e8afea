"""Bounds on requests and dollars, and the estimate."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from tsgb.errors import StoreError, UsageError
from tsgb.targets.endpoint import EndpointSpec, parse_endpoint
from tsgb.targets.spending import Spending, estimate_cost

PRICED = parse_endpoint("openai:m").model_copy(
    update={"dollars_in": 2.0, "dollars_out": 8.0, "max_tokens": 100, "most_attempts": 3}
)


def test_requests_are_counted_over_threads() -> None:
    spending, allowed = Spending(max_requests=500), list[bool]()

    def spend() -> None:
        allowed.extend(spending.reserve(0.0) for _ in range(100))

    threads = [Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(allowed), spending.requests) == (500, 500)


def test_a_request_that_could_pass_the_limit_is_not_allowed() -> None:
    spending = Spending(max_dollars=1.0)
    assert spending.reserve(0.6)
    assert not spending.reserve(0.5)
    assert spending.reserve(0.4)
    spending.settle(0.6, 0.1)
    assert spending.dollars == pytest.approx(0.5)
    assert spending.reserve(0.5)


def test_a_file_keeps_the_counts_for_other_processes_and_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "new" / "spending"
    first = Spending(max_requests=3, max_dollars=1.0, path=path)
    second = Spending(max_requests=3, max_dollars=1.0, path=path)
    assert first.reserve(0.5)
    assert second.reserve(0.25)
    first.settle(0.5, 0.1)
    later = Spending(max_requests=3, max_dollars=1.0, path=path)
    assert (later.requests, later.dollars) == (2, pytest.approx(0.35))
    assert later.reserve(0.0)
    assert not first.reserve(0.0)
    path.write_text("garbage")
    with pytest.raises(StoreError, match="does not say what was spent"):
        Spending(path=path)


def test_a_limit_in_dollars_needs_prices() -> None:
    unpriced: list[EndpointSpec] = [parse_endpoint("openai:m")]
    Spending(max_requests=3).check_prices(unpriced)
    Spending(max_dollars=3.0).check_prices([PRICED])
    with pytest.raises(UsageError, match="--max-cost 3: the price of 'm' is not known"):
        Spending(max_dollars=3.0).check_prices(unpriced)


def test_the_estimate() -> None:
    found = estimate_cost(PRICED, [400, 800])
    assert (found.requests, found.tokens_in, found.tokens_out) == (2, 300, 200)
    assert found.dollars == pytest.approx((300 * 2 + 200 * 8) / 1e6)
    assert found.most_dollars == pytest.approx(3 * (1200 * 2 + 200 * 8) / 1e6)
    assert estimate_cost(parse_endpoint("openai:m"), [1]).dollars is None
