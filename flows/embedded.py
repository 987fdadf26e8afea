"""Run flows against an embedded API: settings for a while, nothing global, a clean end.

The console stays quiet: what Prefect logs goes into the API's database, people get the listener.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker, PrefectConsoleHandler
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.states import Crashed

from tsgb.local_api import LocalAPI

DRAIN_SECONDS = 10.0


@contextmanager
def embedded(api: LocalAPI) -> Generator[None]:
    """Point Prefect at the API for what runs inside, and send all that is queued at its end."""
    with (
        temporary_settings(
            {
                PREFECT_API_URL: api.url,
                PREFECT_API_KEY: None,
                PREFECT_API_AUTH_STRING: None,
                PREFECT_HOME: api.directory,
                PREFECT_LOCAL_STORAGE_PATH: api.directory / "storage",
                PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
                # A heartbeat thread is joined in steps of a second at the end of each flow, and
                # nobody here listens for a missing heartbeat.
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            }
        ),
        _quiet_console(),
    ):
        try:
            _bury_the_dead()
            yield
        finally:
            APILogWorker.drain_all(timeout=DRAIN_SECONDS)
            EventsWorker.drain_all(timeout=DRAIN_SECONDS)


def _bury_the_dead() -> None:
    """Whatever still counts as running was killed: the database has no other user than us."""
    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            client.set_flow_run_state(run.id, Crashed(message="Its process was killed"), force=True)


@contextmanager
def _quiet_console() -> Generator[None]:
    names = [None, "prefect", *logging.root.manager.loggerDict]
    handlers = [
        handler
        for name in names
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, PrefectConsoleHandler)
    ]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
