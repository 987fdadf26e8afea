"""Terminates machines that a person names, after they had time to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tsgb.cloud.inventory import DeploymentRuns, Inventory, InventoryItem
from tsgb.cloud.lease import LeaseState, revoke
from tsgb.cloud.orphans import sweep
from tsgb.cloud.provider import Provider
from tsgb.cloud.reaper import ReapedInstance, closed
from tsgb.cloud.terminate import destroy_all
from tsgb.errors import UsageError

REASON = "destroyed by hand"
_LOOK_SECONDS = 2.0
_AT_WORK = frozenset({LeaseState.HOLDS, LeaseState.REVOKED})


def pick(
    inventory: Inventory, ids: Iterable[int], *, force: bool, deployment: str, skew: timedelta
) -> list[InventoryItem]:
    """Return the instances with these ids, if all of them may be destroyed.

    Args:
        inventory: The account's instances.
        ids: Ids that a person gave.
        force: Whether instances that a lease covers, or may cover, are taken too.
        deployment: Name of this deployment.
        skew: Difference between two clocks that is tolerated.

    Raises:
        UsageError: One does not exist, is not of this deployment, or is in use.
    """
    known = {item.instance.id: item for item in inventory.items}
    picked: list[InventoryItem] = []
    for number in dict.fromkeys(ids):
        item = known.get(number)
        if item is None:
            raise UsageError(f"there is no instance {number}: `tsgb machines ls` shows all")
        label = item.instance.label
        if item.label is None:
            name = f"labelled {label!r}" if label else "without a label"
            raise UsageError(
                f"instance {number} is {name}, which is not ours (tsgb/{deployment}/...): it is "
                "never touched; end it with the tool that rented it, or in the service's console"
            )
        if not force and (why := _in_use(item, inventory, deployment, skew)):
            raise UsageError(
                f"instance {number} ({label}) is in use, {why}: end its flow, which ends it too, "
                "or give --force"
            )
        picked.append(item)
    return picked


def _in_use(
    item: InventoryItem, inventory: Inventory, deployment: str, skew: timedelta
) -> str | None:
    """Return why a lease covers it, or may cover it, at any age; None if none does."""
    old = replace(item.instance, created_at=None)
    found = sweep([old], inventory.leases.known, deployment, inventory.at, skew=skew)
    return item.why if found.covered or found.unknown else None


def terminate_by_hand(
    provider: Provider,
    runs: DeploymentRuns,
    items: Sequence[InventoryItem],
    *,
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    grace: timedelta,
    skew: timedelta,
    note: Callable[[str], None],
) -> list[ReapedInstance]:
    """Ask machines at work to save, wait, destroy all, verify their end and close accounts.

    Args:
        provider: The account.
        runs: The runs of the deployment.
        items: The instances that `pick` returned.
        now: Time of day.
        sleep: Waits for so many seconds.
        grace: Time for a machine to save and to write its exit record.
        skew: Difference between two clocks that is tolerated.
        note: Shows one line to a person.
    """
    asked = [item for item in items if _ask(runs, item, now(), skew, note)]
    ends = now() + grace
    while asked and now() < ends:
        sleep(_LOOK_SECONDS)
        asked = [item for item in asked if not _has_ended(provider, runs, item)]
    left = destroy_all(provider, [item.instance.id for item in items], sleep)
    return [
        ReapedInstance(item, problem=left[item.instance.id])
        if item.instance.id in left
        else closed(runs, item, now(), skew=skew, by="hand")
        for item in items
    ]


def _ask(
    runs: DeploymentRuns,
    item: InventoryItem,
    now: datetime,
    skew: timedelta,
    note: Callable[[str], None],
) -> bool:
    """Revoke its lease; return whether a worker is at work that can save."""
    label = item.label
    assert label is not None
    try:
        documents = runs.documents(label.run)
        lease = documents.lease()
        if lease is None or lease.standing(label.attempt, now, skew) not in _AT_WORK:
            return False
        if lease.stop is None:
            documents.put_lease(revoke(lease, REASON))
        if documents.heartbeat(label.attempt) is None:
            return False
    except Exception as error:  # noqa: BLE001 - damaged documents must not keep a machine alive
        note(f"instance {item.instance.id} could not be asked to save: {error}")
        return False
    note(f"asking instance {item.instance.id} to save first")
    return True


def _has_ended(provider: Provider, runs: DeploymentRuns, item: InventoryItem) -> bool:
    label = item.label
    assert label is not None
    try:
        return (
            runs.documents(label.run).exit_record(label.attempt) is not None
            or provider.show(item.instance.id) is None
        )
    except Exception:  # noqa: BLE001 - damaged documents must not keep a machine alive
        return False
