"""Deletes old checkpoints of a run for a person, on behalf of the worker that is no more.

`CheckpointStore.prune` says which; this file asks whether somebody is still at work, and keeps a
good one whatever K says.

Only the run's writer may delete, so this claims the run, as a later start of its newest attempt:
a worker that is alive would find the claim before its next save, and stop with `LeaseLost`; the
next worker outranks it as it would any other. The claim stays. Without it a worker that slept
through all this could commit a checkpoint whose files were taken for leftovers and deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tsgb.checkpoint.inspect import CheckpointInfo, Inspector
from tsgb.checkpoint.layout import CheckpointName, FencingToken, PartName
from tsgb.checkpoint.manifest import utc_now
from tsgb.checkpoint.run import RunLock, RunStore
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import UsageError

ALIVE_SECONDS = 120
"""Age in seconds from which a heartbeat counts as dead. A worker beats every few seconds, but not
while it waits for a save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """Checkpoints that were deleted, or would be."""

    run: RunStore
    """Run whose checkpoints they are."""
    deleted: Sequence[CheckpointInfo]
    """Deleted checkpoints, oldest first."""
    kept: Sequence[CheckpointInfo]
    """Other checkpoints, newest first; damaged ones are among them, as evidence."""
    part_bytes: int
    """Bytes of parts that no other checkpoint refers to, which were deleted too."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are freed, as far as the store tells sizes."""
        return sum(listed.size or 0 for listed in self.deleted) + self.part_bytes


def prune(
    run: RunStore,
    keep: int,
    *,
    dry_run: bool = False,
    force: bool = False,
    on_skip: Callable[[str], None] = lambda _line: None,
    clock: Callable[[], datetime] = utc_now,
) -> PruneResult:
    """Delete all but the newest `keep` checkpoints of a run, and what dead writers left unfinished.

    The newest one is read in full first, and so is an older one for each that does not verify: the
    one that does is kept, be it the oldest.

    Args:
        run: Run to delete from.
        keep: Number of checkpoints to keep, at least 1.
        dry_run: Whether to only say what would be deleted; nothing is claimed or written.
        force: Whether to delete even if a worker seems to be alive; it will stop.
        on_skip: Called with one line for each checkpoint that does not verify.
        clock: Returns the time, which a heartbeat's age is measured by.

    Raises:
        UsageError: A worker is alive.
        CheckpointError: No checkpoint verifies; nothing was deleted.
        LeaseLost: A worker started just now.
    """
    if not (force or dry_run):
        check_nobody_works(run, clock())
    with nullcontext() if force or dry_run else RunLock(run.run_url):
        before = Inspector(run).all()
        store = (_Rehearsal if dry_run else _Successor)(run, clock=clock)
        store.newest_valid(on_skip)
        store.take_over()
        names = set(store.prune(keep))
    return PruneResult(
        run=run,
        deleted=[listed for listed in reversed(before) if listed.checkpoint.name in names],
        kept=[listed for listed in before if listed.checkpoint.name not in names],
        part_bytes=store.part_bytes_freed,
    )


class _Successor(CheckpointStore):
    """Writer that takes part as a later start of the newest attempt."""

    def take_over(self) -> None:
        """Claim the run, without using up an attempt's number: a coordinator counts those."""
        self.claim(max((token.attempt for token in self._seen()), default=None))


class _Rehearsal(_Successor):
    """Writer that follows the same rules, but claims nothing and deletes nothing."""

    def take_over(self) -> None:
        newest = max((token.attempt for token in self._seen()), default=0)
        self._token = FencingToken(newest, "ffffffff")

    def check_fence(self) -> None:
        pass

    def _delete(self, checkpoint: CheckpointName) -> None:
        pass

    def _delete_part(self, part: PartName) -> None:
        pass


def check_nobody_works(run: RunStore, now: datetime) -> None:
    """Return if no worker is alive on a run.

    Args:
        run: The run.
        now: Time of day.

    Raises:
        UsageError: One has written a heartbeat lately, and no exit record since.
    """
    beat, name = _newest_heartbeat(run)
    since = _time(beat, "updated_at")
    if since is None or (now - since).total_seconds() >= ALIVE_SECONDS:
        return
    left = _time(_read(run, f"exits/{name}"), "ended_at")
    if left is not None and left >= since:
        return  # an earlier record is of an earlier start of the same attempt
    raise UsageError(
        f"a worker is alive on run {run.run_url}: heartbeats/{name} is "
        f"{max((now - since).total_seconds(), 0):.0f} s old, and only what is older than "
        f"{ALIVE_SECONDS} s or has left counts as dead: stop it or wait; with --force it loses the "
        "run and stops with exit code 5"
    )


def _newest_heartbeat(run: RunStore) -> tuple[Mapping[str, Any], str]:
    attempts = run.attempt_documents("heartbeats")
    if not attempts:
        return {}, ""
    newest = f"{attempts[-1]:04d}.json"
    return _read(run, f"heartbeats/{newest}"), newest


def _read(run: RunStore, name: str) -> Mapping[str, Any]:
    try:
        return run.read_json(name)
    except FileNotFoundError:
        return {}


def _time(document: Mapping[str, Any], field: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(document[field]))
    except (KeyError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
