"""The end of all machines of a run whose flow is no more: asked to save, then destroyed."""

from __future__ import annotations

from tsgb.cloud.recover import reconcile
from tsgb.cloud.session import Desk


def abandon(desk: Desk, reason: str) -> int:
    """End the lease, let the machine save, destroy all that is left; how many there were.

    Raises:
        LeaseLost: Another flow has taken the run over, and looks after its machines.
        ProviderUnreachable: What is there could not be read, or something would not go.
    """
    lease = desk.check_lease()
    rows = desk.own()
    if rows and lease is not None and lease.owner == desk.owner:
        if not lease.ended:  # else the flow has ended it, which asks for the same
            desk.revoke(lease.attempt, reason)
        ends = desk.clock() + desk.patience.release_seconds
        while desk.papers.farewell(lease.attempt) is None and desk.clock() < ends:
            desk.sleep(min(1.0, desk.patience.look_seconds))
    desk.end(reason)
    reconcile(desk)  # the lease has ended, so it adopts nothing
    return len(rows)
