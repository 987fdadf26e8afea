"""What tests ask of a simulator, by HTTP and by nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Protocol, Self, TypeVar

import httpx

PATIENCE_SECONDS = 120.0
T = TypeVar("T")


class Simulator(Protocol):
    """In this process, or in another."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...


class Driver:
    """A user of one simulator, and the test's hand behind it."""

    def __init__(self, vast: Simulator, key: str | None = None) -> None:
        self.vast = vast
        self.http = httpx.Client(
            base_url=vast.url, headers={"Authorization": f"Bearer {key or vast.key}"}, timeout=60
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def search(self, **query: Any) -> list[dict[str, Any]]:
        """Bids, the cheapest first, unless the query says otherwise."""
        body = {"type": "bid", "order": [["dph_total", "asc"]], **query}
        return self.http.post("/api/v0/bundles/", json=body).raise_for_status().json()["offers"]

    def create(self, ask_id: int, **body: Any) -> httpx.Response:
        """Only what is always needed is filled in."""
        return self.http.put(f"/api/v0/asks/{ask_id}/", json={"image": "img", "disk": 20, **body})

    def rent(self, offer: dict[str, Any] | None = None, **body: Any) -> int:
        """A bid of 10 % over the floor, accepted."""
        offer = offer or self.search()[0]
        price = Decimal(str(offer["min_bid"])) * Decimal("1.1")
        more = {"price": float(price), "cancel_unavail": True, "label": "tsgb/test/1", **body}
        answer = self.create(offer["ask_contract_id"], **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["new_contract"]

    def list(self, **query: Any) -> dict[str, Any]:
        return self.http.get("/api/v1/instances/", params=query).raise_for_status().json()

    def listed(self) -> list[int]:
        return [row["id"] for row in self.list()["instances"]]

    def show(self, number: int) -> dict[str, Any]:
        """The row; fails if it is gone."""
        return self.http.get(f"/api/v0/instances/{number}/").raise_for_status().json()["instances"]

    def put(self, path: str, body: Any) -> httpx.Response:
        return self.http.put(f"/api/v0/instances/{path}/", json=body)

    def destroy(self, number: int) -> httpx.Response:
        return self.http.request("DELETE", f"/api/v0/instances/{number}/", json={})

    def sim(self, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
        """Below `/_sim`: POST if there is a body."""
        method = "GET" if body is None else "POST"
        answer = self.http.request(method, f"/_sim/{path}", json=body, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def advance(self, seconds: float) -> None:
        self.sim("clock", {"advance_seconds": seconds})

    def do(self, number: int, what: str, **more: Any) -> dict[str, Any]:
        return self.sim(f"instances/{number}", {"do": what, **more})

    def truth(self, number: int) -> dict[str, Any]:
        """What is so, whatever the API shows."""
        return next(row for row in self.sim("state")["instances"] if row["id"] == number)

    def bill(self, number: int) -> dict[str, Any]:
        return self.sim("ledger")["instances"][str(number)]

    def log(self, number: int) -> str:
        """The whole log, as soon as it can be fetched."""
        url = self.put(f"request_logs/{number}", {"tail": "1000"}).json()["result_url"]
        return until(lambda: self.http.get(url), lambda answer: answer.status_code == 200).text


def until(
    look: Callable[[], T], good: Callable[[T], bool] = bool, seconds: float = PATIENCE_SECONDS
) -> T:
    """What is seen once it is good.

    Raises:
        AssertionError: it was not in time.
    """
    ends = time.monotonic() + seconds
    while not good(seen := look()):
        assert time.monotonic() < ends, f"still {seen!r}"
        time.sleep(0.02)
    return seen
