"""Any sequence of calls of the client, whatever the service does to them, judged by what is true.

Each call meets at most one fault of its own on top of how the service behaves at that time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from tests.fakes.vast.faults import PRESETS
from tests.fakes.vast.options import Options
from tests.fakes.vast_bench import CALLS, OTHERS, SECRET, Bench, Fault, Seen, check_bills
from tests.fakes.vast_troubles import ACTS, OPTIONS, expected, faults_of
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.records import Rental
from tsgb.cloud.vast.search import Search
from tsgb.errors import (
    ProviderAmbiguous,
    ProviderAuthError,
    ProviderError,
    ProviderGone,
    ProviderNoCredit,
    ProviderRateLimited,
    ProviderRefused,
    ProviderSearchQuota,
)

pytestmark = pytest.mark.integration

NOBODY = 4711
"""An instance that there never was."""
HAIR = 1e-3
"""Seconds: the simulator's moments pass through floats."""
WHICH = st.integers(0, 399)


class Machine(RuleBasedStateMachine):
    """The calls as rules; what must hold after each of them is in `holds`."""

    client_type: type[VastClient] = VastClient
    looks_at_kinds: bool = True
    """Of errors; without it only effects count."""
    seen: ClassVar[Counter[str]] = Counter()
    """How calls ended in all examples, and what they met."""

    @initialize(seed=st.integers(0, 9), num_others=st.sampled_from([3, 0, 27, 51]), options=OPTIONS)
    def begin(self, seed: int, num_others: int, options: Mapping[str, Any]) -> None:
        given = Options(seed=seed, num_machines=70, boot_seconds=(5, 60), credit=100)
        self.bench = Bench(self.client_type, given)
        self.bench.__enter__()
        self.num_labels = 0
        self.refused: set[str] = set()
        """Labels of creates that were clearly refused."""
        self.at_most: dict[str, int] = {}
        """Contracts that a label may have."""
        self.labels: dict[int, set[str]] = {}
        """Those that a contract had or was to get."""
        self.bids: dict[int, set[float | None]] = {}
        self.may_end: set[int] = set()
        self.made: Counter[str] = Counter()
        """Contracts that a label had when they were made."""
        self.dollars: dict[int, Fraction] = {}
        """Billed for each contract so far."""
        self.live: set[int] = set()
        self.bench.rent_for_others(num_others)
        self.bench.sim("options", options)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.__exit__()

    # What the client does

    @rule(fault=faults_of("account"))
    def account(self, fault: Fault | None) -> None:
        seen = self.call("account", fault=fault)
        if seen.error is None:
            least, most = (float(truth.ledger["credit"]) for truth in (seen.after, seen.before))
            assert least - 1e-9 <= seen.value.credit <= most + 1e-9

    @rule(fault=faults_of("search"))
    def search(self, fault: Fault | None) -> None:
        search = Search(disk_gb=20, num_gpus=None, min_duration_seconds=3 * 86_400)
        seen = self.call("search", search, fault=fault, may_fail=(ProviderSearchQuota,))
        if seen.error is None:
            floors = {row["ask_id"]: float(row["min_bid"]) for row in seen.before.machines}
            for offer in seen.value:
                assert offer.min_bid == floors[offer.ask_id]
                assert offer.verification == "verified"
                assert offer.duration >= 3 * 86_400  # which this service does not look at

    @rule(which=WHICH, factor=st.sampled_from([1.1, 1.1, 1.0, 0.5, 3.0]), fault=faults_of("create"))
    def create(self, which: int, factor: float, fault: Fault | None) -> None:
        rows = self.bench.truth().machines
        free = [row for row in rows if row["free"]]
        row = (free or rows)[which % len(free or rows)]
        if fault is not None and "new_contract" in fault.get("set", {}):
            factor = 3.0  # a refusal without the id of what it left behind would be a lie
        price = min(128.0, max(0.001, float(row["min_bid"]) * factor))
        self.rent(row["ask_id"], price, fault)

    @rule(which=WHICH, fault=faults_of("create"))
    def create_from_a_taken_offer(self, which: int, fault: Fault | None) -> None:
        rows = self.bench.truth().machines
        asks = [row["ask_id"] for row in rows]
        gone = [ask for ask in range(min(asks), max(asks)) if ask not in asks]
        taken = [row["ask_id"] for row in rows if not row["free"]]
        asks = [*gone, *taken, 1]
        self.rent(asks[which % len(asks)], 128.0, fault)

    def rent(self, ask_id: int, price: float, fault: Fault | None) -> None:
        self.num_labels += 1
        label = f"own/{self.num_labels}"
        env = {"TOKEN": SecretStr(SECRET)}
        rental = Rental(image="img", label=label, price=price, disk_gb=20, env=env)
        self.at_most[label] = 2 if fault is not None and fault["act"] == "duplicate" else 1
        may_fail = (ProviderGone, ProviderRefused, ProviderNoCredit, ProviderRateLimited)
        seen = self.call("create", ask_id, rental, fault=fault, may_fail=may_fail)
        assert seen.num_sent == 1, "a rental is no good twice"
        assert len(seen.requests) == (0 if fault == {"act": "cut"} else 1)
        for request in seen.requests:
            assert float(request["body"]["price"]) == price
            assert request["body"]["cancel_unavail"] is True
        contracts = seen.after.contracts
        if seen.error is None:
            assert contracts[seen.value].label == label
            assert contracts[seen.value].bid == price
            assert contracts[seen.value].phase != "queued", "it starts when nobody waits for it"
        elif seen.error.instance_id is not None:
            assert contracts[seen.error.instance_id].label == label
        elif not isinstance(seen.error, ProviderAmbiguous):
            self.refused.add(label)

    @rule(fault=faults_of("instances"))
    def instances(self, fault: Fault | None) -> None:
        self.list_all(fault)

    @rule(
        paging=st.sampled_from(["keyset", "offset"]),
        fault=st.sampled_from([{"act": "churn"}, {"act": "partial", "rows": 24}]),
    )
    def instances_on_several_pages(self, paging: str, fault: Fault) -> None:
        """The next page may begin elsewhere than the last one ended, or be kept back."""
        prompt = {"list_lag_seconds": 0, "ghost_seconds": 0, "rate_limits": False}
        before = self.bench.truth().options
        self.bench.sim("options", {**prompt, "paging": paging})
        self.bench.rent_for_others(27 - len(self.live))  # a page has 25
        self.bench.advance(1)  # so that all of them must be listed
        self.list_all(fault)
        self.bench.sim("options", {name: before[name] for name in prompt})

    def list_all(self, fault: Fault | None) -> None:
        seen = self.call("instances", fault=fault)
        if seen.error is not None:
            return
        found = {instance.id: instance for instance in seen.value}
        lag = seen.before.options["list_lag_seconds"]
        for number, contract in seen.before.contracts.items():
            is_old = contract.created_at + lag + HAIR <= seen.before.now
            if is_old and contract.live and seen.after.contracts[number].live:
                assert number in found, "unknown is not empty"
        for number, instance in found.items():
            contract = seen.after.contracts[number]
            assert instance.label in self.labels.get(number, {contract.label})
            ghost = seen.before.options["ghost_seconds"]
            if contract.destroyed_at is not None:
                assert seen.before.now <= contract.destroyed_at + ghost + HAIR

    @rule(which=WHICH, fault=faults_of("show"))
    def show(self, which: int, fault: Fault | None) -> None:
        number = self.pick(which)
        seen = self.call("show", number, fault=fault)
        if seen.error is not None:
            return
        contract = seen.before.contracts.get(number)
        if seen.value is not None:
            assert contract is not None
            assert contract.live
            assert seen.value.id == number
            assert seen.value.label == contract.label
        elif contract is not None and seen.after.contracts[number].live:
            lag = seen.before.options["by_id_lag_seconds"]
            assert seen.before.now < contract.created_at + lag + HAIR, "unknown is not gone"

    @rule(which=WHICH, fault=faults_of("label"))
    def label(self, which: int, fault: Fault | None) -> None:
        number = self.pick(which)
        self.num_labels += 1
        label = f"renamed/{self.num_labels}"
        self.labels.get(number, set()).add(label)
        seen = self.call("label", number, label, fault=fault, may_fail=(ProviderGone,))
        if seen.error is None:
            assert seen.after.contracts[number].label == label

    @rule(which=WHICH, fault=faults_of("stop"))
    def stop(self, which: int, fault: Fault | None) -> None:
        number = self.pick(which)
        seen = self.call("stop", number, fault=fault, may_fail=(ProviderGone,))
        if seen.error is None:
            assert seen.after.contracts[number].phase == "stopped"

    @rule(which=WHICH, price=st.floats(0.001, 40), fault=faults_of("change_bid"))
    def change_bid(self, which: int, price: float, fault: Fault | None) -> None:
        number = self.pick(which)
        self.bids.get(number, set()).add(price)
        seen = self.call(
            "change_bid", number, price, fault=fault, may_fail=(ProviderGone, ProviderRefused)
        )
        assert all(float(request["body"]["price"]) == price for request in seen.requests)
        if seen.error is None:
            assert seen.after.contracts[number].bid == price

    @rule(
        which=WHICH,
        price=st.floats(max_value=0.001, exclude_max=True)
        | st.floats(min_value=128, exclude_min=True)
        | st.just(math.nan),
    )
    def change_bid_out_of_range(self, which: int, price: float) -> None:
        ends = (ProviderGone, ProviderRefused)
        seen = self.call("change_bid", self.pick(which), price, may_fail=ends)
        assert seen.requests == [], "it is not to be sent"
        assert type(seen.error) is ProviderRefused

    @rule(which=WHICH, fault=faults_of("destroy"))
    def destroy(self, which: int, fault: Fault | None) -> None:
        number = self.pick(which)
        self.may_end.add(number)
        seen = self.call("destroy", number, fault=fault)
        if seen.error is None and number in seen.after.contracts:
            assert not seen.after.contracts[number].live, "it goes on costing"

    @rule(which=WHICH, fault=faults_of("logs"))
    def logs(self, which: int, fault: Fault | None) -> None:
        seen = self.call("logs", self.pick(which), fault=fault, may_fail=(ProviderGone,))
        assert seen.error is not None or seen.value == ""

    @rule(call=st.sampled_from(CALLS), which=WHICH)
    def with_a_revoked_key(self, call: str, which: int) -> None:
        """It learns nothing, and changes nothing."""
        number = self.pick(which)
        more: dict[str, tuple[Any, ...]] = {
            "search": (Search(disk_gb=20),),
            "create": (12_345_678, Rental(image="img", label="x", price=1.0, disk_gb=20)),
            "label": (number, "x"),
            "change_bid": (number, 1.0),
            **dict.fromkeys(("show", "stop", "destroy", "logs"), (number,)),
        }
        client = self.bench.client_with("revoked")
        seen = self.bench.call(call, *more.get(call, ()), client=client)
        assert type(seen.error) is ProviderAuthError, "no key, no word"
        assert seen.before.contracts == seen.after.contracts

    # What everybody else does

    @rule(seconds=st.sampled_from([0.5, 5, 60, 600, 3600, 86_400]))
    def time_passes(self, seconds: float) -> None:
        self.bench.advance(seconds)

    @rule(options=OPTIONS)
    def the_service_changes(self, options: Mapping[str, Any]) -> None:
        self.bench.sim("options", options)

    @rule(
        which=WHICH,
        what=st.sampled_from(["preempt", "resume", "offline", "online", "expire", "traffic"]),
    )
    def something_happens(self, which: int, what: str) -> None:
        number = self.pick(which)
        if number in self.live:
            more = {"charge": "upload", "gigabytes": 1.5} if what == "traffic" else {}
            self.bench.sim(f"instances/{number}", {"do": what, **more})

    @rule(dollars=st.sampled_from([-1000, 1000, 1000]))
    def money_comes_or_goes(self, dollars: int) -> None:
        self.bench.sim("credit", {"deposit": dollars})

    @rule(which=WHICH, factor=st.sampled_from([0.5, 2.0]), taken=st.sampled_from([0, 600]))
    def the_market_moves(self, which: int, factor: float, taken: int) -> None:
        rows = self.bench.truth().machines
        row = rows[which % len(rows)]
        floor = min(max(float(row["min_bid"]) * factor, 0.001), 100)
        change = {"min_bid": floor, **({"taken_seconds": taken} if taken else {})}
        self.bench.sim(f"machines/{row['machine_id']}", change)

    @rule()
    def somebody_else_rents(self) -> None:
        self.bench.rent_for_others()

    @rule(call=st.sampled_from(CALLS))
    def somebody_else_asks(self, call: str) -> None:
        self.bench.ask_beside(call)

    # What must hold

    def pick(self, which: int) -> int:
        """Mostly one that is there; or one of all that there ever were, or one that never was."""
        numbers = sorted(self.live) if self.live and which % 4 < 3 else [*self.dollars, NOBODY]
        return numbers[which // 4 % len(numbers)]

    def call(
        self,
        name: str,
        *arguments: Any,
        fault: Fault | None = None,
        may_fail: tuple[type[ProviderError], ...] = (),
    ) -> Seen:
        """One call, and what holds for all; `may_fail` is what it may raise without any fault."""
        seen = self.bench.call(name, *arguments, fault=fault)
        kind = None if seen.error is None else type(seen.error)
        self.seen[f"{name}, {'done' if kind is None else kind.__name__}"] += 1
        if fault is None:
            assert kind is None or kind in may_fail, seen.error
        else:
            of_the_way = fault["act"] in {"cut", "churn"}
            if of_the_way or any(request["fault"] for request in seen.requests):
                self.seen[fault["act"]] += 1
                self.seen[str(fault.get("preset", fault.get("status", "")))] += 1
            decided = self.looks_at_kinds and (seen.last_fault is not None or fault["act"] == "cut")
            wanted = expected(name, fault) if decided else None
            assert wanted is None or kind is wanted, seen.error
        assert kind is not ProviderAmbiguous or name == "create"
        if kind is ProviderGone and name != "create":
            assert name in {"label", "stop", "change_bid", "logs"}
            gone = seen.after.contracts.get(arguments[0])
            assert gone is None or not gone.live, "unknown is not gone"
        return seen

    @invariant()
    def holds(self) -> None:
        truth = self.bench.truth()
        self.may_end |= self.bench.ended_by_others
        for number, contract in truth.contracts.items():
            if number not in self.dollars:
                named_by_us = contract.label in self.at_most
                assert named_by_us or contract.label.startswith(OTHERS)
                self.labels[number], self.bids[number] = {contract.label}, {contract.bid}
                self.made[contract.label] += 1
            assert contract.label in self.labels[number], "nobody named its id"
            assert contract.bid in self.bids[number], "nobody named its id"
            assert contract.bid is not None, "a rental at the full price"
            if contract.message == "contract expired":
                self.may_end.add(number)
            assert contract.live or number in self.may_end, "nobody named its id"
            assert contract.dollars >= self.dollars.get(number, 0)
            self.dollars[number] = contract.dollars
        for label, most in self.at_most.items():
            assert self.made[label] <= (0 if label in self.refused else most), "a no that is none"
        self.live = {number for number, contract in truth.contracts.items() if contract.live}
        check_bills(truth)


def play(machine: type[Machine], num_examples: int, **more: Any) -> None:
    """The examples of the suite's profile, with steps that may be slow."""
    how = settings(
        max_examples=num_examples,
        stateful_step_count=20,
        suppress_health_check=list(HealthCheck),
        **more,
    )
    run_state_machine_as_test(machine, settings=how)


@pytest.mark.timeout(900)  # of which a failure takes up to five minutes to make small
def test_any_sequence_of_calls() -> None:
    play(Machine, 25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_very_many_sequences_of_calls() -> None:
    class Counted(Machine):
        seen: ClassVar[Counter[str]] = Counter()

    play(Counted, 500)
    kinds = (
        "ProviderAmbiguous",
        "ProviderGone",
        "ProviderNoCredit",
        "ProviderRateLimited",
        "ProviderRefused",
    )
    creates = {f"create, {kind}" for kind in (*kinds, "ProviderUnreachable")}
    done = {f"{call}, done" for call in CALLS}
    assert done | creates | ACTS <= Counted.seen.keys(), "it tells too little"
    assert len(PRESETS.keys() - Counted.seen.keys()) < 4, "it tells too little"
