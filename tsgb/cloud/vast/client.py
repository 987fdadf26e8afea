"""Vast.ai: find offers, rent one, watch it, end it.

    with VastClient(settings.vast_api_key, url=settings.vast_url) as vast:
        [offer, *_] = vast.search(Search(disk_gb=60, gpu_names=("RTX 4090",)))
        instance_id = vast.create(offer.ask_id, Rental(price=offer.min_bid * 1.1, ...))
        vast.destroy(instance_id)

Two rules stand behind every line. Renting is the one call that is no good twice: it is sent once,
and a lost answer is an error of its own. And what is not known is never taken for nothing there: a
list is whole or an error, an instance is gone only if the service says so in its own words. All
other calls can be repeated, and are.

It knows neither runs nor stores, and decides nothing. Threads may share a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

import httpx
from pydantic import SecretStr

from tsgb.cloud.vast.answers import Call, Subject
from tsgb.cloud.vast.caller import Caller, odd, parsed
from tsgb.cloud.vast.http import Wire
from tsgb.cloud.vast.listing import all_instances
from tsgb.cloud.vast.logs import fetch_log
from tsgb.cloud.vast.records import AccountRow, InstanceRow, OfferRow, Rental
from tsgb.cloud.vast.rent import rent
from tsgb.cloud.vast.retries import OF_THE_SYSTEM, Retries
from tsgb.cloud.vast.search import Search, readable
from tsgb.cloud.vast.throttle import Endpoint, RateLimiter
from tsgb.errors import ProviderGone, ProviderRefused

VAST_URL = "https://console.vast.ai"


class VastClient:
    """One account of Vast.ai."""

    def __init__(
        self,
        key: SecretStr,
        *,
        url: str = VAST_URL,
        retry_seconds: float = 60.0,
        limiter: RateLimiter | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[float, float], float] = OF_THE_SYSTEM,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            key: Of the account.
            url: Where the service is, or a simulator of it.
            retry_seconds: How long a call that can be repeated is repeated; 0 is one try.
            limiter: Shared by all clients of a process.
            transport: In place of the network, for tests.
            clock: Seconds that never go back.
            sleep: Waits for so many seconds.
            now: The time of day.
            jitter: A number between two, by which pauses differ.

        Raises:
            ProviderAuthError: This cannot be a key.
            UsageError: The key must not go to this address.
        """
        self._wire = Wire(key, url, transport=transport, clock=clock)
        limiter = limiter or RateLimiter(clock=clock, sleep=sleep)
        self._caller = Caller(self._wire, limiter, now)
        self._retries = Retries(retry_seconds, clock, sleep, jitter)

    def __repr__(self) -> str:
        return f"VastClient({self._wire.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections."""
        self._wire.close()

    def account(self) -> AccountRow:
        """Whose key it is, and what can be spent."""
        call = self._caller.call(Endpoint.USER, "the account", Subject.ACCOUNT)
        path = "/api/v0/users/current"  # every other path ends in a slash
        return self._retries(lambda: parsed(AccountRow, self._caller.ask(call, "GET", path), call))

    def search(self, search: Search) -> tuple[OfferRow, ...]:
        """Offers that meet every condition, at most 64; a row that cannot be read is none.

        Raises:
            ProviderSearchQuota: No more searches today.
        """
        call = self._caller.call(Endpoint.SEARCH, "the search for offers", Subject.ACCOUNT)

        def once() -> tuple[OfferRow, ...]:
            payload = self._caller.ask(call, "POST", "/api/v0/bundles/", body=search.body())
            if not isinstance(payload.get("offers"), list):
                raise odd(call, "no list of offers")
            return tuple(offer for offer in readable(payload["offers"]) if search.accepts(offer))

        return self._retries(once)

    def create(self, ask_id: int, rental: Rental) -> int:
        """Rent an offer; the id of the new instance. One request, whatever happens.

        Raises:
            ProviderAmbiguous: It may exist: look for its label before you try again.
            ProviderUnreachable: The service could not be reached; nothing was sent.
            ProviderError: It was refused. `instance_id` is what it left behind, which costs money.
        """
        return rent(self._caller, ask_id, rental)

    def instances(self) -> tuple[InstanceRow, ...]:
        """Every instance of the account, in every state: all of them, or an error.

        Raises:
            ProviderUnreachable: Not all could be read. What is there is unknown.
        """
        call = self._caller.call(Endpoint.LIST, "the list of instances", Subject.ACCOUNT)
        return self._retries(lambda: all_instances(self._caller, call))

    def show(self, instance_id: int) -> InstanceRow | None:
        """One instance; None if the service says that there is none (any more)."""
        call = self._about(Endpoint.SHOW, instance_id)
        path = f"/api/v0/instances/{instance_id}/"

        def once() -> InstanceRow | None:
            payload = self._caller.ask(call, "GET", path, params={"owner": "me"})
            if "instances" in payload and payload["instances"] is None:
                return None
            instance = parsed(InstanceRow, payload.get("instances"), call)
            if instance.id != instance_id:
                raise odd(call, f"instance {instance.id} instead")
            return instance

        try:
            return self._retries(once)
        except ProviderGone:
            return None

    def label(self, instance_id: int, label: str) -> None:
        """Name an instance anew.

        Raises:
            ProviderGone: There is no such instance.
        """
        self._change(Endpoint.CHANGE, "PUT", f"{instance_id}/", instance_id, {"label": label})

    def stop(self, instance_id: int) -> None:
        """End its container, or what waits to start; storage still costs, and it may start again.

        Raises:
            ProviderGone: There is no such instance.
        """
        self._change(Endpoint.CHANGE, "PUT", f"{instance_id}/", instance_id, {"state": "stopped"})

    def change_bid(self, instance_id: int, price: float) -> None:
        """Bid another price, $/h; it is what is paid.

        Raises:
            ProviderGone: There is no such instance.
        """
        if not 0.001 <= price <= 128:  # no price would be a bid without a ceiling
            raise ProviderRefused(f"a bid of {price!r} $/h: it must be from 0.001 to 128")
        body = {"client_id": "me", "price": price}
        self._change(Endpoint.BID, "PUT", f"bid_price/{instance_id}/", instance_id, body)

    def destroy(self, instance_id: int) -> None:
        """End an instance for good; one that is gone already is no error.

        Before you count on it, see that it is gone from `show` and from `instances` too.
        """
        with suppress(ProviderGone):
            self._change(Endpoint.DESTROY, "DELETE", f"{instance_id}/", instance_id, {})

    def logs(self, instance_id: int, *, tail_lines: int = 100) -> str:
        """The end of the container's log. The service uploads it first, which takes seconds.

        Raises:
            ProviderGone: There is no such instance.
            ProviderUnreachable: It was not there in time.
        """
        body = {"tail": str(tail_lines)}
        path = f"request_logs/{instance_id}/"
        payload = self._change(Endpoint.LOGS, "PUT", path, instance_id, body)
        call = self._about(Endpoint.LOGS, instance_id)
        return fetch_log(self._wire, call, payload.get("result_url"), self._retries)

    def _change(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        instance_id: int,
        body: Mapping[str, Any],
    ) -> dict[str, Any]:
        call = self._about(endpoint, instance_id)
        path = f"/api/v0/instances/{path}"
        return self._retries(lambda: self._caller.change(call, method, path, body))

    def _about(self, endpoint: Endpoint, instance_id: int) -> Call:
        return self._caller.call(endpoint, f"instance {instance_id}", Subject.INSTANCE)
