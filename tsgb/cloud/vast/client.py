"""Client of the Vast.ai API: find offers, rent one, watch it, destroy it.

    with VastClient(settings.vast_api_key, url=settings.vast_url) as vast:
        [offer, *_] = vast.search(Search(disk_gb=60, gpu_names=("RTX 4090",)))
        instance_id = vast.create(offer.ask_id, Rental(price=offer.min_bid * 1.1, ...))
        vast.destroy(instance_id)

The client follows two rules. Renting is the only call that must not be repeated: it is sent once,
and a lost answer is an error of its own (`ProviderAmbiguous`). And unknown never counts as absent:
a list is complete or an error, and an instance is gone only if the service says so. All other calls
are repeated when they fail.

The module knows neither runs nor stores, and decides nothing. Threads may share a client.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal, Self, cast

import httpx
from pydantic import BaseModel, SecretStr

from tsgb.cloud.vast.answers import Answer, Call, Subject, contract
from tsgb.cloud.vast.http import REQUEST_SECONDS, Caller, Wire, malformed, parsed, reason
from tsgb.cloud.vast.records import AccountRow, InstanceRow, OfferRow, Rental
from tsgb.cloud.vast.search import Search, readable
from tsgb.cloud.vast.throttle import SYSTEM_JITTER, Endpoint, RateLimiter, Retries
from tsgb.errors import (
    ProviderAmbiguous,
    ProviderError,
    ProviderGone,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)

VAST_URL = "https://console.vast.ai"


class VastClient:
    """The API of one account of Vast.ai, in the service's own records.

    Example: `VastClient(settings.vast_api_key, url=settings.vast_url).instances()`
    """

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
        jitter: Callable[[float, float], float] = SYSTEM_JITTER,
    ) -> None:
        """Send nothing yet.

        Args:
            key: The key of the account.
            url: Address of the service, or of a simulator of it.
            retry_seconds: Seconds for which a call that can be repeated is repeated; 0 is one try.
            limiter: The rate limiter, shared by all clients of a process.
            transport: A transport in place of the network, for tests.
            clock: Seconds that never go back.
            sleep: Waits for so many seconds.
            now: Time of day.
            jitter: Draws a number between two bounds; it varies the pauses.

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
        """Return the account that the key belongs to, and its credit."""
        call = self._caller.call(Endpoint.USER, "the account", Subject.ACCOUNT)
        path = "/api/v0/users/current"  # every other path ends in a slash
        return self._retries(lambda: parsed(AccountRow, self._caller.ask(call, "GET", path), call))

    def variables(self) -> tuple[str, ...]:
        """Return the names of the account's own variables; every container gets their values."""
        call = self._caller.call(Endpoint.SECRETS, "the account's variables", Subject.ACCOUNT)

        def once() -> tuple[str, ...]:
            found = self._caller.ask(call, "GET", "/api/v0/secrets/").get("secrets")
            if not isinstance(found, dict):
                raise malformed(call, "no variables")
            return tuple(sorted(map(str, cast("dict[object, object]", found))))

        return self._retries(once)

    def search(self, search: Search) -> tuple[OfferRow, ...]:
        """Return at most 64 offers that meet every condition; unreadable rows are left out.

        Raises:
            ProviderSearchQuota: No more searches today.
        """
        call = self._caller.call(Endpoint.SEARCH, "the search for offers", Subject.ACCOUNT)

        def once() -> tuple[OfferRow, ...]:
            payload = self._caller.ask(call, "POST", "/api/v0/bundles/", body=search.body())
            if not isinstance(payload.get("offers"), list):
                raise malformed(call, "no list of offers")
            return tuple(offer for offer in readable(payload["offers"]) if search.accepts(offer))

        return self._retries(once)

    def create(self, ask_id: int, rental: Rental) -> int:
        """Rent an offer and return the id of the new instance; send one request, whatever happens.

        Raises:
            ProviderAmbiguous: The instance may exist: look for its label before you try again.
            ProviderUnreachable: The service could not be reached; nothing was sent.
            ProviderError: The rental was refused. `instance_id` names an instance that it left
                behind, if any, which costs money.
        """
        return rent(self._caller, ask_id, rental)

    def instances(self) -> tuple[InstanceRow, ...]:
        """Return every instance of the account, in every state.

        Raises:
            ProviderUnreachable: Not all could be read, so it is unknown which exist.
        """
        call = self._caller.call(Endpoint.LIST, "the list of instances", Subject.ACCOUNT)
        return self._retries(lambda: all_instances(self._caller, call))

    def show(self, instance_id: int) -> InstanceRow | None:
        """Return one instance; None if the service says that it does not exist."""
        call = self._about(Endpoint.SHOW, instance_id)
        path = f"/api/v0/instances/{instance_id}/"

        def once() -> InstanceRow | None:
            payload = self._caller.ask(call, "GET", path, params={"owner": "me"})
            if "instances" in payload and payload["instances"] is None:
                return None
            instance = parsed(InstanceRow, payload.get("instances"), call)
            if instance.id != instance_id:
                raise malformed(call, f"instance {instance.id} instead")
            return instance

        try:
            return self._retries(once)
        except ProviderGone:
            return None

    def label(self, instance_id: int, label: str) -> None:
        """Change the label of an instance.

        Raises:
            ProviderGone: There is no such instance.
        """
        self._change(Endpoint.CHANGE, "PUT", f"{instance_id}/", instance_id, {"label": label})

    def stop(self, instance_id: int) -> None:
        """Stop the container, or cancel its start; storage still costs, and it may start again.

        Raises:
            ProviderGone: There is no such instance.
        """
        self._change(Endpoint.CHANGE, "PUT", f"{instance_id}/", instance_id, {"state": "stopped"})

    def change_bid(self, instance_id: int, price: float) -> None:
        """Change the bid, $/h; the bid is what is paid.

        Raises:
            ProviderGone: There is no such instance.
        """
        if not 0.001 <= price <= 128:  # no price would be a bid without a ceiling
            raise ProviderRefused(f"a bid of {price!r} $/h: it must be from 0.001 to 128")
        body = {"client_id": "me", "price": price}
        self._change(Endpoint.BID, "PUT", f"bid_price/{instance_id}/", instance_id, body)

    def destroy(self, instance_id: int) -> None:
        """Destroy an instance; one that is gone already is no error.

        It is gone only when `show` and `instances` lack it too.
        """
        with suppress(ProviderGone):
            self._change(Endpoint.DESTROY, "DELETE", f"{instance_id}/", instance_id, {})

    def logs(self, instance_id: int, *, tail_lines: int = 100) -> str:
        """Return the end of the container's log, which the service uploads first, in some seconds.

        Raises:
            ProviderGone: There is no such instance.
            ProviderUnreachable: The log was not uploaded in time.
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


_CREATE_SECONDS = 60.0
_SECRET_CHARACTERS = 6
"""Length from which a value of the environment is hidden in messages."""


def rent(caller: Caller, ask_id: int, rental: Rental) -> int:
    """Send the request once; return the id of the new instance.

    The API has no idempotency key, so every result that is neither a clear success nor a clear
    refusal raises `ProviderAmbiguous`.

    Raises:
        ProviderAmbiguous: The instance may exist.
        ProviderError: The request was not sent, or refused.
    """
    hidden = [v for v in rental.env.values() if len(v.get_secret_value()) >= _SECRET_CHARACTERS]
    where = f"renting offer {ask_id} as {rental.label}"
    call = caller.call(Endpoint.CREATE, where, Subject.OFFER, hidden)
    with caller.limiter.turn(Endpoint.CREATE):
        try:
            answer = caller.wire.send(
                "PUT", f"/api/v0/asks/{ask_id}/", seconds=_CREATE_SECONDS, body=rental.body()
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ProviderUnreachable(
                f"Vast.ai, {where}: not sent, {reason(error, call)}"
            ) from error
        except Exception as error:
            raise _ambiguous(call, reason(error, call)) from error
    return _created(answer, call, caller.error_in(answer, call))


def _created(answer: Answer, call: Call, error: ProviderError | None) -> int:
    payload = answer.payload()
    instance_id = contract(payload)
    unknown = isinstance(error, ProviderUnreachable) and not isinstance(error, ProviderRateLimited)
    if unknown or answer.status >= 500:
        raise _ambiguous(call, f"HTTP {answer.status}", instance_id)
    if error is not None:
        if instance_id is None and "queued" in answer.text:
            raise _ambiguous(call, f"{error.code or 'refused'}, but queued") from error
        raise error
    if payload.get("success") is not True or instance_id is None:
        raise _ambiguous(call, "an answer that is neither yes nor no", instance_id)
    return instance_id


def _ambiguous(call: Call, what: str, contract_id: int | None = None) -> ProviderAmbiguous:
    known = "" if contract_id is None else f" as instance {contract_id}"
    return ProviderAmbiguous(
        f"Vast.ai, {call.where}: {what}; it may exist{known}: look for its label before you try "
        "again",
        instance_id=contract_id,
    )


_PAGE = 25
_MOST_PAGES = 400
_CHANGED = "a list that changed while it was read"


class _Page(BaseModel):
    success: Literal[True]
    """Whether the service reports success."""
    instances: list[Any]
    """Rows of this page."""
    next_token: str | int | None
    """Token of the next page; None on the last one."""
    instances_found: int | None = None
    """Rows on this page."""
    total_instances: int | None = None
    """Rows on all pages."""


def all_instances(caller: Caller, call: Call) -> tuple[InstanceRow, ...]:
    """Read all pages, and if there are several, read them a second time.

    The request filters nothing, so the service's own count shows whether the list is complete. The
    pages are offsets into a list: when an instance ends between two reads, another row moves to a
    page that was read already, and the count is right again if one more instance begins meanwhile.
    So a list of several pages counts only if a second read finds all of its rows again.

    Raises:
        ProviderError: A page is missing, cut or malformed, so the rest is unknown too.
    """
    found, num_pages = _pages(caller, call)
    if num_pages > 1:
        before = found.keys()
        found, _ = _pages(caller, call)
        if not before <= found.keys():
            raise malformed(call, _CHANGED)
    return tuple(found.values())


def _pages(caller: Caller, call: Call) -> tuple[dict[int, InstanceRow], int]:
    """Return the rows of all pages, and the number of pages."""
    params = {
        "select_filters": "{}",
        "order_by": json.dumps([{"col": "id", "dir": "asc"}]),
        "limit": str(_PAGE),
    }
    found: dict[int, InstanceRow] = {}
    tokens: set[str] = set()
    totals: set[int | None] = set()
    while True:
        payload = caller.ask(call, "GET", "/api/v1/instances/", params=params)
        page = parsed(_Page, payload, call)
        if page.instances_found not in {None, len(page.instances)}:
            raise malformed(
                call, f"a page with {len(page.instances)} of {page.instances_found} rows"
            )
        totals.add(page.total_instances)
        for row in page.instances:
            instance = parsed(InstanceRow, row, call)
            found[instance.id] = instance
        if page.next_token is None:
            break
        token = str(page.next_token)
        if token in tokens or len(tokens) == _MOST_PAGES:
            raise malformed(call, "pages without an end")
        tokens.add(token)
        params = {**params, "after_token": token}
    if len(totals) > 1:
        raise malformed(call, _CHANGED)
    total = totals.pop()
    if total is not None and total > len(found):
        raise malformed(call, f"{len(found)} of {total} instances")
    return found, len(tokens) + 1


_LOG_SECONDS = 30.0
"""Least seconds to wait for a log, because its upload takes some."""


def fetch_log(wire: Wire, call: Call, url: object, retries: Retries) -> str:
    """Read the log as soon as it is uploaded; until then its server answers 403 or 404.

    That server must not see the key. The address is a secret too, because it gives access to the
    log.

    Raises:
        ProviderUnreachable: There is no address, or the log was not uploaded in time.
    """
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        raise malformed(call, "no address of the log")

    def once() -> str:
        try:
            page = wire.fetch(url, seconds=REQUEST_SECONDS)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ProviderUnreachable(
                f"Vast.ai, {call.where}: no log, {type(error).__name__}"
            ) from None
        if page.status != 200:
            raise ProviderUnreachable(f"Vast.ai, {call.where}: no log yet, HTTP {page.status}")
        return page.text

    return replace(retries, deadline_seconds=max(_LOG_SECONDS, retries.deadline_seconds))(once)
