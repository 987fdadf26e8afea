"""A machine is gone if the service does not know it and a whole list lacks it; then it is paid."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.second_provider import MeadowCloud, Server
from tests.unit.cloud.conftest import Renting
from tsgb.cloud.monitor import look
from tsgb.cloud.provider import LaunchSpec
from tsgb.cloud.retry_policy import Ending
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.terminate import (
    BUDGET,
    MOVE,
    destroy,
    destroy_all,
    destroy_once,
    error_of,
    release,
    stop,
)
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import (
    BudgetReached,
    ConfigError,
    LeaseLost,
    Preempted,
    ProviderAuthError,
    ProviderUnreachable,
    StoreUnreachable,
    TSGBError,
    WorkerFailed,
)

AWAY = ProviderUnreachable("meadow: no answer")
NO_KEY = ProviderAuthError("meadow: the key is refused")


def servers(cloud: MeadowCloud, racks: Iterable[int]) -> list[int]:
    return [
        cloud.create(1000 + rack, LaunchSpec(image="i", label=f"x{rack}", price=0.2, disk_gb=20))
        for rack in racks
    ]


@given(
    exist=st.sets(st.integers(1, 3)),
    listed=st.sets(st.integers(1, 3)),
    stubborn=st.sets(st.integers(1, 3)),
    failing=st.sets(st.sampled_from(["list", "show", "destroy"])),
)
def test_gone_means_unknown_by_its_id_and_in_no_whole_list(
    exist: set[int], listed: set[int], stubborn: set[int], failing: set[str]
) -> None:
    cloud = MeadowCloud()
    cloud.stubborn, cloud.errors = stubborn, dict.fromkeys(failing, AWAY)
    for number in servers(cloud, range(3)):
        (cloud.servers if number in exist else cloud.ghosts)[number] = cloud.servers.pop(number)
    cloud.ghosts = {n: server for n, server in cloud.ghosts.items() if n in listed}
    left = destroy_once(cloud, [1, 2, 3])
    unknown = set() if "show" in failing else {1, 2, 3} - cloud.servers.keys()
    unlisted = (
        set() if "list" in failing else {1, 2, 3} - cloud.servers.keys() - cloud.ghosts.keys()
    )
    assert {1, 2, 3} - left.keys() == unknown & unlisted
    assert {number for number, one in left.items() if one.is_gone_by_id} == unknown - unlisted
    assert all(one.why for one in left.values())


def test_one_that_would_not_go_keeps_no_other_from_its_end(renting: Renting) -> None:
    cloud = renting.cloud
    first, second, third = servers(cloud, range(3))
    cloud.stubborn = {second}
    assert destroy_all(cloud, [first, second, third], cloud.sleep) == {
        second: f"instance {second} is there still"
    }
    assert cloud.ended == [first, third]


def test_no_second_round_is_made_with_a_refused_key(renting: Renting) -> None:
    renting.cloud.errors["list"] = NO_KEY
    [number] = servers(renting.cloud, [0])

    def sleep(_seconds: float) -> None:
        pytest.fail("no other round would be answered otherwise")

    assert destroy_all(renting.cloud, [number], sleep) == {number: str(NO_KEY)}


def test_a_machine_is_paid_until_its_id_is_gone_though_a_list_lags(renting: Renting) -> None:
    cloud, session = renting.cloud, renting.flow()
    [number] = servers(cloud, [0])
    cloud.ghosts = dict(cloud.servers)
    began = cloud.at

    def catch_up(_server: Server) -> None:
        if cloud.at - began >= timedelta(minutes=2):
            cloud.ghosts = {}

    servers(cloud, [1])
    cloud.work = catch_up
    assert destroy(session, number) == began
    assert cloud.at - began >= timedelta(minutes=2)


def test_who_ends_it_later_is_said_when_a_flow_gives_up(renting: Renting) -> None:
    cloud, session = renting.cloud, renting.flow()
    [number] = servers(cloud, [0])
    cloud.stubborn = {number}
    began = cloud.clock()
    with pytest.raises(ProviderUnreachable, match=r"cost money: .*still; the reaper or `tsgb mach"):
        destroy(session, number)
    assert session.monitor_policy.destroy_seconds - 60 <= cloud.clock() - began
    assert cloud.clock() - began <= session.monitor_policy.destroy_seconds


class TestRelease:
    def begin(self, renting: Renting) -> RunningInstance:
        """A machine at work that has said something."""
        self.session = renting.flow()
        running = renting.rent(self.session)
        renting.cloud.sleep(120)
        renting.says(1, 40, bytes_up=7_000_000)
        return running

    def test_a_machine_may_save_and_is_destroyed_and_paid(self, renting: Renting) -> None:
        running, cloud = self.begin(renting), renting.cloud

        def obey(_server: Server) -> None:
            lease = renting.documents.lease()
            if lease is not None and lease.stop and cloud.clock() >= asked_at + 5:
                renting.says(1, 55, "interrupted")

        asked_at, cloud.work = cloud.clock(), obey
        release(self.session, running, "enough for today", lambda: 40)
        lease = renting.documents.lease()
        assert lease is not None
        assert lease.stop == "enough for today"
        assert 5 <= cloud.clock() - asked_at < self.session.monitor_policy.release_seconds
        assert cloud.servers == {}
        account = self.session.ledger.accounts[1]
        assert not account.is_open
        assert account.usage.bytes_up == 7_000_000
        assert renting.end_of(1) == "stopped"

        before = dict(renting.files.files), cloud.at
        release(self.session, running, "again", lambda: 40)
        assert (renting.files.files, cloud.at) == before

    @pytest.mark.parametrize(
        ("seconds", "says", "gigabytes"),
        [
            pytest.param(10, None, 3, id="no container yet"),
            pytest.param(100, None, 8, id="a container that is silent"),
            pytest.param(100, (0, 2), 8, id="models on their way"),
            pytest.param(100, (1, 4), 7, id="it has told of all"),
            pytest.param(100, (1, 9), 12, id="it has told of more"),
            pytest.param(100, (1, 0), 8, id="it does not count"),
        ],
    )
    def test_downloads_of_a_start_are_paid_once(
        self, renting: Renting, seconds: int, says: tuple[int, int] | None, gigabytes: int
    ) -> None:
        """The image has 3 GB, which nothing in the container can count, the rest 5 GB."""
        cloud, session = renting.cloud, renting.flow()
        cloud.dollars_per_gb = 0.1
        running = renting.rent(session, start_gb=8.0)
        cloud.sleep(seconds)
        if says is not None:
            step, received = says
            renting.says(1, step, bytes_down=received * 10**9)
        look(session, running)
        assert session.ledger.held >= 800_000, "it is set aside from the beginning"
        release(session, running, "enough", lambda: 0)
        account = session.ledger.accounts[1]
        by_time = account.usage.model_copy(update={"bytes_down": 0}).cost(account.rates)
        assert account.spent - by_time == pytest.approx(gigabytes * 100_000, abs=1)

    def test_what_it_says_that_it_saved_is_no_progress(self, renting: Renting) -> None:
        """Else a host that saves nothing would be paid again and again."""
        running = self.begin(renting)
        running.cause = TerminationReason.HOST_LOST
        renting.says(1, 10**6)
        release(self.session, running, "", lambda: 7)
        assert [ending.step for ending in self.session.endings] == [7]
        document = renting.documents.attempt(1)
        assert document is not None
        assert document.result is not None
        assert document.result.step == 7

    @pytest.mark.parametrize(("saved", "cause"), [(30, "bad_host"), (31, "stopped")])
    def test_hours_in_which_nothing_was_saved_speak_against_the_host(
        self, renting: Renting, saved: int, cause: str
    ) -> None:
        """It told of new steps all the time, so that it was no stall, until it had to move."""
        running = self.begin(renting)
        name = "step-00000030-a0001-00012345"
        renting.documents.note(1, resumed_from={"selfplay": name})
        running.first_beat_at = renting.cloud.clock()
        renting.cloud.sleep(2 * 3600)
        stop(self.session, running, MOVE)
        release(self.session, running, MOVE, lambda: saved)
        assert renting.end_of(1) == cause

    def test_where_that_cannot_be_known_nothing_new_counts(self, renting: Renting) -> None:
        running = self.begin(renting)
        self.session.endings = [
            Ending(cause=TerminationReason.PREEMPTED, at=renting.cloud.at, step=5)
        ]

        def saved() -> int:
            raise StoreUnreachable("the exchange is away")

        release(self.session, running, "enough", saved)
        assert [ending.step for ending in self.session.endings] == [5, 5]
        assert not self.session.ledger.accounts[1].is_open

    def test_one_that_does_not_answer_is_waited_for_no_longer_than_allowed(
        self, renting: Renting
    ) -> None:
        running = self.begin(renting)
        began = renting.cloud.clock()
        release(self.session, running, "enough", lambda: 40)
        waited = renting.cloud.clock() - began
        assert waited == pytest.approx(self.session.monitor_policy.release_seconds, abs=1)
        assert renting.cloud.servers == {}

    def test_one_that_never_said_anything_has_nothing_to_save(self, renting: Renting) -> None:
        session = renting.flow()
        running = renting.rent(session)
        began = renting.cloud.clock()
        release(session, running, "enough", lambda: 40)
        assert renting.cloud.clock() == began
        assert renting.cloud.servers == {}

    def test_a_store_that_is_away_keeps_no_machine_alive(self, renting: Renting) -> None:
        running = self.begin(renting)
        renting.is_store_away = True
        with pytest.raises(TSGBError, match="the store is away"):
            release(self.session, running, "enough", lambda: 40)
        assert renting.cloud.servers == {}

    def test_with_a_refused_key_the_machine_is_asked_to_end_itself(self, renting: Renting) -> None:
        running = self.begin(renting)
        running.cause = TerminationReason.DONE
        renting.cloud.errors["destroy"] = NO_KEY
        with pytest.raises(ProviderAuthError):
            release(self.session, running, "", lambda: 40)
        lease = renting.documents.lease()
        assert lease is not None
        assert lease.stop == "the account's key is refused"
        assert self.session.ledger.accounts[1].is_open, "it costs money still"

    def test_one_that_is_lost_finds_no_permission_should_it_come_back(
        self, renting: Renting
    ) -> None:
        running = self.begin(renting)
        running.cause = TerminationReason.HOST_LOST
        release(self.session, running, "", lambda: 40)
        lease = renting.documents.lease()
        assert lease is not None
        assert lease.stop == "attempt 1 is over: host_lost"


@pytest.mark.parametrize(
    ("cause", "stop", "kind", "said"),
    [
        (TerminationReason.PREEMPTED, None, Preempted, "going on from the last checkpoint"),
        (TerminationReason.STOPPED, BUDGET, BudgetReached, "raise the budget"),
        (TerminationReason.STOPPED, "moves", Preempted, "on another machine"),
        (TerminationReason.CONFIG, None, ConfigError, "config: oh; another machine would meet"),
        (TerminationReason.FUNDS, None, BudgetReached, "add credit"),
        (TerminationReason.LEASE_LOST, None, LeaseLost, "a newer process"),
    ],
)
def test_the_error_says_whether_the_run_goes_on(
    renting: Renting,
    cause: TerminationReason,
    stop: str | None,
    kind: type[TSGBError],
    said: str,
) -> None:
    session = renting.flow()
    session.endings = [Ending(cause=cause, at=renting.cloud.at, step=7)]
    error = error_of(session, cause, "oh", stop)
    assert type(error) is kind
    assert said in str(error)


def test_a_worker_that_fails_twice_at_one_step_ends_the_run(renting: Renting) -> None:
    session = renting.flow()
    session.endings = [Ending(cause=TerminationReason.WORKER, at=renting.cloud.at, step=7)] * 2
    error = error_of(session, TerminationReason.WORKER, "")
    assert type(error) is WorkerFailed
    assert "twice after step 7" in str(error)
