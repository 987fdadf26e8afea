"""Bounds on what the endpoints of a run may cost, and an estimate before anything is asked.

A request is counted before it is sent, at the most that it may cost, and corrected when its answer
says what it did cost. A request that may have been billed without an answer stays counted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from tsgb.errors import StoreError, UsageError
from tsgb.targets.endpoint import FILE_OPTION, EndpointSpec

COST_OPTION = "--max-cost"
_MILLION = 1_000_000
_LINE_BYTES = 64
"""Bytes of the file with the counts: one line of one length, which a write replaces whole."""
BYTES_A_TOKEN = 4
"""Bytes of English text in a token, by which a likely number is estimated."""


def dollars(spec: EndpointSpec, tokens_in: float, tokens_out: float) -> float:
    """Return the price of so many tokens; 0 where the endpoint has no price."""
    price_in, price_out = spec.dollars_in or 0.0, spec.dollars_out or 0.0
    return (tokens_in * price_in + tokens_out * price_out) / _MILLION


class Spending:
    """Counts the requests and dollars of a run, over all its endpoints; threads share it.

    With a file, processes share it too: those of several seeds, and those of a run that goes on.

    Example: `Spending(max_requests=1000, max_dollars=3.0)`
    """

    def __init__(
        self,
        max_requests: int | None = None,
        max_dollars: float | None = None,
        path: Path | None = None,
    ) -> None:
        """Go on from what the file says was spent.

        Args:
            max_requests: Requests that may be sent; None sets no limit.
            max_dollars: Dollars that they may cost; None sets no limit.
            path: File that keeps what was spent; None keeps it in this object.

        Raises:
            StoreError: The file cannot be written.
        """
        self._max_requests = max_requests
        self._max_dollars = max_dollars
        self._path = path
        self._lock = Lock()
        self.requests = 0
        """Requests that were sent, repeated ones included."""
        self.dollars = 0.0
        """Dollars that they cost, or may have cost."""
        with self._counting():
            pass

    def check_prices(self, specs: Sequence[EndpointSpec]) -> None:
        """Check that a limit in dollars means something.

        Raises:
            UsageError: An endpoint's prices are not known.
        """
        if self._max_dollars is None:
            return
        for spec in specs:
            if spec.dollars_in is None or spec.dollars_out is None:
                raise UsageError(
                    f"{COST_OPTION} {self._max_dollars:g}: the price of {spec.name!r} is not "
                    f"known: declare it in a file for {FILE_OPTION} with dollars_in and "
                    "dollars_out (0 where it is free), that of a judge as in --judge "
                    "openai:MODEL#2.5/10, or use --max-requests"
                )

    def reserve(self, most_dollars: float) -> bool:
        """Count a request that costs so much at most; False if it could pass a limit."""
        with self._counting():
            if self._max_requests is not None and self.requests + 1 > self._max_requests:
                return False
            if self._max_dollars is not None and self.dollars + most_dollars > self._max_dollars:
                return False
            self.requests += 1
            self.dollars += most_dollars
            return True

    def settle(self, most_dollars: float, actual_dollars: float) -> None:
        """Correct the cost of a request that was counted."""
        with self._counting():
            self.dollars = max(0.0, self.dollars + actual_dollars - most_dollars)

    @contextmanager
    def _counting(self) -> Generator[None]:
        """Hold the counts; with a file, read them from there before and write them after."""
        with self._lock:
            if self._path is None:
                yield
                return
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StoreError(f"{self._path} cannot be written ({error.strerror})") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._read(os.pread(file, _LINE_BYTES, 0))
                before = self.requests, self.dollars
                yield
                if before != (self.requests, self.dollars):
                    line = f"{self.requests} {self.dollars!r}"
                    os.pwrite(file, line.ljust(_LINE_BYTES - 1).encode() + b"\n", 0)
            finally:
                os.close(file)

    def _read(self, line: bytes) -> None:
        """Take the counts of a file; an empty one says nothing.

        Raises:
            StoreError: It holds anything else, so that nobody knows what was spent.
        """
        if not line:
            return
        try:
            requests, dollars_spent = line.split()
            self.requests, self.dollars = int(requests), float(dollars_spent)
        except ValueError:
            raise StoreError(
                f"{self._path} does not say what was spent: delete it to count from 0"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """Cost of asking one endpoint, before it is asked.

    Example: `CostEstimate(name="gpt", requests=400, tokens_in=9000, tokens_out=204800, ...)`
    """

    name: str
    """Name of the endpoint in tables."""
    host: str
    """Host that is asked."""
    requests: int
    """Questions; each is one request if none fails."""
    attacks: int
    """Questions among them that fresh attackers ask at most."""
    tokens_in: int
    """Tokens of the prompts, likely: a token has about four bytes."""
    tokens_out: int
    """Tokens of the answers if each is as long as it may be."""
    dollars: float | None
    """Cost of these; None if the endpoint's prices are not known."""
    most_dollars: float | None
    """Upper bound: each byte of a prompt a token, and every question asked as often as allowed."""


def estimate_cost(
    spec: EndpointSpec, prompt_bytes: Sequence[int], attacks: int = 0
) -> CostEstimate:
    """Estimate the cost of asking prompts of these sizes.

    Args:
        spec: The endpoint.
        prompt_bytes: Bytes of each prompt, as `tsgb.targets.dialects.prompt_bytes` counts them.
        attacks: Number of prompts among them that fresh attackers will write.
    """
    num, size = len(prompt_bytes), sum(prompt_bytes)
    tokens_in, tokens_out = round(size / BYTES_A_TOKEN), num * spec.max_tokens
    has_price = spec.dollars_in is not None and spec.dollars_out is not None
    return CostEstimate(
        name=spec.name,
        host=spec.host,
        requests=num,
        attacks=attacks,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        dollars=dollars(spec, tokens_in, tokens_out) if has_price else None,
        most_dollars=dollars(spec, size, tokens_out) * spec.most_attempts if has_price else None,
    )
