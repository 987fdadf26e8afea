"""What a test sees and does behind the service's back, below `/_sim`.

GET  /_sim/ledger?label_prefix=tsgb/    GET /_sim/state     GET /_sim/requests
POST /_sim/clock     {"advance_seconds": 60, "speed": 1}
POST /_sim/options   {"hazard_per_hour": 0.4}
POST /_sim/faults    one fault or a list; GET shows the plan, DELETE ends it
POST /_sim/machines/88001   {"min_bid": 0.3, "taken_seconds": 600, "fate": "oci_error"}
POST /_sim/machines/88001   {"cuda": 12.4, "true_card": "RTX 3090", "strips": ["X"], "inet_down": 9}
POST /_sim/instances/7835610   {"do": "preempt" | "resume" | "offline" | "online" | "expire"}
POST /_sim/instances/7835610   {"do": "traffic", "charge": "upload", "gigabytes": 1.5}
POST /_sim/credit    {"deposit": 5}, which may be negative
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

from tests.fakes.vast import views
from tests.fakes.vast.clock import SECOND
from tests.fakes.vast.contracts import Contract
from tests.fakes.vast.faults import Fault, FaultPlan
from tests.fakes.vast.ledger import shown
from tests.fakes.vast.messages import Answer, Request, ok, refused
from tests.fakes.vast.offers import CARDS
from tests.fakes.vast.options import Fate, Options
from tests.fakes.vast.world import World

KEPT_REQUESTS = 20_000
FAULTS = TypeAdapter[list[Fault]](list[Fault])


class Control:
    """Its caller holds the world's lock."""

    def __init__(self, world: World, plan: FaultPlan) -> None:
        self.world = world
        self.plan = plan
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)

    def respond(self, request: Request) -> Answer:
        """Do it, or say what is wrong with it."""
        _, name, number, *_ = [*request.path.strip("/").split("/"), "", ""]
        body = {} if request.body is None else request.body
        try:
            match request.method:
                case "GET":
                    return ok(self._show(name, request))
                case "POST":
                    return ok(self._change(name, number, body))
                case "DELETE" if name == "faults":
                    self.plan.faults.clear()
                    return ok(self._plan())
                case _:
                    return refused(404, "not_found", f"{request.method} {request.path}")
        except LookupError as error:
            return refused(404, "not_found", f"{request.method} {request.path}: {error!r}")
        except (ValueError, TypeError) as error:
            return refused(400, "invalid_args", f"{type(error).__name__}: {error}")

    def _show(self, name: str, request: Request) -> dict[str, Any]:
        match name:
            case "ledger":
                return views.ledger(self.world, request.query.get("label_prefix"))
            case "state":
                return {**views.state(self.world), **self._plan()}
            case "requests":
                return {"requests": list(self.requests)}
            case "clock":
                return self._turn()
            case "faults":
                return self._plan()
            case _:
                raise LookupError(name)

    def _change(self, name: str, number: str, body: Any) -> dict[str, Any]:
        match name:
            case "clock":
                return self._turn(**body)
            case "options":
                return self._set(body)
            case "faults":
                self.plan.faults += FAULTS.validate_python(
                    body if isinstance(body, list) else [body]
                )
                return self._plan()
            case "machines":
                return self._change_machine(int(number), **body)
            case "instances":
                return self._meddle(self.world.contracts[int(number)], **body)
            case "credit":
                self.world.deposit(Decimal(body["deposit"]))
                return {"credit": shown(self.world.ledger.credit(self.world.now))}
            case _:
                raise LookupError(name)

    def _set(self, changed: dict[str, Any]) -> dict[str, Any]:
        options = {**self.world.options.model_dump(), **changed}
        self.world.options = Options.model_validate(options)
        return self.world.options.model_dump(mode="json")

    def _plan(self) -> dict[str, Any]:
        return {"faults": [fault.model_dump(mode="json") for fault in self.plan.faults]}

    def _turn(
        self, advance_seconds: float | Decimal = 0, speed: float | Decimal | None = None
    ) -> dict[str, Any]:
        if speed is not None:
            self.world.clock.run(float(speed))
        self.world.clock.advance(advance_seconds)
        self.world.catch_up()
        return {"now": self.world.now / SECOND, "speed": self.world.clock.speed}

    def _change_machine(
        self,
        number: int,
        *,
        min_bid: float | Decimal | None = None,
        taken_seconds: float | None = None,
        fate: str | None = None,
        true_card: str | None = None,
        cuda: float | Decimal | None = None,
        strips: Sequence[str] | None = None,
        inet_down: float | Decimal | None = None,
    ) -> dict[str, Any]:
        machine = next(item for item in self.world.machines if item.machine_id == number)
        if fate is not None:
            machine.fate = Fate(fate)
        if true_card is not None:
            machine.true_card = next(card for card in CARDS if card.name == true_card)
        if cuda is not None:
            machine.cuda_max_good = float(cuda)
        if strips is not None:
            machine.strips = tuple(strips)
        if inet_down is not None:
            machine.inet_down = float(inet_down)
        if min_bid is not None:
            self.world.set_floor(machine, Decimal(str(min_bid)))
        if taken_seconds is not None:
            self.world.take(machine, float(taken_seconds))
        return {"machine_id": number, "min_bid": str(machine.min_bid), "fate": machine.fate}

    def _meddle(self, contract: Contract, do: str, **more: Any) -> dict[str, Any]:
        if not contract.is_live:
            raise ValueError(f"instance {contract.id} is destroyed")
        match do:
            case "preempt":
                self.world.preempt(contract, float(more.get("outage_seconds", 0)))
            case "resume":
                self.world.resume(contract)
            case "offline":
                self.world.go_offline(contract)
            case "online":
                self.world.come_back(contract)
            case "expire":
                self.world.expire(contract)
            case "traffic" if more["charge"] in {"download", "upload"}:
                self.world.bill_traffic(contract, more["charge"], Decimal(more["gigabytes"]))
            case _:
                raise ValueError(f"do {do!r} with {more} is nothing that can be done")
        return views.instance(contract)
