"""Where a service may listen, and that answers leave at once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tsgb.errors import UsageError
from tsgb.serve.server import address_of, bind, check_exposure


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1"])
def test_this_machine_may_ask_without_a_token(host: str) -> None:
    check_exposure(host, has_token=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "guard.example.org", ""])  # noqa: S104
def test_others_need_one(host: str) -> None:
    check_exposure(host, has_token=True)
    with pytest.raises(UsageError, match="set TSGB_SERVE_TOKEN"):
        check_exposure(host, has_token=False)


def test_addresses() -> None:
    assert address_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert address_of("::1", 80) == "http://[::1]:80"
    with pytest.raises(UsageError, match=r"cannot listen on http://192\.0\.2\.1:1: "):
        bind("192.0.2.1", 1)


def test_an_answer_is_not_held_back_for_an_acknowledgement() -> None:
    """A connection that asyncio accepts sends small packets at once only if its protocol is TCP."""

    async def run() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock: socket.socket = writer.get_extra_info("socket")
            found.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as taken:
            server = await asyncio.start_server(accepted, sock=taken)
            _, writer = await asyncio.open_connection(*taken.getsockname())
            option = await found
            writer.close()
            server.close()
        return option

    assert asyncio.run(run())
