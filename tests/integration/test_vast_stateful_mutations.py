"""Each promise of the client, broken, is noticed by the sequences of test_vast_stateful.py."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import Phase

from tests.fakes.vast_bench import KEY
from tests.integration.test_vast_stateful import Machine, play
from tsgb.cloud.vast import client as vast_client
from tsgb.cloud.vast.answers import Subject
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.records import AccountRow, InstanceRow, Rental
from tsgb.cloud.vast.throttle import Endpoint
from tsgb.errors import ProviderAmbiguous, ProviderError, ProviderRefused, ProviderUnreachable

pytestmark = pytest.mark.integration


class TakesNoListForAnEmptyOne(VastClient):
    def instances(self) -> tuple[InstanceRow, ...]:
        try:
            return super().instances()
        except ProviderError:
            return ()


class ReadsTheFirstPage(VastClient):
    def instances(self) -> tuple[InstanceRow, ...]:
        return super().instances()[:25]


class ReadsAllPagesOnce(VastClient):
    def instances(self) -> tuple[InstanceRow, ...]:
        call = self._caller.call(Endpoint.LIST, "the list", Subject.ACCOUNT)
        return self._retries(lambda: tuple(vast_client._pages(self._caller, call)[0].values()))


class RentsAgain(VastClient):
    def create(self, ask_id: int, rental: Rental) -> int:
        try:
            return super().create(ask_id, rental)
        except ProviderAmbiguous:
            return super().create(ask_id, rental)


class TakesSilenceForNo(VastClient):
    def create(self, ask_id: int, rental: Rental) -> int:
        try:
            return super().create(ask_id, rental)
        except ProviderAmbiguous as error:
            raise ProviderRefused(str(error)) from error


class TakesAnErrorForGone(VastClient):
    def show(self, instance_id: int) -> InstanceRow | None:
        try:
            return super().show(instance_id)
        except ProviderError:
            return None


class GivesUpQuietly(VastClient):
    def destroy(self, instance_id: int) -> None:
        with suppress(ProviderUnreachable):
            super().destroy(instance_id)


class BidsWithoutACeiling(VastClient):
    def change_bid(self, instance_id: int, price: float) -> None:
        if 0.001 <= price <= 128:
            super().change_bid(instance_id, price)
        else:
            path = f"bid_price/{instance_id}/"
            self._change(Endpoint.BID, "PUT", path, instance_id, {"price": None})


class TellsTheKey(VastClient):
    def account(self) -> AccountRow:
        try:
            return super().account()
        except ProviderError as error:
            raise ProviderUnreachable(f"{KEY}: {error}") from error


class StopsAnother(VastClient):
    def stop(self, instance_id: int) -> None:
        super().stop(instance_id)
        others = [one.id for one in self.instances() if one.id != instance_id]
        for other in others[:1]:
            super().stop(other)


NOTICED = {
    TakesNoListForAnEmptyOne: "unknown is not empty|no key, no word",
    ReadsTheFirstPage: "unknown is not empty",
    ReadsAllPagesOnce: "unknown is not empty",
    RentsAgain: "a rental is no good twice",
    TakesSilenceForNo: "a no that is none",
    TakesAnErrorForGone: "unknown is not gone|no key, no word",
    GivesUpQuietly: "it goes on costing",
    BidsWithoutACeiling: "it is not to be sent",
    TellsTheKey: "a secret gets out",
    StopsAnother: "not its business",
}
IN_SECONDS = {TakesNoListForAnEmptyOne}


@pytest.mark.parametrize(
    ("mutant", "noticed"),
    [
        pytest.param(
            mutant,
            noticed,
            id=mutant.__name__,
            marks=() if mutant in IN_SECONDS else pytest.mark.slow,
        )
        for mutant, noticed in NOTICED.items()
    ],
)
def test_a_broken_promise_is_noticed(mutant: type[VastClient], noticed: str) -> None:
    class Mutated(Machine):
        client_type = mutant
        looks_at_kinds = False

    with pytest.raises(AssertionError, match=noticed):  # the sequence need not be short
        play(Mutated, 200, phases=[Phase.generate], report_multiple_bugs=False)
