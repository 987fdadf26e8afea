"""What happens to instances, and when: the transitions, their events and what each costs.

Deterministic for a seed and a sequence of calls. It knows no HTTP; its callers hold its lock.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

from tests.fakes.vast.agenda import Agenda
from tests.fakes.vast.boots import BROKEN, draw_fate, environment
from tests.fakes.vast.clock import DAY, HOUR, Clock, Moment
from tests.fakes.vast.contracts import Contract, Phase, Status
from tests.fakes.vast.ledger import Charge, Ledger, storage_per_hour
from tests.fakes.vast.offers import FIRST_ASK, Machine, draw_machines
from tests.fakes.vast.options import Fate, Options
from tests.fakes.vast.processes import Container, command_of

FIRST_CONTRACT = 7_835_610
DELETED_AFTER = 2 * DAY
"""An instance whose contract is over."""
QUEUED_MESSAGE = "Required resources are currently unavailable, state change queued"


class World(Agenda):
    """Machines, contracts, the ledger and the queue of what is yet to happen."""

    def __init__(self, options: Options, clock: Clock, directory: Path) -> None:
        super().__init__(clock)
        self.options = options
        self.ledger = Ledger(options.credit)
        self.machines = draw_machines(options.seed, options.num_machines, self.now)
        self.past_asks: dict[int, Machine] = {}
        self.contracts: dict[int, Contract] = {}
        self._directory = directory
        self._next_ask = FIRST_ASK + options.num_machines
        self._next_contract = FIRST_CONTRACT
        self._drain = self._turns = 0

    # Time

    def catch_up(self) -> None:
        """Let happen what is due; then look which containers ended."""
        super().catch_up()
        for contract in self.contracts.values():
            if contract.phase is Phase.RUNNING and not contract.offline:
                self._look_at(contract)

    def later(self, seconds: float, contract: Contract, event: Callable[[Contract], None]) -> None:
        """Plan an event of a contract; void if it has another transition before."""
        epoch = contract.epoch

        def fire() -> None:
            if contract.epoch == epoch:
                event(contract)

        self.at(self.after(seconds), fire)

    # What the user does

    def machine_of_ask(self, ask_id: int) -> Machine | None:
        return next((machine for machine in self.machines if machine.ask_id == ask_id), None)

    def create(
        self, machine: Machine, body: dict[str, Any], env: list[tuple[str, str]]
    ) -> Contract:
        """Rent; whether it may start is `start`'s."""
        number, self._next_contract = self._next_contract, self._next_contract + 1
        key = secrets.token_hex(16)
        price = body.get("price")
        contract = Contract(
            id=number,
            machine=machine,
            label=body.get("label"),
            image=str(body.get("image")),
            disk_gb=Decimal(body.get("disk") or 10),
            bid=None if price is None else Decimal(price),
            env=env,
            body=body,
            key=key,
            container=Container(self._directory / str(number)),
            created_at=self.now,
            created_turn=self._turn(),
        )
        self.contracts[number] = contract
        stored = storage_per_hour(contract.disk_gb, machine.storage_cost)
        self.ledger.open(number, "storage", stored, self.now)
        self._become(contract, Phase.STOPPED, Status("created", "stopped", "stopped", "stopped"))
        if self.options.ask_single_use:
            self.renew_ask(machine)
        self.at(machine.end_date, lambda: self.expire(contract))
        return contract

    def start(self, contract: Contract) -> bool:
        """Ask for it to run; False if it must wait for its GPU, which then may start it later."""
        contract.wants_running = True
        if contract.phase.holds_gpu():
            return True
        if self.can_run(contract):
            self._boot(contract)
            return True
        status = contract.status._replace(
            intended="running", next="running", message=QUEUED_MESSAGE
        )
        self._become(contract, Phase.QUEUED, status)
        return False

    def stop(self, contract: Contract, message: str | None = None) -> None:
        """Keep the disk, give up the GPU; also what is queued."""
        contract.wants_running = False
        actual = "stopped" if contract.num_starts else contract.status.actual
        self._become(
            contract, Phase.STOPPED, Status(actual, "stopped", "stopped", "stopped", message)
        )

    def destroy(self, contract: Contract) -> None:
        contract.wants_running = False
        self._become(contract, Phase.DESTROYED, contract.status)
        contract.destroyed_at, contract.destroyed_turn = self.now, self._turn()
        self.ledger.close(contract.id, "storage", self.now)
        contract.container.remove()

    def change_bid(self, contract: Contract, price: Decimal) -> None:
        """Change what is paid from now on; a bid below the floor is outbid at once."""
        contract.bid = price
        if contract.phase.holds_gpu():
            if self.can_run(contract):
                self._meter(contract)
            else:
                self.preempt(contract)
        else:
            self.wake(contract.machine)

    def restart(self, contract: Contract) -> None:
        """Reboot: a new container start that keeps its claim on the GPU, if its host hears it."""
        if contract.phase.holds_gpu() and not contract.offline:
            self._boot(contract)

    # What the world does

    def can_run(self, contract: Contract) -> bool:
        machine = contract.machine
        mine = machine.tenant == contract.id or machine.tenant is None
        enough = contract.bid is None or contract.bid >= machine.min_bid
        return (
            mine
            and enough
            and machine.taken_until <= self.now < machine.end_date
            and self.ledger.credit(self.now) > 0
        )

    def preempt(self, contract: Contract, outage_seconds: float = 0.0) -> None:
        """Somebody outbids it: SIGKILL, the disk stays and bills, and it waits for its machine."""
        intended = self.options.outbid_intended
        self._become(
            contract, Phase.OUTBID, Status("exited", intended, "stopped", "stopped", "outbid")
        )
        self.take(contract.machine, outage_seconds)

    def take(self, machine: Machine, seconds: float) -> None:
        """Somebody outside has it for a while; what waits for it is looked at afterwards."""
        machine.taken_until = self.after(seconds)
        self.at(machine.taken_until, lambda: self.wake(machine))

    def wake(self, machine: Machine) -> None:
        """Start whoever waits for it, the oldest first."""
        for contract in self.contracts.values():
            waits = contract.phase is Phase.QUEUED or (
                contract.phase is Phase.OUTBID and self.options.auto_resume
            )
            if contract.machine is machine and waits and self.can_run(contract):
                self._boot(contract)

    def resume(self, contract: Contract) -> None:
        """It starts again although nobody asked: a zombie."""
        if not contract.phase.holds_gpu() and contract.is_live:
            self._boot(contract)

    def set_floor(self, machine: Machine, min_bid: Decimal) -> None:
        """What others bid changes: our bid may no longer do, or do again."""
        machine.min_bid = min_bid
        tenant = self.contracts.get(machine.tenant or 0)
        if tenant is not None and not self.can_run(tenant):
            self.preempt(tenant)
        self.wake(machine)

    def deposit(self, dollars: Decimal) -> None:
        """Pay in; or take away, if negative."""
        self.ledger.deposited += Fraction(dollars)
        self.check_credit()

    def renew_ask(self, machine: Machine) -> None:
        """Its next offer has another number."""
        self.past_asks[machine.ask_id] = machine
        machine.ask_id, self._next_ask = self._next_ask, self._next_ask + 1

    def go_offline(self, contract: Contract) -> None:
        """The host loses contact: nothing is billed, nothing runs until it is back."""
        contract.offline = True
        contract.container.freeze()
        for charge in ("gpu", "storage"):
            self.ledger.close(contract.id, charge, self.now)
        self._note(contract, contract.status._replace(actual="offline"))

    def come_back(self, contract: Contract) -> None:
        if contract.offline and contract.is_live:
            contract.offline = False
            stored = storage_per_hour(contract.disk_gb, contract.machine.storage_cost)
            self.ledger.open(contract.id, "storage", stored, self.now)
            self._meter(contract)
            actual = {Phase.RUNNING: "running", Phase.BOOTING: "loading"}.get(
                contract.phase, "exited"
            )
            self._note(contract, contract.status._replace(actual=actual))
            contract.container.thaw()

    def bill_traffic(self, contract: Contract, charge: Charge, gigabytes: Decimal) -> None:
        """Per byte, in any state."""
        machine = contract.machine
        rate = machine.inet_down_cost if charge == "download" else machine.inet_up_cost
        self.ledger.traffic(contract.id, charge, gigabytes, rate, self.now)
        self.check_credit()

    def close(self) -> None:
        """End every container."""
        for contract in self.contracts.values():
            contract.container.remove()

    # Transitions

    def _become(self, contract: Contract, phase: Phase, status: Status) -> None:
        contract.epoch += 1
        contract.phase = phase
        machine = contract.machine
        if phase.holds_gpu():
            machine.tenant = contract.id
        elif machine.tenant == contract.id:
            machine.tenant = None
            self.at(self.now, lambda: self.wake(machine))
        if phase not in {Phase.RUNNING, Phase.EXITED}:
            contract.container.kill()
            contract.running_since = None
        self._note(contract, status._replace(actual="offline") if contract.offline else status)
        self._meter(contract)

    def _note(self, contract: Contract, status: Status) -> None:
        contract.history.append((self.now, status))

    def _meter(self, contract: Contract) -> None:
        """Bill the GPU from now on if its state says so."""
        bills = contract.phase is Phase.RUNNING or (
            contract.phase is Phase.EXITED and self.options.exited_bills_gpu
        )
        if bills and not contract.offline:
            self.ledger.open(contract.id, "gpu", Fraction(contract.gpu_per_hour), self.now)
        else:
            self.ledger.close(contract.id, "gpu", self.now)
        self._watch_credit()

    def _boot(self, contract: Contract) -> None:
        contract.num_starts += 1
        rng = self._rng(contract, "boot")
        seconds = rng.uniform(*self.options.boot_seconds)
        fresh = contract.num_starts == 1
        if fresh:
            seconds += self._download_seconds(contract, self.options.image_gb)
            if contract.has_door and contract.image not in self.options.ssh_images:
                seconds += self.options.ssh_seconds
        status = Status(None if fresh else "loading", "running", "running", "running")
        self._become(contract, Phase.BOOTING, status)
        self.later(seconds / 3, contract, self._load)
        fate = draw_fate(contract, self.options, rng)
        if fate is not Fate.NEVER_BOOTS:
            self.later(seconds, contract, lambda contract: self._end_boot(contract, fate))
        if fresh and self.options.image_gb:
            self.bill_traffic(contract, "download", self.options.image_gb)

    def _load(self, contract: Contract) -> None:
        if not contract.offline:
            self._note(contract, contract.status._replace(actual="loading", message="pulling"))

    def _end_boot(self, contract: Contract, fate: Fate) -> None:
        if fate is Fate.GOES_OFFLINE:
            self.go_offline(contract)
        elif fate in BROKEN:
            self._become(contract, Phase.BROKEN, BROKEN[fate])
        elif contract.offline:
            self.later(1.0, contract, lambda contract: self._end_boot(contract, fate))
        else:
            self._run(contract)

    def _run(self, contract: Contract) -> None:
        contract.running_since = self.now
        self._become(contract, Phase.RUNNING, Status("running", "running", "running", "running"))
        gigabytes = Decimal(0)
        if contract.num_starts == 1:
            gigabytes = self.options.wheels_gb + self.options.weights_gb
        wait = self._download_seconds(contract, gigabytes)
        contract.ready_at = self.after(wait)
        if gigabytes:
            contract.downloaded_gb += gigabytes
            self.bill_traffic(contract, "download", gigabytes)
        if wait:
            self.later(wait, contract, self._begin)
        else:
            self._begin(contract)
        hazard = self.options.hazard_per_hour
        if contract.bid is not None and hazard:
            rng = self._rng(contract, "hazard")
            hours, outage = rng.expovariate(hazard), rng.expovariate(1.0)
            outage_seconds = outage * self.options.outage_seconds
            self.later(
                hours * 3600, contract, lambda contract: self.preempt(contract, outage_seconds)
            )

    def _begin(self, contract: Contract) -> None:
        command = command_of(contract.body)
        if command is not None and contract.container.pid is None:
            contract.container.start(command, environment(contract, self.options))

    def _download_seconds(self, contract: Contract, gigabytes: Decimal) -> float:
        speed = contract.machine.inet_down * self.options.download_speed
        return float(gigabytes) * 8000 / speed if speed else 0.0

    def _look_at(self, contract: Contract) -> None:
        """A command that is the container's first process ends the container with it."""
        is_first = not contract.has_door and command_of(contract.body) is not None
        began = contract.ready_at is not None and contract.ready_at <= self.now
        if is_first and began and contract.container.has_ended():
            contract.container.kill()
            self._become(contract, Phase.EXITED, contract.status._replace(actual="exited"))

    def expire(self, contract: Contract) -> None:
        """Its contract is over."""
        if contract.is_live:
            self.stop(contract, "contract expired")
            self.at(
                Moment(self.now + DELETED_AFTER),
                lambda: self.destroy(contract) if contract.is_live else None,
            )

    def _watch_credit(self) -> None:
        """Plan the moment at which the credit ends, anew whenever a rate changes."""
        self._drain += 1
        drain = self._drain
        left, per_hour = self.ledger.credit(self.now), self.ledger.per_hour()
        if per_hour and left > 0:
            moment = Moment(self.now + math.ceil(left / per_hour * HOUR))
            self.at(moment, lambda: self.check_credit() if drain == self._drain else None)

    def check_credit(self) -> None:
        """Without credit everything stops; its disks go on billing."""
        if self.options.autobill is not None and self.ledger.credit(self.now) <= 0:
            self.ledger.deposited += Fraction(self.options.autobill)
        if self.ledger.credit(self.now) > 0:
            self._watch_credit()
            return
        for contract in self.contracts.values():
            if contract.phase.holds_gpu() or contract.phase is Phase.QUEUED:
                self.stop(contract, "insufficient credit")

    def _turn(self) -> int:
        self._turns += 1
        return self._turns

    # Draws

    def _rng(self, contract: Contract, what: str) -> Random:
        """Its own for each purpose and start, so that no other request changes what is drawn."""
        return Random(f"{self.options.seed}/{contract.id}/{contract.num_starts}/{what}")
