"""The documents of a run that renting reads and writes: lease, attempts, a machine's word.

    lease.json                 who may work (tsgb/cloud/lease.py)
    attempts/0003.json         intent, account (tsgb/cloud/budget.py), instance, outcome
    machines/0003/beat.json    written by the machine while it works
    machines/0003/exit.json    written by the machine at its end

It decides nothing. An absent document is None; one that cannot be read is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tsgb.checkpoint.run import RunStore
from tsgb.cloud.lease import NAME, Lease
from tsgb.cloud.preemption import Hold, machine_class
from tsgb.cloud.retry_policy import Ending
from tsgb.cloud.termination import Cause
from tsgb.cloud.words import moment
from tsgb.errors import StoreError, StoreUnreachable

_HOUR = 3600.0


class Intent(BaseModel):
    """What an attempt was going to rent, written before it did.

    Example: `Intent(label="tsgb/home/r1/3", ask_id=7, machine_id=8, host_id=9, ...)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    label: str
    ask_id: int
    machine_id: int
    host_id: int
    gpu_name: str
    num_gpus: int = 1
    price: float
    """$/h of the bid."""
    hourly: float
    """$/h with storage."""
    disk_gb: float
    image_bytes: int = 0
    """Downloaded, and billed, before anything in the container can count."""
    intended_at: AwareDatetime

    @property
    def machine_class(self) -> str:
        """What its hazard is counted under."""
        return machine_class(self.gpu_name, self.num_gpus, is_bid=True)


class Outcome(BaseModel):
    """How an attempt ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cause: Cause
    message: str = ""
    at: AwareDatetime
    step: int = 0
    """Of the newest checkpoint then."""
    boot_seconds: float | None = None
    """From the rental to its first sign of life; None if there was none."""
    hold_seconds: float = 0.0
    """From that to its end."""


@dataclass(frozen=True, slots=True)
class Page:
    """One attempt's document, as far as it has come.

    Example: `Page(attempt=3, intent=intent, instance_id=7835610, outcome=None)`
    """

    attempt: int
    intent: Intent | None
    """None for an attempt on this machine."""
    instance_id: int | None
    outcome: Outcome | None
    first_beat_at: datetime | None = None
    """When its flow saw the machine's first sign of life."""


class Papers:
    """The documents of one run.

    Example: `Papers(run).lease()`
    """

    def __init__(self, run: RunStore) -> None:
        """Nothing is read yet."""
        self.run = run

    def lease(self) -> Lease | None:
        """The lease; None if there is surely none."""
        content = self._read(NAME)
        return None if content is None else Lease.from_json(content, f"{self.run.run_url}/{NAME}")

    def put_lease(self, lease: Lease) -> None:
        """Replace the lease."""
        self.run.write_json(NAME, lease.to_json())

    def pages(self) -> Iterator[Page]:
        """All attempts, by number."""
        try:
            names = self.run.list("attempts")
        except FileNotFoundError:
            return
        for stem in sorted(name.removesuffix(".json") for name in names):
            if stem.isdecimal() and (page := self.page(int(stem))) is not None:
                yield page

    def page(self, attempt: int) -> Page | None:
        """One attempt's document; one that its dying writer left half is as if it had said nothing.

        What it cost is in the ledger, which has it twice.
        """
        try:
            content = self._read(f"attempts/{attempt:04d}.json")
        except StoreUnreachable:
            raise
        except StoreError:
            content = {}
        if content is None:
            return None
        number = content.get("instance_id")
        return Page(
            attempt,
            _parse(Intent, content.get("intent")),
            number if isinstance(number, int) else None,
            _parse(Outcome, content.get("outcome")),
            moment(content, "first_beat_at"),
        )

    def note(self, attempt: int, **fields: Any) -> None:
        """Add fields to an attempt's document."""
        name = f"attempts/{attempt:04d}.json"
        try:
            before = self._read(name) or {}
        except StoreUnreachable:
            raise
        except StoreError:
            before = {"attempt": attempt}
        self.run.write_json(name, {**before, **fields})

    def beat(self, attempt: int) -> Mapping[str, Any] | None:
        """What the machine said last."""
        return self._read(f"machines/{attempt:04d}/beat.json")

    def farewell(self, attempt: int) -> Mapping[str, Any] | None:
        """What the machine said at its end; None if it has not."""
        return self._read(f"machines/{attempt:04d}/exit.json")

    def endings(self) -> list[Ending]:
        """How the rented attempts ended, oldest first."""
        return [ending_of(page) for page in self.pages() if page.outcome is not None]

    def holds(self) -> list[Hold]:
        """How long machines were held, for the hazard of their class."""
        return [hold for page in self.pages() if (hold := hold_of(page)) is not None]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return self.run.read_json(name)
        except FileNotFoundError:
            return None


def hold_of(page: Page) -> Hold | None:
    """How long its machine was held; None if it never came to work, or holds still."""
    intent, outcome = page.intent, page.outcome
    if intent is None or outcome is None or not outcome.hold_seconds:
        return None
    preempted = outcome.cause is Cause.PREEMPTED
    return Hold(intent.machine_class, outcome.hold_seconds / _HOUR, preempted)


def ending_of(page: Page) -> Ending:
    """For the budget of retries."""
    assert page.outcome is not None
    return Ending(
        cause=page.outcome.cause,
        at=page.outcome.at,
        step=page.outcome.step,
        machine_id=None if page.intent is None else page.intent.machine_id,
        host_id=None if page.intent is None else page.intent.host_id,
    )


def _parse(kind: type[Intent] | type[Outcome], content: object) -> Any:
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError:
        return None
