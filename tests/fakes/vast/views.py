"""The truth, as JSON: what is billed, what exists, what was planned; nothing here is late."""

from __future__ import annotations

from typing import Any

from tests.fakes.vast.clock import SECOND
from tests.fakes.vast.contracts import Contract
from tests.fakes.vast.ledger import HOURS_PER_MONTH, shown
from tests.fakes.vast.world import World


def ledger(world: World, label_prefix: str | None) -> dict[str, Any]:
    """Every dollar as a decimal string; the rates beside the amounts allow a recount."""
    now = world.now
    mine = {
        number: contract
        for number, contract in world.contracts.items()
        if label_prefix is None or (contract.label or "").startswith(label_prefix)
    }
    lines = [line for line in world.ledger.lines() if line.instance in mine]
    spans = [(contract.created_turn, contract.destroyed_turn) for contract in mine.values()]
    return {
        "now": now / SECOND,
        "deposited": shown(world.ledger.deposited),
        "credit": shown(world.ledger.credit(now)),
        "spent": shown(sum(line.dollars(now) for line in lines)),
        "per_hour": shown(world.ledger.per_hour()),
        "hours_per_month": HOURS_PER_MONTH,
        "max_live": _most_at_once(spans),
        "instances": {str(number): _bill(world, contract) for number, contract in mine.items()},
        "lines": [line.row(now) for line in lines],
    }


def _bill(world: World, contract: Contract) -> dict[str, Any]:
    now = world.now
    lines = list(world.ledger.lines(contract.id))
    dollars = {
        charge: shown(sum(line.dollars(now) for line in lines if line.charge == charge))
        for charge in ("gpu", "storage", "download", "upload")
    }
    ended = contract.destroyed_at
    return {
        "label": contract.label,
        "live": contract.is_live,
        "created_at": contract.created_at / SECOND,
        "destroyed_at": None if ended is None else ended / SECOND,
        "gpu_seconds": sum(line.microseconds(now) for line in lines if line.charge == "gpu")
        / SECOND,
        "dollars": shown(sum(line.dollars(now) for line in lines)),
        **{f"{charge}_dollars": amount for charge, amount in dollars.items()},
    }


def state(world: World) -> dict[str, Any]:
    return {
        "now": world.now / SECOND,
        "options": world.options.model_dump(mode="json"),
        "instances": [instance(contract) for contract in world.contracts.values()],
        "machines": [
            {
                "machine_id": machine.machine_id,
                "ask_id": machine.ask_id,
                "tenant": machine.tenant,
                "free": machine.is_free(world.now),
                "min_bid": str(machine.min_bid),
                "dph_base": str(machine.dph_base),
                "storage_cost": str(machine.storage_cost),
            }
            for machine in world.machines
        ],
    }


def instance(contract: Contract) -> dict[str, Any]:
    """The truth, without any lag."""
    return {
        "id": contract.id,
        "machine_id": contract.machine.machine_id,
        "label": contract.label,
        "phase": contract.phase,
        "offline": contract.offline,
        "wants_running": contract.wants_running,
        "num_starts": contract.num_starts,
        "has_door": contract.has_door,
        "ready_at": None if contract.ready_at is None else contract.ready_at / SECOND,
        "downloaded_bytes": int(contract.downloaded_gb * 10**9),
        "driver": contract.machine.driver(),
        "strips": contract.machine.strips,
        "pid": contract.container.pid,
        "bid": None if contract.bid is None else str(contract.bid),
        "status": contract.status._asdict(),
    }


def _most_at_once(spans: list[tuple[int, int | None]]) -> int:
    """How many contracts existed at the same time, at most."""
    changes = [(begin, 1) for begin, _ in spans] + [
        (end, -1) for _, end in spans if end is not None
    ]
    most = live = 0
    for _, change in sorted(changes):
        live += change
        most = max(most, live)
    return most
