"""The seam to wherever bytes are kept: a narrow protocol over local files, WebDAV and fsspec.

The only file that touches fsspec and webdav4. It knows nothing of runs and checkpoints. Its rules:

- unknown is never empty: only a definite answer becomes `FileNotFoundError`; an outage is retried
  to a deadline and then raises `StoreError`. (fsspec's `exists()` answers False during an outage,
  which would make a trainer start from zero, so it is not used.)
- one layer of retries, that of failures.py; every call may be repeated.
- credentials are arguments and never part of a URL, a message or a repr.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import unquote, urlsplit

import httpx
from fsspec import core  # pyright: ignore[reportMissingTypeStubs]
from pydantic import SecretStr
from webdav4 import client as webdav  # pyright: ignore[reportMissingTypeStubs]

from tsgb.checkpoint.failures import HTTPFailure, StoreRetry, cannot_open
from tsgb.checkpoint.urls import canonical_url, local_path, server_of
from tsgb.errors import StoreError
from tsgb.types import Buffer

DEADLINE_SECONDS = 300.0
_CHUNK = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory.

    Example: `DirectoryEntry(name="guard.safetensors", size=52_344, is_dir=False)`
    """

    name: str
    size: int | None
    """Bytes; None for directories and where a server does not say."""
    is_dir: bool


class FileSystem(Protocol):
    """Bytes below one root URL. Paths are relative, separated by `/`; `""` is the root.

    Every method raises `FileNotFoundError` on definite absence, `StoreFull` when there is no space
    and `StoreError` for all else, after retrying what can heal.
    """

    @property
    def url(self) -> str:
        """The root, without credentials and without a slash at the end."""
        ...

    def read(self, path: str) -> bytes:
        """The whole file."""
        ...

    def write(self, path: str, data: Buffer) -> None:
        """Create or replace a file; missing parents are made."""
        ...

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        """What the directory holds, in the order of names."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; a missing one is fine, because a repeated request finds it missing."""
        ...

    def delete_dir(self, path: str) -> None:
        """Delete a directory with what is left in it; a missing one is fine."""
        ...


def open_filesystem(
    url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    transport: httpx.BaseTransport | None = None,
) -> FileSystem:
    """Open the store below a URL; no request is made yet.

    Args:
        url: A path, `file://`, `http(s)://` or `webdav+http(s)://` (both WebDAV), `memory://`, or
            any other URL that fsspec knows.
        user: For WebDAV.
        password: For WebDAV.
        deadline_seconds: How long one call goes on retrying what can heal, once the server has
            answered this process; see `FIRST_CONTACT_SECONDS` for the first call.
        sleep: Waits between two tries.
        transport: Carries the requests of a WebDAV store; None for the network.

    Raises:
        StoreError: Nothing can open such a URL.
    """
    url = canonical_url(url)
    root = local_path(url)
    if root is not None:
        return _LocalFiles(url, root, StoreRetry(deadline_seconds, sleep))
    retries = StoreRetry(deadline_seconds, sleep, server_of(url))
    scheme = urlsplit(url).scheme.lower()
    if scheme.removeprefix("webdav+") in {"http", "https"}:
        return _WebDAVFiles(url, user, password, retries, transport)
    if scheme in {"webdav", "dav"}:
        raise StoreError(f"store URL {url} does not say how to connect: write webdav+https://...")
    return _FsspecFiles(url, retries)


class _LocalFiles:
    """Files of this machine; a reader never sees half of one."""

    def __init__(self, url: str, root: Path, retries: StoreRetry) -> None:
        self.url = url
        self._root = root
        self._retries = retries

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _call(self, path: str, operation: Callable[[Path], _T]) -> _T:
        target = self._root / path
        return self._retries(str(target), lambda: operation(target))

    def read(self, path: str) -> bytes:
        return self._call(path, Path.read_bytes)

    def write(self, path: str, data: Buffer) -> None:
        try:
            self._call(path, lambda target: _write_atomically(target, data))
        except FileNotFoundError as error:
            # No answer to a write: a place like /proc, or the store was deleted just now.
            raise StoreError(
                f"{self._root / path} cannot be created: choose another store"
            ) from error

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        def scan(target: Path) -> Sequence[DirectoryEntry]:
            with os.scandir(target) as found:
                # What a killed process left half written is nobody's file.
                seen = [item for item in found if not item.name.endswith(".tmp")]
            return sorted((_local_entry(item) for item in seen), key=lambda entry: entry.name)

        return self._call(path, scan)

    def delete(self, path: str) -> None:
        self._call(path, lambda target: target.unlink(missing_ok=True))

    def delete_dir(self, path: str) -> None:
        def remove(target: Path) -> None:
            if target.exists():
                shutil.rmtree(target)

        self._call(path, remove)


def _local_entry(item: os.DirEntry[str]) -> DirectoryEntry:
    is_dir = item.is_dir()
    return DirectoryEntry(item.name, None if is_dir else item.stat().st_size, is_dir)


def _write_atomically(target: Path, data: Buffer) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The name is as much data as the bytes are.
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class _WebDAVFiles:
    """WebDAV through the few doors of webdav4 that neither lose data nor hang.

    Not through its fsspec class: that one keeps the password in `storage_options`, stats before
    each read, and repeats a failed upload from `__del__`.
    """

    def __init__(
        self,
        url: str,
        user: str | None,
        password: SecretStr | None,
        retries: StoreRetry,
        transport: httpx.BaseTransport | None,
    ) -> None:
        parts = urlsplit(url.removeprefix("webdav+"))
        self.url = url
        self._root = unquote(parts.path).strip("/")
        self._retries = retries
        secret = "" if password is None else password.get_secret_value()
        self._client = webdav.Client(
            f"{parts.scheme}://{parts.netloc}",
            auth=None if user is None else (user, secret),
            retry=False,  # one layer of retries: ours
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _call(self, path: str, operation: Callable[[str], _T]) -> _T:
        def translated() -> _T:
            self._client.http.timeout = self._retries.timeout
            try:
                return operation(f"{self._root}/{path}".strip("/"))
            except Exception as error:
                status = _http_status(error)
                if status is None:
                    raise
                raise HTTPFailure(status) from error

        return self._retries(f"{self.url}/{path}".rstrip("/"), translated)

    def read(self, path: str) -> bytes:
        # One GET for the whole file: webdav4's own download resumes without If-Range, so that a
        # file replaced meanwhile comes back as half old, half new.
        return self._call(path, lambda target: self._client.request("GET", target).content)

    def write(self, path: str, data: Buffer) -> None:
        def put(target: str) -> None:
            size = {"Content-Length": str(len(data))}
            done = self._client.request("PUT", target, content=_chunks(data), headers=size)
            done.raise_for_status()

        def put_below_parents(target: str) -> None:
            try:
                put(target)
            except Exception as error:
                # nginx answers 500 where a parent is missing; in an outage mkdir fails alike.
                if _http_status(error) not in {404, 409, 500}:
                    raise
                self._make_dirs(target.rpartition("/")[0])
                put(target)

        self._call(path, put_below_parents)

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        return self._call(path, self._entries)

    def _entries(self, target: str) -> Sequence[DirectoryEntry]:
        answer = self._client.propfind(target, headers={"Depth": "1"}, follow_redirects=True)
        found = sorted(answer.responses.values(), key=lambda item: item.path_norm)
        # The shortest address is the directory itself, also behind a proxy that rewrites paths.
        own, *children = found
        if own.status_code is not None and own.status_code >= 400:
            raise httpx.RemoteProtocolError(f"status {own.status_code} inside the listing")
        if not own.properties.collection:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", target)
        return [
            DirectoryEntry(
                item.path_norm.rpartition("/")[2],
                None if item.properties.collection else item.properties.content_length,
                bool(item.properties.collection),
            )
            for item in children
        ]

    def _make_dirs(self, target: str) -> None:
        # From the bottom up: directories above one's own are often forbidden to touch.
        try:
            self._client.mkdir(target)
        except webdav.ResourceAlreadyExists:
            return
        except (webdav.ResourceConflict, webdav.ResourceNotFound):
            parent = target.rpartition("/")[0]
            if not parent:
                raise
            self._make_dirs(parent)
            self._make_dirs(target)

    def delete(self, path: str) -> None:
        self._delete(path, is_dir=False)

    def delete_dir(self, path: str) -> None:
        self._delete(path, is_dir=True)

    def _delete(self, path: str, *, is_dir: bool) -> None:
        def delete(target: str) -> None:
            # nginx refuses to delete a directory whose address lacks the slash.
            self._client.request("DELETE", target, add_trailing_slash=is_dir)

        with suppress(FileNotFoundError):
            self._call(path, delete)


def _chunks(data: Buffer) -> Iterator[bytes]:
    """A buffer in pieces; in one it would be copied whole."""
    return (bytes(data[start : start + _CHUNK]) for start in range(0, len(data), _CHUNK))


def _http_status(error: Exception) -> int | None:
    """webdav4 has a class for some statuses, and leaks httpx's errors for others."""
    if isinstance(error, webdav.HTTPError):
        return int(error.status_code)
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    meaning = {
        webdav.ResourceNotFound: 404,
        webdav.InsufficientStorage: 507,
        webdav.BadGatewayError: 502,
        webdav.ResourceLocked: 423,
        webdav.ResourceConflict: 409,
        webdav.ForbiddenOperation: 403,
        webdav.MultiStatusError: 500,  # a part of the request failed; it may be repeated
    }
    return next((status for kind, status in meaning.items() if isinstance(error, kind)), None)


class _AnyFileSystem(Protocol):
    """What we use of fsspec, which ships no types."""

    def cat_file(self, path: str) -> bytes: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...
    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]: ...
    def rm_file(self, path: str) -> None: ...
    def rm(self, path: str, recursive: bool = False) -> None: ...
    def invalidate_cache(self) -> None: ...


class _FsspecFiles:
    """Any other URL that fsspec knows."""

    def __init__(self, url: str, retries: StoreRetry) -> None:
        self.url = url
        self._retries = retries
        try:
            opened = cast("Any", core).url_to_fs(url, skip_instance_cache=True)
        except (ValueError, ImportError, TypeError, OSError) as error:
            raise cannot_open(url, error) from error
        self._fs, self._root = cast("tuple[_AnyFileSystem, str]", opened)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _call(self, path: str, operation: Callable[[str], _T]) -> _T:
        target = f"{self._root.rstrip('/')}/{path}".rstrip("/")
        return self._retries(f"{self.url}/{path}".rstrip("/"), lambda: operation(target))

    def read(self, path: str) -> bytes:
        return self._call(path, self._fs.cat_file)

    def write(self, path: str, data: Buffer) -> None:
        def put(target: str) -> None:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, bytes(data))

        self._call(path, put)

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        return self._call(path, self._entries)

    def _entries(self, target: str) -> Sequence[DirectoryEntry]:
        self._fs.invalidate_cache()  # other processes write here too
        found: list[DirectoryEntry] = []
        for item in self._fs.ls(target, detail=True):
            name = str(item["name"]).rstrip("/")
            is_dir = item["type"] == "directory"
            if name.strip("/") == target.strip("/"):
                if is_dir:
                    continue  # some object stores list the directory in itself
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", target)
            size = None if is_dir or item.get("size") is None else int(item["size"])
            found.append(DirectoryEntry(name.rpartition("/")[2], size, is_dir))
        return sorted(found, key=lambda entry: entry.name)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call(path, self._fs.rm_file)

    def delete_dir(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call(path, lambda target: self._fs.rm(target, recursive=True))
