"""The client of Vast.ai beside the simulator, in virtual time: each call is seen from both sides.

    with Bench(VastClient, Options()) as bench:
        seen = bench.call("destroy", number, fault={"act": "close", "when": "after"})
        assert not seen.after.contracts[number].live

Whoever sleeps puts the simulator's clock forward, so that nothing waits. What is true comes from
below `/_sim` alone, before and after a call. What holds for every call is judged here: no secret
gets out, nothing is asked for but what the call is about, and bills are in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any, NamedTuple, Self

import httpx
from pydantic import SecretStr

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.cloud.vast.client import VastClient
from tsgb.errors import ProviderError

KEY = "sentinel/vast+key-4711"
SECRET = "sentinel-of-the-environment"  # noqa: S105
OTHERS = "other/"
"""Labels of whoever else uses the account."""
Fault = Mapping[str, Any]
"""As in tests/fakes/vast/faults.py, and three `act` of the way there: `cut`, no connection at all;
`hang`, no answer until the client gives up; `churn`, behind the first answer somebody ends an
instance and rents another."""

_WAYS = {
    "account": ("GET", "/api/v0/users/current"),
    "search": ("POST", "/api/v0/bundles/"),
    "create": ("PUT", "/api/v0/asks/{}/"),
    "instances": ("GET", "/api/v1/instances/"),
    "show": ("GET", "/api/v0/instances/{}/"),
    "label": ("PUT", "/api/v0/instances/{}/"),
    "stop": ("PUT", "/api/v0/instances/{}/"),
    "change_bid": ("PUT", "/api/v0/instances/bid_price/{}/"),
    "destroy": ("DELETE", "/api/v0/instances/{}/"),
    "logs": ("PUT", "/api/v0/instances/request_logs/{}/"),
}
"""Each call's method and path: all that it may ask for."""
CALLS = tuple(_WAYS)


class Contract(NamedTuple):
    """What is true of one."""

    label: str
    bid: float | None
    phase: str
    live: bool
    created_at: float
    destroyed_at: float | None
    dollars: Fraction
    message: str | None


class Truth(NamedTuple):
    """What is so at one moment."""

    now: float
    options: Mapping[str, Any]
    contracts: Mapping[int, Contract]
    machines: list[dict[str, Any]]
    ledger: Mapping[str, Any]
    requests: list[dict[str, Any]]
    """All that the service has heard."""


class Seen(NamedTuple):
    """One call: what it gave, and what was so around it."""

    value: Any
    error: ProviderError | None
    before: Truth
    after: Truth
    requests: list[dict[str, Any]]
    """What the service heard from this call."""
    num_sent: int
    """How often the client began to send; without a connection nothing is heard."""

    @property
    def last_fault(self) -> str | None:
        """Of the answer that decided."""
        return self.requests[-1]["fault"] if self.requests else None


@dataclass(slots=True)
class _Wire(httpx.BaseTransport):
    """The client's way to the service."""

    advance: Callable[[float], object]
    is_cut: bool = False
    hangs: bool = False
    afterwards: Callable[[], object] | None = None
    sent: list[httpx.Request] = field(default_factory=list[httpx.Request])
    inner: httpx.HTTPTransport = field(default_factory=httpx.HTTPTransport)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        if self.is_cut:
            raise httpx.ConnectError("refused", request=request)
        try:
            answer = self.inner.handle_request(request)
            answer.read()
        except httpx.RemoteProtocolError:
            if not self.hangs:
                raise
            self.advance(request.extensions["timeout"]["read"])
            raise httpx.ReadTimeout("timed out", request=request) from None
        act, self.afterwards = self.afterwards, None
        if act is not None:
            act()
        return answer

    def close(self) -> None:
        self.inner.close()


class Bench:
    """A simulator, a client, and everything that is true."""

    def __init__(self, client_type: type[VastClient], options: Options) -> None:
        self._simulator = VastSimulator(options, virtual=True, key=KEY)
        self._client_type = client_type
        self._not_ours: list[range] = []
        self._num_others = 0
        self.ended_by_others: set[int] = set()
        self._truth: Truth | None = None

    def __enter__(self) -> Self:
        self._simulator.__enter__()
        self.vast = Driver(self._simulator)
        self._wire = _Wire(self.advance)
        self.advance(0)
        self.client = self.client_with(KEY)
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()
        self.vast.http.close()
        self._simulator.__exit__()

    def client_with(self, key: str) -> VastClient:
        return self._client_type(
            SecretStr(key),
            url=self._simulator.url,
            transport=self._wire,
            clock=lambda: self._time,
            sleep=self.advance,
            now=lambda: datetime.fromtimestamp(self._time, UTC),
            jitter=Random(0).uniform,  # so that a sequence can be played again
        )

    def advance(self, seconds: float) -> None:
        self._time: float = self.sim("clock", {"advance_seconds": seconds})["now"]

    def sim(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change something behind the service's back."""
        self._truth = None
        return self.vast.sim(path, dict(body))

    def truth(self) -> Truth:
        """Looked at once until something is done; the clock stands still."""
        self._truth = self._truth or self._look()
        return self._truth

    def _look(self) -> Truth:
        state, ledger = self.vast.sim("state"), self.vast.sim("ledger")
        dollars: dict[int, Fraction] = {}
        for line in ledger["lines"]:
            number = line["instance"]
            dollars[number] = dollars.get(number, Fraction(0)) + Fraction(line["exact"])
        contracts: dict[int, Contract] = {}
        for row in state["instances"]:
            number, bill = row["id"], ledger["instances"][str(row["id"])]
            contracts[number] = Contract(
                label=row["label"],
                bid=None if row["bid"] is None else float(row["bid"]),
                phase=row["phase"],
                live=bill["live"],
                created_at=bill["created_at"],
                destroyed_at=bill["destroyed_at"],
                dollars=dollars.get(number, Fraction(0)),
                message=row["status"]["message"],
            )
        return Truth(
            state["now"],
            state["options"],
            contracts,
            state["machines"],
            ledger,
            self.vast.sim("requests")["requests"],
        )

    def call(
        self, name: str, *arguments: Any, fault: Fault | None = None, client: Any = None
    ) -> Seen:
        """Make one call; whatever it raises that is no `ProviderError` comes through."""
        before, num_sent = self.truth(), len(self._wire.sent)
        method, path = _WAYS[name]
        path = path.format(arguments[0] if arguments else "")
        value: Any = None
        error: ProviderError | None = None
        with self._planned({"method": method, "path": f"{re.escape(path)}$", **(fault or {})}):
            try:
                value = getattr(client or self.client, name)(*arguments)
            except ProviderError as raised:
                error = raised
                _check_secrets(raised)
        self._truth = None
        after = self.truth()
        heard = [
            request
            for index, request in enumerate(after.requests)
            if index >= len(before.requests) and not any(index in part for part in self._not_ours)
        ]
        sent = self._wire.sent[num_sent:]
        assert {(one["method"], one["path"]) for one in heard} <= {(method, path)}, (
            "not its business"
        )
        assert not [
            one for one in sent if "/s3/" in one.url.path and "authorization" in one.headers
        ]
        own = [one for one in sent if "/s3/" not in one.url.path]
        return Seen(value, error, before, after, heard, len(own))

    def rent_for_others(self, most: int = 1) -> None:
        """Somebody else rents machines, the first that are free."""
        free = [row for row in self.truth().machines if row["free"]]
        self._truth = None
        for machine in free[:most]:
            self._num_others += 1
            self.vast.create(
                machine["ask_id"],
                label=f"{OTHERS}{self._num_others}",
                price=float(machine["min_bid"]) * 1.1,
                cancel_unavail=True,
            )

    def ask_beside(self, name: str) -> None:
        """Another program with the same key asks the same, in vain: the service counts both."""
        method, path = _WAYS[name]
        self._truth = None
        self.vast.http.request(method, path.format(1), json={})

    def _churn(self) -> None:
        """Somebody else ends the oldest and rents another."""
        self._truth = None
        truth = self.truth()
        for number, contract in truth.contracts.items():
            if contract.live and contract.label.startswith(OTHERS):
                self.ended_by_others.add(number)
                self.vast.destroy(number)
                break
        self.rent_for_others()
        self._not_ours.append(range(len(truth.requests), len(self.truth().requests)))

    @contextmanager
    def _planned(self, fault: dict[str, Any]) -> Iterator[None]:
        act = fault.get("act")
        wire = self._wire
        wire.is_cut, wire.hangs = act == "cut", act == "hang"
        wire.afterwards = self._churn if act == "churn" else None
        if act not in {None, "cut", "churn"}:
            self.vast.sim("faults", {**fault, "act": "close" if act == "hang" else act})
        try:
            yield
        finally:
            wire.is_cut = wire.hangs = False
            wire.afterwards = None
            self.vast.http.delete("/_sim/faults")


def check_bills(truth: Truth) -> None:
    """Everything billed belongs to a contract, while it exists, and is paid."""
    credit, spent, paid = (Decimal(truth.ledger[it]) for it in ("credit", "spent", "deposited"))
    assert abs(credit + spent - paid) < Decimal("1e-9")
    total = sum((contract.dollars for contract in truth.contracts.values()), Fraction(0))
    assert abs(total - Fraction(spent)) < Fraction(1, 10**9)
    for line in truth.ledger["lines"]:
        contract = truth.contracts[line["instance"]]
        assert line["since"] >= contract.created_at
        if contract.destroyed_at is not None:
            assert line["until"] is not None
            assert line["until"] <= contract.destroyed_at


def _check_secrets(raised: BaseException) -> None:
    """Of the error and of all that is shown with it."""
    error: BaseException | None = raised
    while error is not None:
        for text in (str(error), repr(error), repr(getattr(error, "__dict__", {}))):
            assert KEY not in text, "a secret gets out"
            assert SECRET not in text, "a secret gets out"
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
