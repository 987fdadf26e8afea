"""A cancelled flow run ends even if no signal comes."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from prefect import flow, get_client, task
from prefect.runtime import flow_run
from prefect.states import Cancelling, Crashed

from flows.cancellation import (
    cancellable,
    check_cancelled,
    ends_when_cancelled,
    while_flow_runs,
)
from flows.interrupts import check_interrupt, pause
from tsgb.errors import RunCancelled

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]
AT_ONCE = timedelta(milliseconds=20)


def cancel_me() -> None:
    """Do what a person does in the UI, of whom the flow hears nothing."""
    assert flow_run.id is not None
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id), Cancelling(), force=True)


def test_a_flow_of_which_prefect_lost_track_ends_as_cancelled() -> None:
    looks: list[int] = []

    @flow
    @ends_when_cancelled
    def deaf() -> None:
        with cancellable(AT_ONCE, AT_ONCE):
            check_interrupt()
            cancel_me()
            for number in range(1000):
                looks.append(number)
                pause(0.05)

    state = deaf(return_state=True)
    assert state.is_cancelled()
    assert "its flow run was cancelled" in (state.message or "")
    assert 0 < len(looks) < 1000


def test_nothing_is_announced_of_a_cancelled_flow_run() -> None:
    @flow
    @ends_when_cancelled
    def announces() -> str:
        check_cancelled()
        cancel_me()
        check_cancelled()
        return "announced"

    assert announces(return_state=True).is_cancelled()


def test_outside_a_flow_run_nobody_can_cancel() -> None:
    with cancellable(AT_ONCE, AT_ONCE):
        check_cancelled()
        check_interrupt()


def test_a_flow_has_the_time_that_the_signal_needs() -> None:
    @flow
    @ends_when_cancelled
    def heard() -> str:
        with cancellable(AT_ONCE, timedelta(hours=1)):
            cancel_me()
            pause(0.3)
            check_interrupt()
            raise RunCancelled("by the signal")

    state = heard(return_state=True)
    assert state.message == "by the signal"


def test_a_task_of_a_cluster_ends_with_its_flow_run() -> None:
    looks: list[int] = []

    @task
    def far_away() -> None:
        with while_flow_runs(AT_ONCE):
            for number in range(1000):
                looks.append(number)
                if number == 5:  # the flow's process is gone
                    with get_client(sync_client=True) as client:
                        client.set_flow_run_state(UUID(flow_run.id), Crashed(), force=True)
                pause(0.05)

    @flow
    def starts_it() -> None:
        far_away.submit().result()

    state = starts_it(return_state=True)
    assert not state.is_completed()
    with pytest.raises(RunCancelled, match="does not run any more"):
        state.result()
    assert 5 < len(looks) < 1000
