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
    number = flow_run.id
    if number is None:
        yield
        return
    stop, done = Stop(RunCancelled), Event()

    def watch() -> None:
        since: float | None = None
        with get_client(sync_client=True) as client:
            while not done.wait(look_every.total_seconds()):
                if not _is_cancelled(client, UUID(number)):
                    since = None
                elif since is None:
                    since = time.monotonic()
                elif time.monotonic() - since >= grace.total_seconds():
                    stop.ask("its flow run was cancelled, and Prefect sent no signal")
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
    try:
        state = client.read_flow_run(number).state
    except ObjectNotFound:
        return True
    except (httpx.HTTPError, OSError, PrefectException):
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())
