"""The Prefect API that an experiment brings along: a server process of its own, without a UI.

The process itself is `flows.embedded_server`; here are its owner and its client.

Prefect's own temporary server costs more (the client imports the server before it starts it) and
dies first on Ctrl-C, so that the end of a flow is never recorded. This one

- has a directory for each experiment, `<home>/<name>/`: database, results, log. Two servers on one
  SQLite file lock each other out and run each other's clean-up, so they never share one; and one
  that stays keeps the history of a run and the results of its finished segments for the next call;
- copies a migrated database instead of migrating: that is most of a first start;
- is in a session of its own, so that Ctrl-C does not reach it, and ends when its stdin does,
  so that it cannot outlive its owner, however that one ends;
- listens on a socket that it inherits: no race for a port, and nothing to poll;
- has settings of its own, and so has the client: neither reads what the user's environment, `.env`,
  `prefect.toml`, `pyproject.toml` or profile say of another Prefect.

`start` returns at once. `connected` imports Prefect meanwhile, waits for the server and points the
flows inside at it. Prefect is imported nowhere else here.
"""

from __future__ import annotations

import logging
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flows import embedded_server
from tsgb.checkpoint.run import RunLock
from tsgb.errors import TSGBError
from tsgb.settings import without_prefect_settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

TEMPLATE = f"template-{version('prefect')}.db"
"""Name of a migrated database without any run, in the home of all servers."""
DRAIN_SECONDS = 10.0
"""Seconds that the client may take to send its queued logs and events at the end."""
DATABASE = "prefect.db"
"""Name of a server's database in its home."""
_OFF = (
    *("SERVER_ANALYTICS", "UI", "SERVER_SERVICES_EVENT_PERSISTER", "SERVER_SERVICES_TRIGGERS"),
    "API_EVENTS_STREAM_OUT",
)
"""What serves a UI, deployments and automations: such a server has none of them."""


# -- the owner of the server ---------------------------------------------------------------------


@dataclass(slots=True)
class EmbeddedAPI:
    """A running server.

    Example: `with start(home, "run-1", environment) as api, connected(api): stage1(...)`
    """

    url: str
    """URL of its API on loopback, `http://127.0.0.1:<port>/api`."""
    directory: Path
    """Its home: database, results, log."""
    process: subprocess.Popen[bytes]
    """The server process."""
    lock: RunLock
    """Lock on the directory, for as long as the server runs."""
    _ready: bool = field(default=False, init=False)

    def wait(self, timeout_seconds: float = 180.0) -> None:
        """Return once it answers.

        Raises:
            TSGBError: It ended, or did not answer in time.
        """
        if self._ready:
            return
        output = self.process.stdout
        assert output is not None
        is_heard = bool(select.select([output], [], [], timeout_seconds)[0])
        if is_heard and output.readline() == embedded_server.READY:
            self._ready = True
            return
        code = self.process.poll()
        reason = f"did not answer within {timeout_seconds:g} s" if code is None else "ended at once"
        raise TSGBError(f"the embedded Prefect API {reason}: see {self.directory / 'server.log'}")

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Let the server finish what it has received, and end it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def start(home: Path, name: str, environment: Mapping[str, str]) -> EmbeddedAPI:
    """Start a server for one experiment; return before it answers.

    Args:
        home: Directory of all such servers.
        name: Name of this server; the same name later finds the same history and results.
        environment: Environment of the process, without any variable of Prefect's.

    Raises:
        UsageError: A live process uses this name.
    """
    home = home.absolute()  # server and client look at it from another working directory
    directory = home / name
    lock = RunLock(str(directory))
    lock.acquire()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            process = _spawn(home, directory, environment, listener)
    except BaseException:
        lock.release()
        raise
    return EmbeddedAPI(f"http://127.0.0.1:{port}/api", directory, process, lock)


def server_settings(directory: Path, *, migrated: bool) -> dict[str, str]:
    """Return the server's environment variables.

    Args:
        directory: Its home.
        migrated: Whether its database has all tables.
    """
    settings = {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(directory),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{directory / DATABASE}",
        # Flows use no blocks there, so no types are registered, or compared with an earlier start.
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        **{f"PREFECT_{name}_ENABLED": "false" for name in _OFF},
    }
    if migrated:
        settings["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = "false"
    return settings


def _spawn(
    home: Path, directory: Path, environment: Mapping[str, str], listener: socket.socket
) -> subprocess.Popen[bytes]:
    database = directory / DATABASE
    template = home / TEMPLATE
    if template.exists() and not database.exists():
        fresh = directory / "prefect.db.new"
        shutil.copyfile(template, fresh)
        fresh.replace(database)
    settings = server_settings(directory, migrated=database.exists())
    arguments = [str(listener.fileno()), database, template]
    with (directory / "server.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - a module of ours, no shell
            [sys.executable, "-m", embedded_server.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Prefect asks for a home when it is imported, and a container's user may have none.
            env={"HOME": str(directory), **environment, **settings},
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )


# -- the client ----------------------------------------------------------------------------------


@contextmanager
def connected(api: EmbeddedAPI) -> Generator[None]:
    """Import Prefect, wait for the server and point the flows inside at it.

    The console stays quiet: what Prefect logs goes into the API's database, people get the
    listener. All that is queued is sent at the end.

    Raises:
        TSGBError: The server ended, or did not answer in time.
    """
    with ExitStack() as stack:
        stack.enter_context(without_prefect_settings(api.directory))
        with chdir(api.directory):  # where none of the files lies in which Prefect looks
            from prefect import get_client  # which sets up logging, too
            from prefect import settings as names
            from prefect.events.worker import EventsWorker
            from prefect.logging.handlers import APILogWorker

            stack.enter_context(
                names.temporary_settings(
                    {
                        names.PREFECT_API_URL: api.url,
                        names.PREFECT_API_KEY: None,
                        names.PREFECT_API_AUTH_STRING: None,
                        names.PREFECT_HOME: api.directory,
                        names.PREFECT_LOCAL_STORAGE_PATH: api.directory / "storage",
                        names.PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
                        # A heartbeat thread is joined in steps of a second at the end of each
                        # flow, and nobody here listens for a missing heartbeat.
                        names.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
                    }
                )
            )
        stack.enter_context(_quiet_console())
        api.wait()
        try:
            with get_client(sync_client=True) as client:
                _crash_killed_runs(client)
            yield
        finally:
            APILogWorker.drain_all(timeout=DRAIN_SECONDS)
            EventsWorker.drain_all(timeout=DRAIN_SECONDS)


def _crash_killed_runs(client: SyncPrefectClient) -> None:
    """Mark as crashed what still counts as running: the database has no other user than us."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    from flows.flow_runs import crash

    of_type = filters.FlowRunFilterStateType(any_=[StateType.RUNNING])
    running = filters.FlowRunFilter(state=filters.FlowRunFilterState(type=of_type))
    for run in client.read_flow_runs(flow_run_filter=running):
        crash(client, run.id, "Its process was killed")


@contextmanager
def _quiet_console() -> Generator[None]:
    from prefect.logging.handlers import PrefectConsoleHandler

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
