"""Bytes below one root URL: a narrow protocol over local files, WebDAV and fsspec.

The only file that touches fsspec and webdav4. It knows nothing of runs and checkpoints. Its rules:

- unknown is never empty: only a definite answer becomes `FileNotFoundError`; an outage is retried
  to a deadline and then raises `StoreError`. (fsspec's `exists()` answers False during an outage,
  which would make a trainer start from zero, so it is not used.)
- every path is checked: whatever a document in the store says, nothing outside the root is read or
  written, and foreign files in a directory are ignored (`is_name`).
- one layer of retries, that of failures.py; every call may be repeated.
- credentials are arguments and never part of a URL, a message or a repr.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import httpx
from fsspec import core  # pyright: ignore[reportMissingTypeStubs]
from pydantic import SecretStr
from webdav4 import multistatus  # pyright: ignore[reportMissingTypeStubs]

from tsgb.checkpoint.failures import HTTPFailure, StoreRetry, cannot_open
from tsgb.checkpoint.urls import canonical_url, check_path, is_name, local_path, server_of
from tsgb.errors import StoreError
from tsgb.types import Buffer

DEADLINE_SECONDS = 300.0
"""Seconds for which one call goes on retrying what can heal."""
_CHUNK = 1 << 20
_BUSY = frozenset({408, 425, 429, 503, 504})
"""Statuses after which a copy may still be made: it is asked for again."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_T = TypeVar("_T")


class FileTooLargeError(StoreError):
    """A file has more bytes than its reader accepts."""


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory.

    Example: `DirectoryEntry(name="guard.safetensors", size=52_344, is_dir=False)`
    """

    name: str
    """File or directory name, without a path."""
    size: int | None
    """Size in bytes; None for directories and where the store does not tell."""
    is_dir: bool
    """Whether it is surely a directory."""


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A file below the root of a store, for a copy that is made where both are.

    Example: `FileAddress("https://dav.example.org/tsgb/r1", "parts/1f2e-a0003-0001b2c4")`
    """

    root: str
    """Root of the store, as `FileSystem.url`."""
    path: str
    """Path below it."""

    @property
    def url(self) -> str:
        """URL of the file.

        Raises:
            StoreError: The path is refused, see `check_path`.
        """
        return f"{self.root}/{check_path(self.path)}"


class FileSystem(Protocol):
    """Bytes below one root URL. Paths are relative, separated by `/`; `""` is the root.

    Every method raises `FileNotFoundError` on definite absence, `StoreFull` when there is no space
    and `StoreError` for all else, such as a path that `check_path` refuses, after retrying what can
    heal.
    """

    @property
    def url(self) -> str:
        """The root, without credentials and without a slash at the end."""
        ...

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """Return the whole file.

        Raises:
            FileTooLargeError: It has more than `max_bytes`; no more than that was read.
        """
        ...

    def write(self, path: str, data: Buffer) -> None:
        """Create or replace a file; missing parents are made."""
        ...

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        """Return what the directory holds, in the order of names, without foreign files."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; a missing one is fine, because a repeated request finds it missing."""
        ...

    def delete_dir(self, path: str) -> None:
        """Delete a directory with what is left in it; a missing one is fine."""
        ...

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        """Have a file copied where it is, by this store's server and with its credentials.

        Args:
            source: The file, below this root or another one.
            target: Likewise its copy; missing parents are made.

        Returns:
            Whether it says so, which proves nothing of the bytes; False if it does not do that, or
            the file is not there.
        """
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
        user: User name for WebDAV.
        password: Password for WebDAV.
        deadline_seconds: Seconds for which one call goes on retrying what can heal, once the server
            has answered this process; see `FIRST_CONTACT_SECONDS` for the first call.
        sleep: Waits so many seconds between two tries.
        transport: Carries the requests of a WebDAV store; None for the network.

    Raises:
        StoreError: Nothing can open such a URL.
    """
    url = canonical_url(url)
    root = local_path(url)
    if root is not None:
        return _LocalFiles(url, root, StoreRetry(deadline_seconds, sleep))
    retry = StoreRetry(deadline_seconds, sleep, server_of(url))
    scheme = urlsplit(url).scheme.lower()
    if scheme.removeprefix("webdav+") in {"http", "https"}:
        return _WebDAVFiles(url, user, password, retry, transport)
    if scheme in {"webdav", "dav"}:
        raise StoreError(f"store URL {url} does not say how to connect: write webdav+https://...")
    return _FsspecFiles(url, retry)


class _Files:
    """The part that all backends share: no file is reached but by a path that was checked."""

    def __init__(self, url: str, retry: StoreRetry) -> None:
        self.url = url
        self._retry = retry

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _call(self, path: str, operation: Callable[[str], _T]) -> _T:
        """Run an operation on a path below the root, and again while it may heal."""
        return self._retry(self._where(check_path(path)), lambda: operation(path))

    def _where(self, path: str) -> str:
        return f"{self.url}/{path}".rstrip("/")

    def _too_large(self, path: str, max_bytes: int) -> FileTooLargeError:
        return FileTooLargeError(
            f"{self._where(path)} has more than {max_bytes} bytes, which is too much for what it "
            "should be: delete it or write it again"
        )


class _LocalFiles(_Files):
    """Files of this machine; a reader never sees half of one."""

    def __init__(self, url: str, root: Path, retry: StoreRetry) -> None:
        super().__init__(url, retry)
        self._root = root

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        def read(path: str) -> bytes:
            target = self._root / path
            try:
                with target.open("rb") as file:
                    data = file.read() if max_bytes is None else file.read(max_bytes + 1)
            except FileNotFoundError:
                _check_links(target)
                raise
            if max_bytes is not None and len(data) > max_bytes:
                raise self._too_large(path, max_bytes)
            return data

        return self._call(path, read)

    def write(self, path: str, data: Buffer) -> None:
        try:
            self._call(path, lambda path: write_atomically(self._root / path, data))
        except FileNotFoundError as error:
            # No answer to a write: a place like /proc, or the store was deleted just now.
            raise StoreError(
                f"{self._root / path} cannot be created: choose another store"
            ) from error

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        def scan(path: str) -> Sequence[DirectoryEntry]:
            target = self._root / path
            try:
                with os.scandir(target) as found:
                    # Temporary files of `write_atomically` have foreign names too.
                    seen = [item for item in found if is_name(item.name)]
            except FileNotFoundError:
                _check_links(target)
                raise
            return sorted(map(_local_entry, seen), key=lambda entry: entry.name)

        return self._call(path, scan)

    def delete(self, path: str) -> None:
        self._call(path, lambda path: (self._root / path).unlink(missing_ok=True))

    def delete_dir(self, path: str) -> None:
        def remove(path: str) -> None:
            if (self._root / path).exists():
                shutil.rmtree(self._root / path)

        self._call(path, remove)

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        here, there = local_path(source.url), local_path(target.url)
        if here is None or there is None or not here.is_file():
            return False
        # The bytes pass through memory, where whoever asked for a copy wants them too.
        self._retry(target.url, lambda: write_atomically(there, here.read_bytes()))
        return True


def _local_entry(item: os.DirEntry[str]) -> DirectoryEntry:
    try:
        is_dir = item.is_dir()
        return DirectoryEntry(item.name, None if is_dir else item.stat().st_size, is_dir)
    except OSError:
        # Its name is known; that it cannot be looked at says nothing about the directory.
        return DirectoryEntry(item.name, None, is_dir=False)


def _check_links(target: Path) -> None:
    """Refuse to call a path absent that a symbolic link leads to.

    Raises:
        StoreError: The path, or a directory above it, is a link to nowhere, such as a disk that is
            not mounted.
    """
    for path in (target, *target.parents):
        if path.is_symlink() and not path.exists():
            raise StoreError(
                f"{path} is a link to {path.readlink()}, which is not there: mount or restore it, "
                "or delete the link"
            )


def write_atomically(target: Path, data: Buffer, *, mode: int = 0o666) -> None:
    """Write a file of this machine whole or not at all, and the directories above it.

    Args:
        target: the file; what it was before is replaced, its mode too.
        data: its content.
        mode: its mode, without what the umask takes away.

    Raises:
        OSError: It cannot be written; the file is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(mode, exist_ok=False)
        with temporary.open("wb") as file:
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


class _WebDAVFiles(_Files):
    """WebDAV over httpx, with webdav4's parser of listings.

    Neither webdav4's client nor its fsspec class: they cannot ask for a name with `#` or `?`,
    resume a download of a file that was replaced meanwhile, stat before each read, keep the
    password in `storage_options`, and repeat a failed upload from `__del__`.
    """

    def __init__(
        self,
        url: str,
        user: str | None,
        password: SecretStr | None,
        retry: StoreRetry,
        transport: httpx.BaseTransport | None,
    ) -> None:
        super().__init__(url, retry)
        self._root = httpx.URL(url.removeprefix("webdav+"))
        secret = "" if password is None else password.get_secret_value()
        self._client = httpx.Client(
            auth=None if user is None else httpx.BasicAuth(user, secret),
            transport=transport,
            # A proxy from the environment is never asked for a server of this machine.
            mounts={f"all://{host}": None for host in _LOOPBACK} if transport is None else None,
        )

    def _address(self, path: str) -> httpx.URL:
        # The root is kept as it was written, since "%23" and "#" differ; a path needs no quoting.
        return httpx.URL(f"{str(self._root).rstrip('/')}/{path}".rstrip("/"))

    @contextmanager
    def _request(
        self,
        method: str,
        address: httpx.URL,
        headers: Mapping[str, str] | None = None,
        content: Iterator[bytes] | None = None,
    ) -> Generator[httpx.Response]:
        """Send a request and yield its successful answer, whose body is yet to be read.

        Raises:
            HTTPFailure: The answer says that it was not done.
        """
        timeout = self._retry.timeout
        with self._client.stream(
            method, address, headers=headers, content=content, timeout=timeout
        ) as answer:
            _check_answer(answer)
            yield answer

    def _send(
        self,
        method: str,
        address: httpx.URL,
        headers: Mapping[str, str] | None = None,
        content: Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """Send a request and return its successful answer, read in full."""
        with self._request(method, address, headers, content) as answer:
            answer.read()
        if answer.status_code == 207 and method != "PROPFIND":
            try:
                multistatus.parse_multistatus_response(answer).raise_for_status()
            except multistatus.MultiStatusResponseError as error:
                raise HTTPFailure(500) from error  # a part of it failed; it may be repeated
        return answer

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        def get(path: str) -> bytes:
            data = bytearray()
            with self._request("GET", self._address(path)) as answer:
                for chunk in answer.iter_bytes():
                    data += chunk
                    # Counted here: the size that a header names may be a lie.
                    if max_bytes is not None and len(data) > max_bytes:
                        raise self._too_large(path, max_bytes)
            return bytes(data)

        return self._call(path, get)

    def write(self, path: str, data: Buffer) -> None:
        def put(path: str) -> None:
            size = {"Content-Length": str(len(data))}
            self._send("PUT", self._address(path), headers=size, content=_chunks(data))

        def put_below_parents(path: str) -> None:
            try:
                put(path)
            except HTTPFailure as error:
                # nginx answers 500 where a parent is missing; in an outage MKCOL fails alike.
                if error.status not in {404, 409, 500}:
                    raise
                self._make_dirs(_parent(self._address(path)))
                put(path)

        self._call(path, put_below_parents)

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        return self._call(path, self._entries)

    def _entries(self, path: str) -> Sequence[DirectoryEntry]:
        asked = self._address(path)
        depth = {"Depth": "1"}
        try:
            answer = self._send("PROPFIND", asked, headers=depth)
        except HTTPFailure as error:
            # Servers send a directory whose address lacks the slash to the one that has it.
            if not (isinstance(error, _Redirect) and error.path == f"{asked.path}/"):
                raise
            answer = self._send("PROPFIND", _with_slash(asked), headers=depth)
        found = multistatus.parse_multistatus_response(answer).responses
        own, children = _own_entry(asked.path.rstrip("/") or "/", found)
        if own is not None:
            if own.status_code is not None and own.status_code >= 400:
                raise httpx.RemoteProtocolError(f"status {own.status_code} inside the listing")
            if not own.properties.collection:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        entries = [
            DirectoryEntry(
                item.path_norm.rpartition("/")[2],
                None if item.properties.collection else item.properties.content_length,
                bool(item.properties.collection),
            )
            for item in children
        ]
        return sorted(
            (entry for entry in entries if is_name(entry.name)), key=lambda entry: entry.name
        )

    def _make_dirs(self, address: httpx.URL) -> None:
        # From the bottom up: directories above one's own are often forbidden to touch.
        try:
            self._send("MKCOL", _with_slash(address))
        except HTTPFailure as error:
            if error.status == 405:
                return  # it exists
            parent = _parent(address)
            if error.status not in {404, 409} or parent == address:
                raise
            self._make_dirs(parent)
            self._make_dirs(address)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call(path, lambda path: self._send("DELETE", self._address(path)))

    def delete_dir(self, path: str) -> None:
        # nginx refuses to delete a directory whose address lacks the slash.
        with suppress(FileNotFoundError):
            self._call(path, lambda path: self._send("DELETE", _with_slash(self._address(path))))

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        """See `FileSystem.copy`; the request is COPY (RFC 4918, section 9.8)."""
        if {server_of(one.url) for one in (source, target)} != {server_of(self.url)}:
            return False
        here, there = (httpx.URL(one.url.removeprefix("webdav+")) for one in (source, target))
        # Without its content, should somebody have put a directory in the place of the file.
        headers = {"Destination": str(there), "Overwrite": "T", "Depth": "0"}

        def copied(makes_parents: bool = True) -> bool:
            try:
                self._send("COPY", here, headers=headers)
            except HTTPFailure as error:
                if error.status in _BUSY:
                    raise
                if not makes_parents or error.status not in {404, 409, 500}:
                    return False
                with suppress(HTTPFailure):
                    self._make_dirs(_parent(there))
                    return copied(makes_parents=False)
                return False
            return True

        return self._retry(source.url, copied)


class _Redirect(HTTPFailure):
    """The server names another address instead of an answer."""

    def __init__(self, status: int, target: httpx.URL) -> None:
        # Neither user nor query is repeated: either may be secret.
        shown = target.copy_with(username="", password="", query=None, fragment=None)
        super().__init__(
            status,
            f"redirected to {shown} (HTTP {status}): if that is your store, give its address; a "
            "login page means that the address is not one of WebDAV",
        )
        self.path = target.path


def _check_answer(answer: httpx.Response) -> None:
    """Return if a request was done.

    Raises:
        HTTPFailure: Its answer says that it was not.
    """
    status = answer.status_code
    location = answer.headers.get("location")
    if 300 <= status < 400 and location is not None:
        raise _Redirect(status, answer.request.url.join(location))
    offered = answer.headers.get("www-authenticate", "").lower()
    if status == 401 and "digest " in offered and "basic " not in offered:
        raise HTTPFailure(
            status,
            "the server accepts Digest authentication only (HTTP 401), and TSGB sends Basic: allow "
            "Basic on the server, over https",
        )
    if not 200 <= status < 300:
        raise HTTPFailure(status)


def _with_slash(address: httpx.URL) -> httpx.URL:
    return address.copy_with(raw_path=address.raw_path.rstrip(b"/") + b"/")


def _parent(address: httpx.URL) -> httpx.URL:
    return address.copy_with(raw_path=address.raw_path.rstrip(b"/").rpartition(b"/")[0] or b"/")


def _own_entry(
    asked: str, found: Mapping[str, multistatus.Response]
) -> tuple[multistatus.Response | None, Sequence[multistatus.Response]]:
    """Return a listing's entry for the directory itself, if there is one, and all others.

    Args:
        asked: Path of the directory that was asked for, without a slash at the end.
        found: Entries by path.

    Raises:
        ValueError: The listing does not tell which directory it is of.
    """
    paths = sorted(found)
    if not paths:
        raise ValueError("the listing is empty, without the directory itself")
    own = asked if asked in found else None
    if own is None and any(path != f"{asked.rstrip('/')}/{_last(path)}" for path in paths):
        # A proxy that rewrites paths: all but the directory itself should lie below it.
        own = paths[0]
        if _last(own) != _last(asked) or any(path != f"{own}/{_last(path)}" for path in paths[1:]):
            raise ValueError(f"the listing is of {own}, not of {asked}")
    return found.get(own or ""), [found[path] for path in paths if path != own]


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _chunks(data: Buffer) -> Iterator[bytes]:
    """Yield a buffer in pieces; in one it would be copied whole."""
    return (bytes(data[start : start + _CHUNK]) for start in range(0, len(data), _CHUNK))


class _AnyFileSystem(Protocol):
    """The part of fsspec's interface that is used; it ships no types."""

    def cat_file(self, path: str) -> bytes: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...
    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]: ...
    def rm_file(self, path: str) -> None: ...
    def rm(self, path: str, recursive: bool = False) -> None: ...
    def cp_file(self, path1: str, path2: str) -> None: ...
    def invalidate_cache(self) -> None: ...


class _FsspecFiles(_Files):
    """Any other URL that fsspec knows."""

    def __init__(self, url: str, retry: StoreRetry) -> None:
        super().__init__(url, retry)
        try:
            opened = cast("Any", core).url_to_fs(url, skip_instance_cache=True)
        except (ValueError, ImportError, TypeError, OSError) as error:
            raise cannot_open(url, error) from error
        self._fs, self._root = cast("tuple[_AnyFileSystem, str]", opened)

    def _target(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}".rstrip("/")

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        def read(path: str) -> bytes:
            target = self._target(path)
            if max_bytes is not None and (self._fs.info(target).get("size") or 0) > max_bytes:
                raise self._too_large(path, max_bytes)
            return self._fs.cat_file(target)

        return self._call(path, read)

    def write(self, path: str, data: Buffer) -> None:
        def put(path: str) -> None:
            target = self._target(path)
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, bytes(data))

        self._call(path, put)

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        return self._call(path, self._entries)

    def _entries(self, path: str) -> Sequence[DirectoryEntry]:
        self._fs.invalidate_cache()  # other processes write here too
        target = self._target(path)
        found: list[DirectoryEntry] = []
        for item in self._fs.ls(target, detail=True):
            full = str(item["name"]).rstrip("/")
            is_dir = item["type"] == "directory"
            if full.strip("/") == target.strip("/"):
                if is_dir:
                    continue  # some object stores list the directory in itself
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", target)
            size = None if is_dir or item.get("size") is None else int(item["size"])
            if is_name(_last(full)):
                found.append(DirectoryEntry(_last(full), size, is_dir))
        return sorted(found, key=lambda entry: entry.name)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call(path, lambda path: self._fs.rm_file(self._target(path)))

    def delete_dir(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call(path, lambda path: self._fs.rm(self._target(path), recursive=True))

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        """See `FileSystem.copy`; only within one bucket or host."""
        if {urlsplit(one.url)[:2] for one in (source, target)} != {urlsplit(self.url)[:2]}:
            return False
        here, there = (cast("Any", core).url_to_fs(one.url)[1] for one in (source, target))
        try:
            self._fs.makedirs(there.rpartition("/")[0], exist_ok=True)
            self._fs.cp_file(here, there)
        except Exception:  # noqa: BLE001 - each kind of store says in its own way that it does not
            return False
        return True
