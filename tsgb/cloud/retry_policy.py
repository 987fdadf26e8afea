"""Whether a run may rent another machine after its earlier attempts, and which machines it avoids.

Preemptions are limited by money alone as long as checkpoints come of them. Lost and bad hosts,
refusals, failed workers and machines without progress have limits of their own. The module knows no
store and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tsgb.cloud.termination import TerminationReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one attempt ended.

    Example: `Ending(cause=TerminationReason.PREEMPTED, step=1200, machine_id=7, host_id=2, at=now)`
    """

    cause: TerminationReason
    """Reason for the end."""
    at: datetime
    """Time of the end."""
    step: int = 0
    """Step of the newest checkpoint then."""
    machine_id: int | None = None
    """The machine; None for an attempt without one."""
    host_id: int | None = None
    """The machine's owner; None for an attempt without a machine."""
    is_claim: bool = False
    """Whether nobody but the machine says so."""
    basis: str = ""
    """Names of the checkpoints that it went on from; empty if there were none."""
    is_idle: bool = False
    """Whether the machine told of no update beyond them."""

    @property
    def is_stuck(self) -> bool:
        """Return whether its worker failed before any update: perhaps it could load nothing."""
        return self.is_idle and self.cause in {TerminationReason.WORKER, TerminationReason.CONFIG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Numbers of endings after which a run stops.

    Example: `Limits(worker=5)`
    """

    infra: int = 10
    """Lost and bad hosts in a row without a newer checkpoint."""
    fruitless: int = 25
    """Machines in a row without a newer checkpoint, for any reason."""
    refused: int = 50
    """Refusals in a row. About half of all rentals are refused, and they cost nothing."""
    worker: int = 3
    """Failures of the worker in the whole run."""
    disk_full: int = 1
    """Full disks in the whole run that are answered by a larger disk."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a run rents another machine.

    Example: `Decision(False, "3 failures of the worker: read its log")`
    """

    go_on: bool
    """Whether it does."""
    reason: str = ""
    """Reason if it does not, for people."""
    disk_factor: float = 1.0
    """Size of the next machine's disk, relative to the first one's."""


_FINAL = {
    TerminationReason.DONE: "the run is done",
    TerminationReason.CONFIG: (
        "another machine would meet it again: mend the image, the key or the settings"
    ),
    TerminationReason.FUNDS: (
        "the account does not pay for another machine: add credit, then run it again"
    ),
    TerminationReason.LEASE_LOST: "a newer process works on this run",
}
_BELIEVED_OF_TWO = frozenset({TerminationReason.CONFIG, TerminationReason.LEASE_LOST})
"""Reasons that end a run if a second host says the same; of one host they may be a lie."""
_HOSTS = 2
"""Number of hosts that are believed together."""


def may_go_on(endings: Sequence[Ending], limits: Limits | None = None) -> Decision:
    """Decide whether a run rents another machine.

    What a machine says of itself ends the run once two hosts say it. If both failed before any
    update beyond the same checkpoint, the checkpoint is blamed first: see `is_blamed`.

    Args:
        endings: Endings of all its attempts, oldest first.
        limits: Numbers of endings after which it stops.
    """
    limits = limits or Limits()
    if not endings:
        return Decision(True)
    last = endings[-1]
    ran = [ending for ending in endings if ending.cause is not TerminationReason.REFUSED]
    recent = _since_progress(ran)
    excused = _excused(ran, recent)
    answered = [e for e in ran if not (e.is_stuck and e.basis in excused)]
    if last.cause in _FINAL and (
        last.cause not in _BELIEVED_OF_TWO
        or not last.is_claim
        or _num_hosts(e for e in recent if e in answered and e.cause is last.cause) >= _HOSTS
    ):
        return Decision(False, _FINAL[last.cause])
    if last.cause is TerminationReason.WORKER and _same_twice(answered):
        return Decision(False, f"the worker failed twice after step {last.step}: read its log")
    fruitless = [ending for ending in recent if ending.cause is not TerminationReason.STOPPED]
    infra = [e for e in fruitless if e.cause.is_infra or e.cause in _BELIEVED_OF_TWO]
    full = [e for e in ran if e.cause is TerminationReason.DISK_FULL]
    workers = [e for e in answered if e.cause is TerminationReason.WORKER]
    counts = {
        "failures of the worker": (_num_hosts(workers), limits.worker),
        "full disks": (_num_hosts(full), limits.disk_full + 1),
        "lost or bad hosts without a newer checkpoint": (len(infra), limits.infra),
        "machines in a row without a newer checkpoint": (len(fruitless), limits.fruitless),
        "refusals in a row": (_refused(endings), limits.refused),
    }
    for what, (num, limit) in counts.items():
        if num >= limit:
            return Decision(False, f"{num} {what}: see the attempts, then run it again")
    return Decision(True, disk_factor=1.5 ** _num_hosts(full))


def is_blamed(endings: Iterable[Ending], basis: str) -> bool:
    """Return whether a run goes on from older checkpoints than these.

    A host may have made them so that they load nowhere, or they may have rotted: machines of
    several hosts failed before they had made any update beyond them.

    Args:
        endings: Endings of attempts.
        basis: Names of checkpoints, as `Ending.basis`.
    """
    return bool(basis) and _num_hosts(_stuck(endings, basis)) >= _HOSTS


def _stuck(endings: Iterable[Ending], basis: str) -> Iterator[Ending]:
    return (ending for ending in endings if ending.is_stuck and ending.basis == basis)


def _excused(ran: Sequence[Ending], recent: Sequence[Ending]) -> frozenset[str]:
    """Return the checkpoints that answer for what failed on them, and not the run.

    Where machines fail alike on two of them without any progress, it is neither.
    """
    blamed = {ending.basis for ending in ran if is_blamed(ran, ending.basis)}
    now = {ending.basis for ending in recent if ending.is_stuck} & blamed
    return frozenset(blamed if len(now) < _HOSTS else blamed - now)


def _num_hosts(endings: Iterable[Ending]) -> int:
    """Return the number of hosts; an attempt without one counts as one."""
    found = list(endings)
    known = {ending.host_id for ending in found if ending.host_id is not None}
    return len(known) + sum(ending.host_id is None for ending in found)


def _same_twice(ran: Sequence[Ending]) -> bool:
    last = ran[-2:]
    return (
        len(last) == _HOSTS
        and all(ending.cause is TerminationReason.WORKER for ending in last)
        and last[0].step == last[1].step
        and _num_hosts(last) == _HOSTS
    )


def _since_progress(ran: Sequence[Ending]) -> Sequence[Ending]:
    """Return the endings since the last one that brought a newer checkpoint, that one included."""
    for index in range(len(ran) - 1, 0, -1):
        if ran[index].step > ran[index - 1].step:
            return ran[index:]
    return ran


def _refused(endings: Sequence[Ending]) -> int:
    num = 0
    for ending in reversed(endings):
        if ending.cause is not TerminationReason.REFUSED:
            break
        num += 1
    return num


BAD_FOR = timedelta(hours=24)
"""Time for which a failed machine or host is avoided; a list that only grows would in the end
exclude the whole market."""
TAKEN_FOR = timedelta(minutes=30)
"""Time for which a machine is avoided after its rental was refused."""


_SPEAKS_AGAINST_HOST = frozenset(
    {
        TerminationReason.BAD_HOST,
        TerminationReason.WORKER,
        TerminationReason.DISK_FULL,
        *_BELIEVED_OF_TWO,
    }
)
"""Reasons for which a host is avoided: its own fault, or what another host has to confirm."""


@dataclass(frozen=True, slots=True)
class Avoided:
    """Machines and hosts not to rent now.

    Example: `Needs(..., machines_out=avoided.machine_ids, hosts_out=avoided.host_ids)`
    """

    machine_ids: frozenset[int]
    """Machines."""
    host_ids: frozenset[int]
    """Owners of machines."""


NOTHING_AVOIDED = Avoided(frozenset(), frozenset())
"""The machines and hosts that a run which has not begun avoids."""


def avoid(endings: Iterable[Ending], now: datetime) -> Avoided:
    """Return machines and hosts that failed lately, and machines that were refused just now.

    A preempted machine is not avoided: it was outbid, and may be free again at another price.
    """
    machines: set[int] = set()
    hosts: set[int] = set()
    for ending in endings:
        age = now - ending.at  # negative on a clock that was set back: still avoided
        if ending.machine_id is not None:
            failed = ending.cause.is_infra or ending.cause is TerminationReason.DISK_FULL
            lasts = BAD_FOR if failed else TAKEN_FOR
            if age < lasts and (failed or ending.cause is TerminationReason.REFUSED):
                machines.add(ending.machine_id)
        if ending.host_id is not None and ending.cause in _SPEAKS_AGAINST_HOST and age < BAD_FOR:
            hosts.add(ending.host_id)
    return Avoided(frozenset(machines), frozenset(hosts))
