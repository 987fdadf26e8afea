"""A Hugging Face Hub on loopback: repositories with one commit, gated ones, and its refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants


@dataclass(slots=True)
class HubServer:
    """Repositories by name, and what was asked."""

    url: str
    """Address, what `HF_ENDPOINT` names."""
    models: dict[str, Path] = field(default_factory=dict[str, Path])
    """Directory with the files of each repository."""
    gated: set[str] = field(default_factory=set[str])
    """Repositories whose files need a token of `members`."""
    private: set[str] = field(default_factory=set[str])
    """Repositories that do not exist without a token of `members`."""
    tokens: set[str] = field(default_factory=set[str])
    """Tokens of accounts."""
    members: set[str] = field(default_factory=set[str])
    """Tokens of accounts that may read everything."""
    broken: int = 0
    """Status of every answer, if not 0. A client that wants a file asks again for half a minute
    after 503, and not after 501."""
    asked: list[str] = field(default_factory=list[str])
    """Method and path of each request, with ` +token` where it had one."""

    def commit(self, repository: str) -> str:
        """Name of the one commit of a repository."""
        return hashlib.sha1(repository.encode()).hexdigest()  # noqa: S324 - as git does

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        words = path.strip("/").split("/")
        api = words[:2] == ["api", "models"]
        owner, name, kind, revision, *rest = [*(words[2:] if api else words), "", "main", ""]
        repository = f"{owner}/{name}"
        if refusal := self._refusal(repository, revision, token, api=api):
            return refusal
        commit = self.commit(repository)
        files = {path.name: path.read_bytes() for path in self.models[repository].iterdir()}
        if api and kind == "tree":
            content: object = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in sorted(files.items())
            ]
            return 200, {}, json.dumps(content).encode()
        if api:
            content = {
                "id": repository,
                "sha": commit,
                "siblings": [{"rfilename": n} for n in files],
            }
            return 200, {}, json.dumps(content).encode()
        if rest[0] not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = files[rest[0]]
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_oid(data)}"'}, data

    def _refusal(
        self, repository: str, revision: str, token: str | None, *, api: bool
    ) -> tuple[int, dict[str, str], bytes] | None:
        """What the hub answers to somebody who may not see that."""
        hidden = repository in self.private and token not in self.members
        if self.broken:
            return self.broken, {}, b""
        if token is not None and token not in self.tokens | self.members:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if repository not in self.models or hidden:
            return 401 if token is None else 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in {"main", self.commit(repository)}:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if not api and repository in self.gated and token not in self.members:
            return 401 if token is None else 403, {"X-Error-Code": "GatedRepo"}, b""
        return None


@contextmanager
def hub_server() -> Generator[HubServer]:
    """A server for one test."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            authorization = self.headers.get("authorization")
            token = authorization.removeprefix("Bearer ") if authorization else None
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}{' +token' if token else ''}")
            status, headers, data = hub.answer(path, token)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    offline = constants.HF_HUB_OFFLINE  # as it was when this process imported the library
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = HubServer(f"http://127.0.0.1:{server.server_address[1]}")
        Thread(target=server.serve_forever, daemon=True).start()
        constants.HF_HUB_OFFLINE = False
        yield hub
        constants.HF_HUB_OFFLINE = offline
        server.shutdown()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()  # noqa: S324 - as git does
