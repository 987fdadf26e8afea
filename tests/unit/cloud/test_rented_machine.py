"""What a machine says of its saves is compared with what the run holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fakes.second_provider import Server
from tests.unit.cloud.conftest import Renting
from tsgb.cloud.documents import Intent
from tsgb.cloud.forecast import workload
from tsgb.cloud.policy import MonitorPolicy
from tsgb.cloud.preemption import Workload
from tsgb.cloud.provider import LaunchSpec
from tsgb.cloud.rented_machine import RentedMachine
from tsgb.cloud.running import RunningInstance
from tsgb.errors import Preempted


class Boasted:
    """Work whose machines tell of a new step each second, of which `taken` come to the run."""

    def __init__(self, renting: Renting, taken: Callable[[int], int]) -> None:
        self._renting, self._taken = renting, taken
        self.told = self.held = self.num_copies = 0
        renting.cloud.work = self.tell

    def tell(self, server: Server) -> None:
        self.told += 1
        if self.told % 60 == 0:
            self._renting.says(1, self.told)
        if self.told == 4 * 3600:
            self._renting.cloud.stop(server.number)

    def begun(self) -> int:
        return 0

    def is_reached(self, segment: int) -> bool:
        del segment
        return False

    def load(self) -> Workload:
        return workload(0.2, disk_gb=20)

    def card_gb(self) -> float:
        return 0.0

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        del attempt
        return self._renting.spec(intent.label, intent.price)

    def promote(self, attempt: int, tick: Callable[[], object]) -> None:
        del attempt
        tick()
        self.num_copies += 1
        self.held = self._taken(self.told)

    def collect(self, working: int | None) -> None:
        """Nothing is left anywhere."""

    def has_saved(self, segment: int, running: RunningInstance) -> bool:
        del segment, running
        return False

    def updates(self) -> int:
        return self.held

    def verify(self, segment: int) -> None:
        raise Preempted(f"segment {segment} is not there")

    def show(self, running: RunningInstance) -> None:
        """Nobody looks."""


@pytest.mark.parametrize("copy_every", [0, 10])
@pytest.mark.parametrize(
    ("taken", "cause", "hours"),
    [(lambda _told: 0, "bad_host", 2), (lambda told: told, "preempted", 4)],
    ids=["saves nothing", "saves all"],
)
def test_a_machine_is_paid_for_what_it_saves(
    renting: Renting, taken: Callable[[int], int], cause: str, hours: int, copy_every: int
) -> None:
    """It saves each minute; the last copy is made when it is gone."""
    work = Boasted(renting, taken)
    flow = renting.flow(monitor_policy=MonitorPolicy(copy_every=copy_every))
    with pytest.raises(Preempted):
        RentedMachine(flow, work).attempt(0)
    if copy_every == 0:
        assert work.num_copies <= hours + 1
    else:
        assert hours * 60 / copy_every - 2 <= work.num_copies <= hours * (60 / copy_every + 1) + 1
    assert renting.end_of(1) == cause
    assert hours * 3600 <= work.told < (hours + 0.2) * 3600
    assert renting.cloud.servers == {}
