"""A flow run that is being cancelled ends, even where Prefect's own signal does not come.

The process that starts a flow run watches for its cancellation, and hands it on as SIGTERM. After a
restart of the server it may have given up watching (3.8.8: "Cancellation observer failed. Flow run
cancellation disabled"); the flow would go on, pay, and announce its checkpoint as if nobody had
cancelled it. So the flow asks for its own state, too.
"""

# No postponed annotations: see `flows.stage1`.

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from functools import wraps
from threading import Event, Thread
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.interrupts import Stop, stopped_by
from tsgb.errors import RunCancelled

R = TypeVar("R")
LOOK_EVERY = timedelta(seconds=15)
"""Time between two looks at the state of the own flow run."""
GRACE = timedelta(seconds=60)
"""Time after which a flow run that is being cancelled ends by itself. Prefect's signal comes within
a second, and half a minute after it the process is killed: whoever lives longer got no signal."""


def ends_when_cancelled(function: Callable[..., R]) -> Callable[..., R]:
    """Let a flow's function end, in state `Cancelled`, when its flow run is cancelled."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        try:
            with cancellable():
                return function(*args, **kwargs)
        except RunCancelled as error:
            state: Any = Cancelled(message=str(error))  # Prefect takes a state for the result
            return state

    return call


@contextmanager
def cancellable(look_every: timedelta = LOOK_EVERY, grace: timedelta = GRACE) -> Generator[None]:
    """Let `flows.interrupts.check_interrupt` raise `RunCancelled` inside, once it is time.

    Args:
        look_every: Time between two looks.
        grace: Time from the first look that finds a cancellation.
    """
    reason = "its flow run was cancelled, and Prefect sent no signal"
    with _watched(_is_cancelled, reason, look_every, grace):
        yield


@contextmanager
def while_flow_runs(look_every: timedelta = LOOK_EVERY) -> Generator[None]:
    """Let `check_interrupt` raise `RunCancelled` inside a task once its flow run does not run.

    A task in a cluster gets no signal of its flow's, and would work on when the flow is gone.

    Args:
        look_every: Time between two looks.
    """
    with _watched(_has_ended, "its flow run does not run any more", look_every, timedelta(0)):
        yield


@contextmanager
def _watched(
    shall_end: Callable[[SyncPrefectClient, UUID], bool],
    reason: str,
    look_every: timedelta,
    grace: timedelta,
) -> Generator[None]:
    number = flow_run.id
    if number is None:
        yield
        return
    stop, done = Stop(RunCancelled), Event()

    def watch() -> None:
        since: float | None = None
        with get_client(sync_client=True) as client:
            while not done.wait(look_every.total_seconds()):
                now = time.monotonic()
                since = (since or now) if shall_end(client, UUID(number)) else None
                if since is not None and now - since >= grace.total_seconds():
                    stop.ask(reason)
                    return

    # The settings that say which server it is are in the context.
    watcher = Thread(target=copy_context().run, args=[watch], daemon=True, name="cancellation")
    watcher.start()
    try:
        with stopped_by(stop):
            yield
    finally:
        done.set()
        watcher.join()


def check_cancelled() -> None:
    """Ask once, before something that cannot be taken back.

    Raises:
        RunCancelled: The flow run is being cancelled.
    """
    number = flow_run.id
    if number is None:
        return
    with get_client(sync_client=True) as client:
        if _is_cancelled(client, UUID(number)):
            raise RunCancelled("its flow run was cancelled")


def _is_cancelled(client: SyncPrefectClient, number: UUID) -> bool:
    """Whether it is being cancelled, or is gone; no, while the server does not answer."""
    return _state_is(client, number, lambda state: state.is_cancelling() or state.is_cancelled())


def _has_ended(client: SyncPrefectClient, number: UUID) -> bool:
    """Whether it does not run, or is gone; no, while the server does not answer."""
    return _state_is(client, number, lambda state: not state.is_running())


def _state_is(
    client: SyncPrefectClient, number: UUID, wanted: Callable[[State[Any]], bool]
) -> bool:
    try:
        state = client.read_flow_run(number).state
    except ObjectNotFound:
        return True
    except (httpx.HTTPError, OSError, PrefectException):
        return False
    return state is not None and wanted(state)
