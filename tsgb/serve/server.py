"""The server process: it listens, answers, and on SIGTERM ends what it has begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from tsgb.cloud.provider import is_loopback
from tsgb.errors import UsageError

GRACE_SECONDS = 5
"""Seconds beyond a request's deadline that the end of the service waits for it."""
_KEEP_ALIVE_SECONDS = 75
"""Seconds that an idle connection is kept, longer than clients keep theirs."""


def address_of(host: str, port: int) -> str:
    """Return the URL of an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_exposure(host: str, *, has_token: bool) -> None:
    """Refuse to listen where others can ask without a token.

    Raises:
        UsageError: The address is not loopback, and there is no token.
    """
    if not has_token and not is_loopback(address_of(host, 0)):
        raise UsageError(
            f"--host {host!r} lets other machines ask: set TSGB_SERVE_TOKEN to a secret that "
            "clients have to show, or listen on 127.0.0.1"
        )


def bind(host: str, port: int) -> socket.socket:
    """Take an address; nobody can connect before `run_server`.

    Raises:
        UsageError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio tells that it may send at once: otherwise each answer on a connection
    # that is kept waits 40 ms for the client's delayed acknowledgement.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {address_of(host, port)}: {reason}: name another --port or --host"
        ) from None
    return taken


def run_server(
    app: Starlette,
    listener: socket.socket,
    *,
    grace_seconds: float,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and return.

    Args:
        app: The application.
        listener: What `bind` returned; it is closed at the end.
        grace_seconds: Seconds that the end waits for requests under way.
        on_start: Called when requests are answered.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # its lines could hold parts of requests; ours do not
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(grace_seconds) + GRACE_SECONDS,
    )
    server = _AnnouncedServer(config, on_start)
    # uvicorn raises the signal again once it has ended: without handlers it would end the process.
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda _number, _frame: None)
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()


class _AnnouncedServer(uvicorn.Server):
    """A server that says when it answers."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._on_start()
