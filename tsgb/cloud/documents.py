"""The documents of a run that renting reads and writes, and how a machine's own JSON is read.

    lease.json                 permission to work (tsgb/cloud/lease.py)
    attempts/0003.json         intent, account (tsgb/cloud/budget.py), instance, outcome

and in the folder of an attempt, in the exchange (tsgb/cloud/exchange.py):

    lease.json                 copy of the lease, which the machine reads
    machines/0003/beat.json    heartbeat, written by the machine while it works
    machines/0003/exit.json    exit record, written by the machine at its end

An absent document is None, and a lease that cannot be read is an error. A heartbeat or an exit
record comes from a machine that nobody trusts: one that is no JSON object, or a field of it that is
missing or of another type, says nothing and is never an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tsgb.checkpoint.documents import count_in, finite, printable
from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.card import CardProbe
from tsgb.cloud.lease import NAME, Lease
from tsgb.cloud.preemption import Hold, machine_class
from tsgb.cloud.pricing import Account, Usage
from tsgb.cloud.retry_policy import Ending
from tsgb.cloud.termination import TerminationReason
from tsgb.config import Arm
from tsgb.errors import StoreError, StoreUnreachable

_HOUR = 3600.0
_ARMS = frozenset(arm.value for arm in Arm)
_MAX_REPORT_BYTES = 64 << 10
"""Size of the largest heartbeat or exit record that is read, in bytes."""
_REPORTS = ("beat.json", "exit.json")
_MAX_TEXT = 4096
"""Characters of the longest text that a machine may tell, such as the end of its log."""
_YEARS = range(2000, 2100)
"""Years that a machine may tell; sums with others could lie beyond the last date."""


class Intent(BaseModel):
    """The rental that an attempt was going to make, written before it was asked for.

    Example: `Intent(label="tsgb/home/r1/3", ask_id=7, machine_id=8, host_id=9, ...)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    label: str
    """Label of the instance."""
    ask_id: int
    """Identifier of the offer."""
    machine_id: int
    """The machine, over all its offers."""
    host_id: int
    """The machine's owner."""
    gpu_name: str
    """Name of its GPUs."""
    num_gpus: int = 1
    """GPUs of the offer."""
    price: float
    """Bid, $/h."""
    hourly: float
    """Bid and storage, $/h."""
    disk_gb: float
    """Storage, GB."""
    image_bytes: int = 0
    """Size of the image: downloaded, and billed, before anything in the container can count."""
    intended_at: AwareDatetime
    """Time at which it was written."""
    card_gb: float = 0.0
    """Memory that its card must have, GB; 0 for work that needs no card."""
    ends_at: AwareDatetime | None = None
    """Deadline in the label; None in a document of an earlier version."""
    exchange: str = ""
    """The attempt's folder in the exchange; empty where machines see the run itself."""

    @property
    def machine_class(self) -> str:
        """Return the class under which its preemptions are counted."""
        return machine_class(self.gpu_name, self.num_gpus, is_bid=True)


class AttemptResult(BaseModel):
    """The end of an attempt, as its document keeps it under `outcome`.

    Example: `AttemptResult(cause=TerminationReason.PREEMPTED, at=now, step=120)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cause: TerminationReason
    """Reason for which the machine is no longer at work."""
    message: str = ""
    """One line for people."""
    at: AwareDatetime
    """Time of the end."""
    step: int = 0
    """Updates that were safe in the store then, over all arms."""
    boot_seconds: float | None = None
    """Seconds from the rental to the first heartbeat; None if there was none."""
    hold_seconds: float = 0.0
    """Seconds from the first heartbeat to the end."""
    is_claim: bool = False
    """Whether nobody but the machine gave that reason."""
    is_idle: bool = False
    """Whether the machine told of no update beyond the checkpoints that it went on from."""
    updates: dict[str, tuple[int, int]] = {}
    """By arm, the step from which its machine went on and the one that it had saved at the end."""


@dataclass(frozen=True, slots=True)
class AttemptDocument:
    """The document of one attempt, as far as it was written.

    Example: `AttemptDocument(attempt=3, intent=intent, instance_id=7835610, result=None)`
    """

    attempt: int
    """Number of the attempt."""
    intent: Intent | None = None
    """The intended rental; None for an attempt on this machine."""
    instance_id: int | None = None
    """The instance; None if none was written down."""
    result: AttemptResult | None = None
    """The end; None while it is not written."""
    first_beat_at: datetime | None = None
    """Time at which its flow saw the first heartbeat; None if it saw none."""
    probe: CardProbe | None = None
    """What its machine found when it used its card; None without a probe."""
    is_collected: bool = False
    """Whether all that its machine saved was looked at, and its folder needs nobody any more."""
    resumed_from: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of the checkpoint that each arm went on from, where there was one."""
    arms: frozenset[str] = frozenset()
    """Arms that its machine trains; empty in a document of an earlier version, for all."""

    @property
    def basis(self) -> str:
        """Return the names of these checkpoints in one text, by which attempts are compared."""
        return basis_of(self.resumed_from)

    @property
    def first_step(self) -> int:
        """Return the updates in these checkpoints, all arms together."""
        found = map(CheckpointName.parse, self.resumed_from.values())
        return sum(checkpoint.step for checkpoint in found if checkpoint is not None)


def basis_of(names: Mapping[str, str]) -> str:
    """Return the names of checkpoints in one text, see `Ending.basis`.

    Args:
        names: Name of the checkpoint of each arm.
    """
    return " ".join(f"{arm}:{names[arm]}" for arm in sorted(names))


@dataclass(frozen=True, slots=True)
class Reports:
    """The last reports of a machine that is gone.

    Example: `documents.last_reports(3).exit_record`
    """

    heartbeat: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its last heartbeat; empty if it wrote none, or none can be read."""
    exit_record: Mapping[str, Any] | None = None
    """Its exit record; None likewise."""
    has_reported: bool | None = None
    """Whether it wrote anything, readable or not; None if that is unknown."""


class RunDocuments:
    """The documents of one run.

    Example: `RunDocuments(run).lease()`
    """

    def __init__(self, run: RunStore, exchange: Callable[[str], RunStore] | None = None) -> None:
        """Wrap the store of a run; nothing is read yet.

        Args:
            run: The run in the store of runs, which no machine writes to.
            exchange: Opens the run in a folder of the exchange; None where machines have none.
        """
        self.run = run
        self._exchange = exchange
        self._folders: dict[int, str] = {}
        """Folders of attempts in the exchange, as far as they are known."""

    def lease(self) -> Lease | None:
        """Return the lease; None if there is surely none."""
        content = self._read(NAME)
        return None if content is None else Lease.from_json(content, f"{self.run.run_url}/{NAME}")

    def put_lease(self, lease: Lease) -> None:
        """Replace the lease, and the copy that its machine reads."""
        self.put_lease_of_record(lease)
        self.show_lease(lease)

    def put_lease_of_record(self, lease: Lease) -> None:
        """Replace the lease that counts, and not the copy that its machine reads."""
        self.run.write_json(NAME, lease.to_json())

    def show_lease(self, lease: Lease) -> None:
        """Replace the copy of the lease that its machine reads."""
        seen = self._seen_by(lease.attempt)
        if seen is not self.run:
            seen.write_json(NAME, lease.to_json())

    def attempts(self) -> Iterator[AttemptDocument]:
        """Yield the documents of all attempts, by number."""
        for number in self.run.attempt_documents("attempts"):
            if (found := self.attempt(number)) is not None:
                yield found

    def attempt(self, attempt: int) -> AttemptDocument | None:
        """Return one attempt's document; half a document, of a writer that died, is an empty one.

        The cost of the attempt is in the ledger, which has it twice.
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
        return AttemptDocument(
            attempt,
            _parse(Intent, content.get("intent")),
            number if isinstance(number, int) else None,
            _parse(AttemptResult, content.get("outcome")),
            moment(content, "first_beat_at"),
            CardProbe.read(content),
            content.get("collected") is True,
            _texts_in(content, "resumed_from"),
            _names_in(content, "arms"),
        )

    def note(self, attempt: int, **fields: Any) -> None:
        """Add fields to an attempt's document."""
        name = f"attempts/{attempt:04d}.json"
        try:
            before = finite(self._read(name)) or {"attempt": attempt}
        except StoreUnreachable:
            raise
        except StoreError:
            before = {"attempt": attempt}
        self.run.write_json(name, {**before, **fields})

    def heartbeat(self, attempt: int) -> Mapping[str, Any] | None:
        """Return the machine's last heartbeat; None before the first one.

        Raises:
            StoreUnreachable: The store does not answer.
        """
        return self._reported(attempt, "beat.json") or None

    def exit_record(self, attempt: int) -> Mapping[str, Any] | None:
        """Return the machine's exit record; None if it has not written one.

        Raises:
            StoreUnreachable: The store does not answer.
        """
        return self._reported(attempt, "exit.json") or None

    def has_reported(self, attempt: int) -> bool:
        """Return whether the machine wrote anything, readable or not: then it existed.

        Raises:
            StoreUnreachable: The store does not answer.
        """
        return any(self._reported(attempt, name) is not None for name in _REPORTS)

    def last_reports(self, attempt: int) -> Reports:
        """Return what a machine that is gone has told last, if that can be read now.

        Its bill does not wait for it: the exchange may not answer, or be gone for good.
        """
        try:
            heartbeat = self.heartbeat(attempt)
            return Reports(heartbeat or {}, self.exit_record(attempt), self.has_reported(attempt))
        except StoreUnreachable:
            return Reports()

    def collected(self, attempt: int) -> None:
        """Keep the last reports of a machine in the run, and note that its folder is not needed.

        Raises:
            StoreUnreachable: The store does not answer.
        """
        for name in _REPORTS:
            found = self._reported(attempt, name)
            if found:
                self.run.write_json(f"machines/{attempt:04d}/{name}", found)
        self.note(attempt, collected=True)
        self._folders[attempt] = ""

    def endings(self) -> list[Ending]:
        """Return how the rented attempts ended, oldest first."""
        rented = (found for found in self.attempts() if found.intent is not None)
        return [ending_of(found) for found in rented if found.result is not None]

    def holds(self) -> list[Hold]:
        """Return how long machines were held, for the preemption rate of their class."""
        return [hold for found in self.attempts() if (hold := hold_of(found)) is not None]

    def _reported(self, attempt: int, name: str) -> dict[str, Any] | None:
        path = f"machines/{attempt:04d}/{name}"
        for run in dict.fromkeys((self._seen_by(attempt), self.run)):  # kept there by `collected`
            try:
                found = run.read_json(path, _MAX_REPORT_BYTES)
            except FileNotFoundError:
                continue
            except StoreUnreachable:
                raise
            except StoreError:
                return {}
            return {key: _harmless(value) for key, value in found.items()}
        return None

    def _seen_by(self, attempt: int) -> RunStore:
        """Return the run as an attempt's machine sees it."""
        if self._exchange is None:
            return self.run
        if attempt not in self._folders:
            found = self.attempt(attempt)
            if found is None or found.intent is None:
                return self.run
            self._folders[attempt] = "" if found.is_collected else found.intent.exchange
        folder = self._folders[attempt]
        return self._exchange(folder) if folder else self.run

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return self.run.read_json(name)
        except FileNotFoundError:
            return None


def hold_of(found: AttemptDocument) -> Hold | None:
    """Return how long its machine was held; None if it never came to work, or works still."""
    intent, result = found.intent, found.result
    if intent is None or result is None or not result.hold_seconds:
        return None
    preempted = result.cause is TerminationReason.PREEMPTED
    return Hold(intent.machine_class, result.hold_seconds / _HOUR, preempted)


def ending_of(found: AttemptDocument) -> Ending:
    """Return the end of an attempt that is over, for the budget of retries."""
    assert found.result is not None
    return Ending(
        cause=found.result.cause,
        at=found.result.at,
        step=found.result.step,
        machine_id=None if found.intent is None else found.intent.machine_id,
        host_id=None if found.intent is None else found.intent.host_id,
        is_claim=found.result.is_claim,
        basis=found.basis,
        is_idle=found.result.is_idle,
    )


def _texts_in(content: Mapping[str, Any], name: str) -> dict[str, str]:
    found: object = content.get(name)
    if not isinstance(found, Mapping):
        return {}
    named = cast("Mapping[object, object]", found)
    return {str(key): text for key, text in named.items() if isinstance(text, str)}


def _names_in(content: Mapping[str, Any], name: str) -> frozenset[str]:
    found: object = content.get(name)
    if not isinstance(found, list):
        return frozenset()
    return frozenset(one for one in cast("list[object]", found) if isinstance(one, str))


def _parse(kind: type[Intent] | type[AttemptResult], content: object) -> Any:
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError:
        return None


# -- heartbeats and exit records --------------------------------------------------------------


def arms(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a heartbeat or an exit record says of each arm."""
    found: object = record.get("arms")
    if not isinstance(found, Mapping):
        return {}
    named = cast("Mapping[object, object]", found)
    return {
        str(name): cast("Mapping[str, Any]", arm)
        for name, arm in named.items()
        if isinstance(arm, Mapping)
    }


def _harmless(value: object) -> Any:
    """Return a value of a report without what could harm a terminal or a document of ours."""
    if isinstance(value, str):
        return printable(value[-_MAX_TEXT:], keep="\n")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        found = cast("Mapping[str, object]", value)
        return {_harmless(key): _harmless(one) for key, one in found.items()}
    if isinstance(value, list):
        return [_harmless(one) for one in cast("list[object]", value)]
    return value


def durable_step(arm: Mapping[str, Any]) -> int:
    """Return the updates that are safe in the store; all of them where they are not told apart."""
    return count_in(arm, "durable_step" if "durable_step" in arm else "step")


def has_made_updates(record: Mapping[str, Any]) -> bool:
    """Return whether a machine tells of an update beyond the checkpoints that it went on from."""
    return any(count_in(arm, "step") > count_in(arm, "first_step") for arm in arms(record).values())


def tells_of_start(heartbeat: Mapping[str, Any]) -> bool:
    """Return whether a heartbeat counts all that its machine downloaded before its work began.

    While models and checkpoints are on their way, no heartbeat has them all. One without any byte
    knows nothing, since the code alone is a download.
    """
    return has_made_updates(heartbeat) and count_in(heartbeat, "bytes_down") > 0


def saved_updates(record: Mapping[str, Any] | None) -> dict[str, tuple[int, int]]:
    """Return by arm the step from which a machine went on, and the last one that it has saved."""
    found = {
        name: (count_in(arm, "first_step"), durable_step(arm))
        for name, arm in arms(record or {}).items()
        if "first_step" in arm and name in _ARMS
    }
    return {name: (first, last) for name, (first, last) in found.items() if last > first}


def durable_steps(record: Mapping[str, Any]) -> int:
    """Return the updates of all arms together that are safe in the store."""
    return sum(durable_step(arm) for arm in arms(record).values())


def moment(record: Mapping[str, Any] | None, name: str) -> datetime | None:
    """Return a time on the writer's own clock; None if it is not told, or absurd."""
    try:
        found = datetime.fromisoformat(str((record or {})[name]))
    except (KeyError, ValueError):
        return None
    return found if found.tzinfo is not None and found.year in _YEARS else None


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """The traces of a machine whose flow is dead, for closing its books.

    Example: `MachineRecord(more=Usage(bytes_up=7), start_is_told=True, step=120, ...)`
    """

    more: Usage
    """Traffic that it tells of and its account does not hold."""
    start_is_told: bool
    """Whether it tells of all traffic of its start."""
    step: int
    """Updates that it has saved, of all arms together."""
    boot_seconds: float | None
    """Seconds from the rental to the first heartbeat; None if its flow saw none."""
    hold_seconds: float
    """Seconds from the first heartbeat, or else from the rental, to the last document."""
    updates: dict[str, tuple[int, int]]
    """Updates that it saved, by arm: see `AttemptResult`."""
    exit_record: Mapping[str, Any] | None
    """Its exit record; None if it had no time for one."""
    said_at: datetime | None
    """Time of its last document, by its own clock; None if it never wrote one."""


def machine_record(
    documents: RunDocuments, document: AttemptDocument, account: Account | None
) -> MachineRecord:
    """Read what a machine left behind.

    Raises:
        StoreError: It cannot be read.
    """
    told = documents.last_reports(document.attempt)
    heartbeat, exit_record = told.heartbeat, told.exit_record
    up, down = counted_bytes(account, document)
    more = Usage(
        bytes_up=max(0, count_in(heartbeat, "bytes_up") - up),
        bytes_down=max(0, count_in(heartbeat, "bytes_down") - down),
    )
    last = moment(exit_record, "ended_at") or moment(heartbeat, "updated_at")
    if last is not None and account is not None:
        last = min(last, account.covers_until)  # nothing works on for longer than is paid
    first, intent = document.first_beat_at, document.intent
    boot = None if first is None or intent is None else first - intent.intended_at
    begun = first if first is not None or intent is None else intent.intended_at
    hold = 0.0 if begun is None or last is None else (last - begun).total_seconds()
    return MachineRecord(
        more=more,
        start_is_told=tells_of_start(heartbeat),
        step=durable_steps(exit_record or heartbeat) or durable_steps(heartbeat),
        boot_seconds=None if boot is None else max(0.0, boot.total_seconds()),
        hold_seconds=max(0.0, hold),
        updates=saved_updates(heartbeat),
        exit_record=exit_record,
        said_at=last,
    )


def counted_bytes(account: Account | None, document: AttemptDocument | None) -> tuple[int, int]:
    """Return the bytes up and down of a machine's own counters that its account holds."""
    if account is None:
        return 0, 0
    intent = None if document is None else document.intent
    image = 0 if intent is None else intent.image_bytes
    return account.usage.bytes_up, max(0, account.usage.bytes_down - image)
