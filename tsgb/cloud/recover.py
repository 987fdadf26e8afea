"""What is there before anything is rented: adopt the machine that still works, end all others.

Every start of a flow and every retry begins here, so that a retry is always safe. What is not known
is never taken for nothing: without a whole list nothing is rented.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tsgb.cloud.documents import Outcome, Page
from tsgb.cloud.launch import write_down
from tsgb.cloud.lease import Lease
from tsgb.cloud.orphans import Label
from tsgb.cloud.provider import Instance
from tsgb.cloud.running import Held
from tsgb.cloud.session import Desk
from tsgb.cloud.terminate import destroy
from tsgb.cloud.termination import Cause
from tsgb.cloud.traces import Traces, counted, traces
from tsgb.cloud.words import moment

_TO_GO = timedelta(minutes=1)
"""From a machine's last word until its own request has ended it."""


def reconcile(desk: Desk) -> Held | None:
    """The machine to go on with, or None; afterwards no other machine of this run exists.

    Raises:
        LeaseLost: Another flow works on this run.
        ProviderUnreachable: What is there could not be read, or something would not go.
    """
    lease = desk.check_lease()
    pages = {page.attempt: page for page in desk.papers.pages()}
    _let_it_appear(desk, pages)
    rows = desk.own()
    kept = _adoptable(desk, lease, pages, rows)
    for number, row in sorted(rows.items()):
        if kept is None or number != kept.id:
            label = Label.parse(row.label)
            desk.note(f"destroying instance {number} ({row.label}), which no attempt needs")
            gone_at = destroy(desk, number)
            if label is not None:
                _close(desk, pages.get(label.attempt), label.attempt, gone_at)
    for attempt, account in sorted(desk.ledger.accounts.items()):
        if account.is_open and (kept is None or kept.label != desk.label(attempt)):
            _close(desk, pages.get(attempt), attempt, _gone_at(desk, lease, pages, attempt))
    return None if kept is None or lease is None else _adopt(desk, lease, pages, kept)


def _let_it_appear(desk: Desk, pages: dict[int, Page]) -> None:
    """A rental that was asked for moments ago may not be in the list yet."""
    young = {
        page.intent.label: page.intent.intended_at
        for page in pages.values()
        if page.intent is not None and page.outcome is None
    }
    lag = timedelta(seconds=desk.patience.lag_seconds)
    waits = max((lag - (desk.now() - at) for at in young.values()), default=timedelta(0))
    ends = desk.clock() + min(waits, lag).total_seconds()
    told = False
    while desk.clock() < ends and not any(row.label in young for row in desk.own().values()):
        if not told:
            told = True
            desk.note(f"a rental may be on its way: looking for it for {waits.seconds} s")
        desk.sleep(min(desk.patience.look_seconds, max(0.1, ends - desk.clock())))


def _adoptable(
    desk: Desk, lease: Lease | None, pages: dict[int, Page], rows: dict[int, Instance]
) -> Instance | None:
    """The machine of the newest attempt, if it may still work."""
    if lease is None or lease.ended or lease.stop or lease.owner != desk.owner:
        return None
    if lease.has_run_out(desk.now(), timedelta(0)):
        return None
    page, account = pages.get(lease.attempt), desk.ledger.accounts.get(lease.attempt)
    if page is None or page.intent is None or page.outcome is not None:
        return None
    if account is None or not account.is_open:
        return None
    found = [row for row in rows.values() if row.label == page.intent.label]
    if lease.instance_id is not None:
        found = [row for row in found if row.id == lease.instance_id]
    return min(found, key=lambda row: row.id, default=None)


def _adopt(desk: Desk, lease: Lease, pages: dict[int, Page], row: Instance) -> Held:
    intent = pages[lease.attempt].intent
    assert intent is not None
    desk.note(f"going on with instance {row.id}, which works on attempt {lease.attempt}")
    born = row.created_at or intent.intended_at
    age = max(0.0, (desk.now() - born).total_seconds())
    page, account = pages[lease.attempt], desk.ledger.accounts.get(lease.attempt)
    held = Held(
        attempt=lease.attempt,
        instance_id=row.id,
        intent=intent,
        since=desk.clock() - age,
        instance=row,
        seen=True,
    )
    held.bytes_up, held.bytes_down = counted(account, page)
    if page.first_beat_at is not None:
        alive = max(0.0, (desk.now() - page.first_beat_at).total_seconds())
        held.first_beat_at = desk.clock() - min(age, alive)
    if page.instance_id is None:
        write_down(desk, held)  # its flow died before it could
    return held


def _gone_at(
    desk: Desk, lease: Lease | None, pages: dict[int, Page], attempt: int
) -> datetime | None:
    """When a machine that is no longer there went, at the latest; None if there never was one."""
    account, page = desk.ledger.accounts[attempt], pages.get(attempt)
    said = moment(desk.papers.farewell(attempt), "ended_at")
    lease = lease if lease is not None and lease.attempt == attempt else None
    existed = (
        said is not None
        or desk.papers.beat(attempt) is not None
        or (lease is not None and lease.instance_id is not None)
        or (page is not None and page.instance_id is not None)
    )
    if not existed:
        return None
    bounds = [desk.now(), account.covers_until]
    if lease is not None:
        # Then it ended itself; its own clock may be behind the one that wrote the lease.
        bounds.append(lease.expires_at + desk.patience.skew)
    if said is not None and said > account.seen_at:
        bounds.append(said + _TO_GO)
    return max(min(bounds), account.seen_at)


def _close(desk: Desk, page: Page | None, attempt: int, gone_at: datetime | None) -> None:
    """Close the account of a machine that is gone, as its flow could not."""
    account = desk.ledger.accounts.get(attempt)
    left = traces(desk.papers, page or Page(attempt, None, None, None), account)
    if account is not None and account.is_open:
        if gone_at is None:
            desk.ledger.reconcile(attempt, 0)
        else:
            desk.ledger.commit(attempt, gone_at, more=left.more)
    if page is None or page.outcome is not None or page.intent is None:
        return
    outcome = Outcome(
        cause=Cause.REFUSED if gone_at is None else _cause_of(left),
        message="its flow had died",
        at=gone_at or desk.now(),
        step=left.step,
        boot_seconds=left.boot_seconds,
        hold_seconds=left.hold_seconds,
    )
    # No ending of this flow's: the one that died answers for it.
    desk.papers.note(attempt, outcome=outcome.model_dump(mode="json"))


def _cause_of(left: Traces) -> Cause:
    """A machine whose flow died was given up by us, unless it says that it was done."""
    said = left.farewell or {}
    return Cause.DONE if said.get("outcome") == "done" else Cause.STOPPED
