"""The endpoints below `/api`: which there are, what each asks of its key, what each does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.fakes.vast import account, listing, logs, renting
from tests.fakes.vast.contracts import Contract
from tests.fakes.vast.keys import Key, Keys
from tests.fakes.vast.limits import Limits
from tests.fakes.vast.messages import Answer, Request, no_such_instance, ok, refused
from tests.fakes.vast.offers import CARDS
from tests.fakes.vast.search import select
from tests.fakes.vast.world import QUEUED_MESSAGE, World

MAX_LABEL = 1024
MIN_BID, MAX_BID_PER_GPU = Decimal("0.001"), Decimal(32)

Handler = Callable[["Api", Request, int], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. The name is that of its rate limit."""

    method: str
    path: str
    name: str
    scope: str | None
    """None: no key is asked for."""
    handle: Handler


class Api:
    """The whole service; its caller holds the world's lock."""

    def __init__(self, world: World, keys: Keys) -> None:
        self.world = world
        self.keys = keys
        self.limits = Limits()
        self.logs = logs.Logs()
        self.account = account.Account(world, keys)

    def respond(self, request: Request) -> Answer:
        """Route, authenticate, limit, do."""
        for route in ROUTES:
            found = re.fullmatch(route.path, request.path.rstrip("/"))
            if found and route.method == request.method:
                number = int(found[1]) if found.groups() else 0
                return self._refusal(route, request, number) or route.handle(self, request, number)
        return refused(
            404, "not_found", f"{request.method} {request.path}: there is no such endpoint"
        )

    def _refusal(self, route: Route, request: Request, number: int) -> Answer | None:
        if route.scope is None:
            return None
        options = self.world.options
        key = self.keys.find(request.token)
        if key is None:
            return refused(options.auth_error_status, "auth_error", "Invalid user key")
        if not _may(key, route, number):
            return refused(403, "forbidden", f"This key lacks the permission {route.scope}.")
        return self.limits.refusal(route.name, request, options, self.world.now)

    def search(self, request: Request, _: int) -> Answer:
        body = request.body if isinstance(request.body, dict) else {}
        is_new = request.method == "PUT"
        query = body.get("q", {}) if is_new else body
        options, now = self.world.options, self.world.now
        storage = Decimal(query.get("allocated_storage") or 5)
        bid = query.get("type") in {"bid", "interruptible"}
        offers = [
            machine.offer(now, bid=bid, storage_gb=storage)
            for machine in self.world.machines
            if machine.is_free(now) and now < machine.end_date
        ]
        try:
            found = select(
                offers, query, ignored=options.ignored_filters, at_most=options.max_offers
            )
        except (ValueError, TypeError) as error:
            return refused(400, "invalid_args", str(error))
        return ok(offers=found) if is_new else ok({"offers": found})

    def create(self, request: Request, ask_id: int) -> Answer:
        return renting.create(self.world, self.keys, request, ask_id)

    def list(self, request: Request, _: int) -> Answer:
        return listing.page(self.world, request)

    def show(self, _: Request, number: int) -> Answer:
        return listing.show(self.world, number)

    def update(self, request: Request, number: int) -> Answer:
        """Start, stop, label."""
        contract = self._live(number)
        if contract is None:
            return no_such_instance(number)
        body = request.body if isinstance(request.body, dict) else {}
        label, state = body.get("label"), body.get("state")
        if (label is None) == (state is None):
            return refused(400, "invalid_args", "give one of state and label")
        if label is not None:
            if len(label) > MAX_LABEL:
                return refused(400, "invalid_args", f"label is longer than {MAX_LABEL} characters")
            contract.label = label
        elif state == "stopped":
            self.world.stop(contract)
        elif state != "running":
            return refused(400, "invalid_args", f"state {state!r} is neither running nor stopped")
        elif not self.world.start(contract):
            return refused(200, "resources_unavailable", QUEUED_MESSAGE)
        return ok()

    def update_many(self, request: Request, _: int) -> Answer:
        """Start or stop several; the first refusal is the answer."""
        body = request.body if isinstance(request.body, dict) else {}
        answers = [self.update(request, int(number)) for number in body.get("ids", [])]
        return next((answer for answer in answers if answer.body["success"] is not True), ok())

    def change_bid(self, request: Request, number: int) -> Answer:
        contract = self._live(number)
        if contract is None:
            return no_such_instance(number)
        price = (request.body or {}).get("price")
        highest = MAX_BID_PER_GPU * contract.machine.num_gpus
        if contract.bid is None:
            return refused(400, "invalid_args", "This instance is no bid.")
        if not isinstance(price, int | Decimal | None):
            return refused(400, "invalid_args", f"price {price!r} is no number")
        if price is not None and not MIN_BID <= price <= highest:
            return refused(400, "invalid_price", f"price must be between {MIN_BID} and {highest}")
        self.world.change_bid(contract, highest if price is None else Decimal(price))
        return ok()

    def destroy(self, _: Request, number: int) -> Answer:
        contract = self._live(number)
        if contract is None:
            return no_such_instance(number)
        self.world.destroy(contract)
        return ok()

    def destroy_many(self, request: Request, _: int) -> Answer:
        for number in (request.body or {}).get("instance_ids", []):
            if contract := self._live(int(number)):
                self.world.destroy(contract)
        return ok()

    def restart(self, _: Request, number: int) -> Answer:
        contract = self._live(number)
        if contract is None:
            return no_such_instance(number)
        self.world.restart(contract)
        return ok()

    def request_logs(self, request: Request, number: int) -> Answer:
        contract = self._live(number)
        if contract is None:
            return no_such_instance(number)
        body = request.body if isinstance(request.body, dict) else {}
        path = self.logs.upload(contract, body, self.world.options.log_misses)
        return ok(result_url=request.base_url + path, msg="Log is being uploaded")

    def execute(self, request: Request, number: int) -> Answer:
        contract = self._live(number)
        if contract is None:
            return no_such_instance(number)
        try:
            path = self.logs.execute(contract, str((request.body or {}).get("command")))
        except ValueError as error:
            return refused(400, "invalid_args", str(error))
        message = "Command is executing, wait a few seconds and then view the result_url"
        url = request.base_url + path
        return ok(result_url=url, writeable_path="/var/lib/docker/x", msg=message)

    def attach_key(self, _: Request, number: int) -> Answer:
        return ok() if self._live(number) else no_such_instance(number)

    def _live(self, number: int) -> Contract | None:
        contract = self.world.contracts.get(number)
        return contract if contract is not None and contract.is_live else None


def _may(key: Key, route: Route, number: int) -> bool:
    if key.instance is None:
        return route.scope in key.scopes
    return key.instance == number and route.name in {"show", "update", "destroy"}


def _fixed(body: Any) -> Handler:
    return lambda _api, _request, _number: ok(body)


def _retired(_api: Api, _request: Request, _number: int) -> Answer:
    return refused(410, "deprecated_endpoint", "This endpoint is retired: use /api/v1/instances/.")


_ID = r"/api/v0/instances/(\d+)"
ROUTES = (
    Route("GET", "/api/v0/gpu_names/unique", "gpu_names", None,
          _fixed({"gpu_names": [card.name for card in CARDS]})),
    Route("POST", "/api/v0/bundles", "search", "misc", Api.search),
    Route("PUT", "/api/v0/search/asks", "search", "misc", Api.search),
    Route("PUT", r"/api/v0/asks/(\d+)", "create", "instance_write", Api.create),
    Route("GET", "/api/v1/instances", "list", "instance_read", Api.list),
    Route("GET", "/api/v0/instances", "list", "instance_read", _retired),
    Route("GET", "/api/v0/instances/filters", "filters", "instance_read", _fixed({"filters": []})),
    Route("DELETE", "/api/v0/instances", "destroy", "instance_write", Api.destroy_many),
    Route("PUT", "/api/v0/instances", "update", "instance_write", Api.update_many),
    Route("GET", _ID, "show", "instance_read", Api.show),
    Route("PUT", _ID, "update", "instance_write", Api.update),
    Route("DELETE", _ID, "destroy", "instance_write", Api.destroy),
    Route("PUT", r"/api/v0/instances/bid_price/(\d+)", "change_bid", "instance_write",
          Api.change_bid),
    Route("PUT", r"/api/v0/instances/reboot/(\d+)", "reboot", "instance_write", Api.restart),
    Route("PUT", r"/api/v0/instances/recycle/(\d+)", "recycle", "instance_write", Api.restart),
    Route("PUT", r"/api/v0/instances/request_logs/(\d+)", "logs", "instance_read",
          Api.request_logs),
    Route("PUT", r"/api/v0/instances/command/(\d+)", "execute", "instance_write", Api.execute),
    Route("POST", f"{_ID}/ssh", "ssh", "instance_write", Api.attach_key),
    Route("GET", "/api/v0/users/current", "user", "user_read",
          lambda api, *_: api.account.user()),
    Route("GET", "/api/v0/secrets", "secrets", "user_read",
          lambda api, *_: api.account.variables()),
    Route("GET", "/api/v0/machines", "machines", "machine_read", _fixed({"machines": []})),
    Route("GET", "/api/v0/ssh", "ssh", "user_read", _fixed([])),
    Route("POST", "/api/v0/ssh", "ssh", "user_write", _fixed({"success": True, "key": {"id": 1}})),
    Route("GET", "/api/v0/team/roles-full", "roles", "team_read",
          lambda api, *_: api.account.roles()),
    Route("POST", "/api/v0/team/roles", "roles", "team_write",
          lambda api, request, _: api.account.add_role(request)),
    Route("GET", "/api/v0/auth/apikeys", "keys", "user_read",
          lambda api, *_: api.account.list_keys()),
    Route("POST", "/api/v0/auth/apikeys", "keys", "user_write",
          lambda api, request, _: api.account.add_key(request)),
    Route("DELETE", r"/api/v0/auth/apikeys/(\d+)", "keys", "user_write",
          lambda api, _, number: api.account.revoke_key(number)),
)  # fmt: skip
