"""A process dies at any request to a real WebDAV server, in the worst way that the wire allows.

An upload is cut half way, and the server keeps the half under its final name; anything else is
done, but the process is dead before it hears so.
"""

from __future__ import annotations

import shutil
import socket
from itertools import count
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes.checkpoints import content, open_store, publish, writer
from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.filesystems import Killed
from tsgb.checkpoint.filesystem import FileSystem, open_filesystem

pytestmark = pytest.mark.integration


class Mortal(httpx.HTTPTransport):
    """The network, until the process dies at a request."""

    def __init__(self, num_requests: int) -> None:
        super().__init__()
        self.left = num_requests

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.left -= 1
        if self.left > 0:
            return super().handle_request(request)
        if request.method == "PUT":
            cut_half_way(request)
        else:
            super().handle_request(request).close()
        raise Killed


def cut_half_way(request: httpx.Request) -> None:
    """Send the head and half of the body, then vanish."""
    body = request.read()
    lines = [f"PUT {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    with socket.create_connection((request.url.host, request.url.port or 80)) as connection:
        connection.sendall(head + body[: len(body) // 2])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):  # until the server is through with it
            pass


def opened(url: str, transport: httpx.BaseTransport | None = None) -> FileSystem:
    return open_filesystem(url, USER, SecretStr(PASSWORD), deadline_seconds=10, transport=transport)


def test_any_prefix_of_the_requests_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    seen: set[int] = set()
    torn = 0
    with serve(dav_app(tmp_path)) as url:
        publish(writer(opened(f"{url}/before")), 6, 7)
        for num_requests in count(1):
            run = f"r{num_requests}"
            shutil.copytree(tmp_path / "before", tmp_path / run)
            try:
                store = writer(opened(f"{url}/{run}", Mortal(num_requests)))
                assert store.newest_valid(pytest.fail) is not None
                publish(store, 8)
                store.prune(keep=1)
            except Killed:
                skipped: list[str] = []
                found = open_store(opened(f"{url}/{run}")).newest_valid(skipped.append)
                assert found is not None, f"after {num_requests} requests"
                assert found[1] == content(found[0].step), f"after {num_requests} requests"
                seen.add(found[0].step)
                torn += any("damaged" in line for line in skipped)
                continue
            break
    assert num_requests > 30
    assert seen == {7, 8}
    assert torn, "a manifest was cut half way"
