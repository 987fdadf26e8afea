"""The seam to wherever bytes are kept: a narrow protocol over local files, WebDAV and fsspec.

The only file that touches fsspec and webdav4, and the only place where a store's errors are
classified. It knows nothing of runs and checkpoints. Three rules:

- unknown is never empty: only a definite answer becomes `FileNotFoundError`; an outage is retried
  to a deadline and then raises `StoreError`. (fsspec's `exists()` answers False during an outage,
  which would make a trainer start from zero, so it is not used.)
- one layer of retries, here; its jitter comes from the operating system, because tenacity's own
  draws from the global `random` and so would change what a training run samples.
- credentials are arguments and never part of a URL, a message or a repr.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

from tsgb.errors import StoreError, StoreFull

DEADLINE_SECONDS = 300.0
_TIMEOUT = httpx.Timeout(connect=10, read=300, write=60, pool=60)
_CREDENTIALS = "set RCLONE_WEBDAV_USER and RCLONE_WEBDAV_PASS"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_TRANSIENT_STATUS = frozenset({408, 423, 425, 429})
_PERMANENT_SERVER_STATUS = frozenset({501, 505})
_TRANSIENT_ERRNO = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory.

    Example: `Entry(name="guard.safetensors", size=52_344, is_dir=False)`
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

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; missing parents are made."""
        ...

    def entries(self, path: str) -> Sequence[Entry]:
        """What the directory holds, in the order of names."""
        ...

    def make_dirs(self, path: str) -> None:
        """Make the directory and its parents; an existing one is fine."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; a missing one is fine, because a repeated request finds it missing."""
        ...

    def delete_dir(self, path: str) -> None:
        """Delete a directory with what is left in it; a missing one is fine."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...


def canonical_url(url: str) -> str:
    """The form of a store URL that is kept in records: no slash at the end, paths absolute.

    Raises:
        StoreError: The URL holds a password or a query, which would end up in logs.
    """
    if not (_SCHEME.match(url) or "::" in url):
        return str(Path(url).expanduser().absolute())
    parts = urlsplit(url)
    if parts.password is not None:
        raise StoreError(
            f"store URL {parts.scheme}://...@{parts.hostname}{parts.path} holds a password, which "
            f"would end up in logs: take it out and {_CREDENTIALS}"
        )
    if parts.scheme.endswith(("http", "https")) and (parts.query or parts.fragment):
        raise StoreError(
            f"store URL {parts.scheme}://{parts.hostname}{parts.path} goes on with a query or a "
            "fragment, so that no path can be appended: take it out"
        )
    stripped = url.rstrip("/")
    return f"{stripped}//" if stripped.endswith(":") else stripped


def local_path(url: str) -> Path | None:
    """The directory that a plain path or a `file://` URL names; None for any other URL."""
    url = canonical_url(url)
    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"}:
            raise StoreError(f"store URL {url} names a host: write file:///absolute/path")
        return Path(unquote(parts.path) or "/")
    return None if _SCHEME.match(url) or "::" in url else Path(url)


def open_filesystem(
    url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> FileSystem:
    """Open the store below a URL; no request is made yet.

    Args:
        url: A path, `file://`, `http(s)://` or `webdav+http(s)://` (both WebDAV), `memory://`, or
            any other URL that fsspec knows.
        user: For WebDAV.
        password: For WebDAV.
        deadline_seconds: How long one call goes on retrying what can heal.
        sleep: Waits between two tries.

    Raises:
        StoreError: Nothing can open such a URL.
    """
    url = canonical_url(url)
    retries = _Retries(deadline_seconds, sleep)
    root = local_path(url)
    if root is not None:
        return _LocalFiles(url, root, retries)
    scheme = urlsplit(url).scheme.lower()
    if scheme.removeprefix("webdav+") in {"http", "https"}:
        return _WebDAVFiles(url, user, password, retries)
    if scheme in {"webdav", "dav"}:
        raise StoreError(f"store URL {url} does not say how to connect: write webdav+https://...")
    return _FsspecFiles(url, retries)


class _TransientError(Exception):
    """May heal; the message is the reason in words."""


def _wait_seconds(state: RetryCallState) -> float:
    """Full jitter, 0.25 s doubling up to 20 s, from the operating system's generator."""
    return SystemRandom().uniform(0, min(20.0, 0.25 * 2 ** min(state.attempt_number, 10)))


@dataclass(frozen=True, slots=True)
class _Retries:
    deadline_seconds: float
    sleep: Callable[[float], None]

    def __call__(self, where: str, operation: Callable[[], _T]) -> _T:
        def classified() -> _T:
            try:
                return operation()
            except Exception as error:
                raise _classify(error, where) from error

        retrying = Retrying(
            sleep=self.sleep,
            stop=stop_before_delay(self.deadline_seconds),
            wait=_wait_seconds,
            retry=retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            return retrying(classified)
        except _TransientError as error:
            raise StoreError(
                f"{where} cannot be reached: {error}; gave up after retrying for "
                f"{self.deadline_seconds:g} s. Check the address and the server, then start again"
            ) from error


def _classify(error: Exception, where: str) -> Exception:
    """Turn whatever a backend raises into one of the four kinds that the seam promises."""
    status = _http_status(error)
    if status is not None:
        return _classify_status(status, where)
    if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
        return _TransientError(f"{type(error).__name__}: {error}")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such file or directory in the store", where)
    if isinstance(error, OSError):
        return _classify_os(error, where)
    return StoreError(
        f"{where} gave an answer that makes no sense ({type(error).__name__}: "
        f"{_one_line(error)}): check that the URL is a store of a kind that TSGB knows"
    )


def _http_status(error: Exception) -> int | None:
    from webdav4 import client as webdav  # pyright: ignore[reportMissingTypeStubs]

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
        webdav.MultiStatusError: 500,  # a part of the request failed; every one of ours is repeatable
    }
    return next((code for kind, code in meaning.items() if isinstance(error, kind)), None)


def _classify_status(status: int, where: str) -> Exception:
    if status in {404, 410}:
        return FileNotFoundError(errno.ENOENT, "no such file or directory in the store", where)
    if status == 507:
        return StoreFull(f"{where}: no space left on the server (HTTP 507): free some, go on")
    if status == 401:
        return StoreError(f"{where}: user or password refused (HTTP 401): {_CREDENTIALS}")
    if status == 403:
        return StoreError(f"{where}: this user may not do that (HTTP 403): grant read and write")
    if status == 413:
        return StoreError(f"{where}: too large for the server (HTTP 413): raise its body limit")
    if status in _TRANSIENT_STATUS or (status >= 500 and status not in _PERMANENT_SERVER_STATUS):
        return _TransientError(f"HTTP {status}")
    return StoreError(f"{where}: refused with HTTP {status}: check that this is a WebDAV directory")


def _classify_os(error: OSError, where: str) -> Exception:
    reason = error.strerror or _one_line(error) or type(error).__name__
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(f"{where}: no space left ({reason}): free some, then go on")
    if isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _TRANSIENT_ERRNO:
        return _TransientError(reason)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StoreError(
            f"{where}: {reason}: TSGB must read and write there; choose another store"
        )
    return StoreError(f"{where}: {reason}: check the path")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _LocalFiles:
    """Files of this machine; a reader never sees half of one."""

    def __init__(self, url: str, root: Path, retries: _Retries) -> None:
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

    def write(self, path: str, data: bytes) -> None:
        self._call(path, lambda target: _write_atomically(target, data))

    def entries(self, path: str) -> Sequence[Entry]:
        def scan(target: Path) -> Sequence[Entry]:
            with os.scandir(target) as found:
                # What a killed process left half written is nobody's file.
                seen = [item for item in found if not item.name.endswith(".tmp")]
            return sorted((_local_entry(item) for item in seen), key=lambda entry: entry.name)

        return self._call(path, scan)

    def make_dirs(self, path: str) -> None:
        self._call(path, lambda target: target.mkdir(parents=True, exist_ok=True))

    def delete(self, path: str) -> None:
        self._call(path, lambda target: target.unlink(missing_ok=True))

    def delete_dir(self, path: str) -> None:
        def remove(target: Path) -> None:
            if target.exists():
                shutil.rmtree(target)

        self._call(path, remove)

    def size(self, path: str) -> int:
        return self._call(path, lambda target: target.stat().st_size)


def _local_entry(item: os.DirEntry[str]) -> Entry:
    is_dir = item.is_dir()
    return Entry(item.name, None if is_dir else item.stat().st_size, is_dir)


def _write_atomically(target: Path, data: bytes) -> None:
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
        self, url: str, user: str | None, password: SecretStr | None, retries: _Retries
    ) -> None:
        from webdav4.client import Client  # pyright: ignore[reportMissingTypeStubs]

        parts = urlsplit(url.removeprefix("webdav+"))
        self.url = url
        self._root = unquote(parts.path).strip("/")
        self._retries = retries
        secret = "" if password is None else password.get_secret_value()
        self._client = Client(
            f"{parts.scheme}://{parts.netloc}",
            auth=None if user is None else (user, secret),
            retry=False,  # one layer of retries: ours
            timeout=_TIMEOUT,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _call(self, path: str, operation: Callable[[str], _T]) -> _T:
        where = f"{self.url}/{path}".rstrip("/")
        return self._retries(where, lambda: operation(f"{self._root}/{path}".strip("/")))

    def read(self, path: str) -> bytes:
        # One GET for the whole file: webdav4's own download resumes without If-Range, so that a
        # file replaced meanwhile comes back as half old, half new.
        return self._call(path, lambda target: self._client.request("GET", target).content)

    def write(self, path: str, data: bytes) -> None:
        def put(target: str) -> None:
            self._client.upload_fileobj(io.BytesIO(data), target, overwrite=True, size=len(data))

        def put_below_parents(target: str) -> None:
            try:
                put(target)
            except Exception as error:
                if _http_status(error) not in {404, 409}:
                    raise
                self._make_dirs(target.rpartition("/")[0])
                put(target)

        self._call(path, put_below_parents)

    def entries(self, path: str) -> Sequence[Entry]:
        return self._call(path, self._entries)

    def _entries(self, target: str) -> Sequence[Entry]:
        answer = self._client.propfind(target, headers={"Depth": "1"}, follow_redirects=True)
        found = sorted(answer.responses.values(), key=lambda item: item.path_norm)
        # The shortest address is the directory itself, also behind a proxy that rewrites paths.
        own, *children = found
        if own.status_code is not None and own.status_code >= 400:
            raise httpx.RemoteProtocolError(f"status {own.status_code} inside the listing")
        if not own.properties.collection:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", target)
        return [
            Entry(
                item.path_norm.rpartition("/")[2],
                None if item.properties.collection else item.properties.content_length,
                bool(item.properties.collection),
            )
            for item in children
        ]

    def make_dirs(self, path: str) -> None:
        self._call(path, self._make_dirs)

    def _make_dirs(self, target: str) -> None:
        # From the bottom up: directories above one's own are often forbidden to touch.
        from webdav4 import client as webdav  # pyright: ignore[reportMissingTypeStubs]

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

        try:
            self._call(path, delete)
        except FileNotFoundError:
            return

    def size(self, path: str) -> int:
        return self._call(path, self._size)

    def _size(self, target: str) -> int:
        answer = self._client.request("HEAD", target)
        return int(answer.headers["Content-Length"])


class _AnyFileSystem(Protocol):
    """What we use of fsspec, which ships no types."""

    def cat_file(self, path: str) -> bytes: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...
    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]: ...
    def rm_file(self, path: str) -> None: ...
    def rm(self, path: str, recursive: bool = False) -> None: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def invalidate_cache(self) -> None: ...


class _FsspecFiles:
    """Any other URL that fsspec knows."""

    def __init__(self, url: str, retries: _Retries) -> None:
        from fsspec import core  # pyright: ignore[reportMissingTypeStubs]

        self.url = url
        self._retries = retries
        try:
            opened = cast("Any", core).url_to_fs(url, skip_instance_cache=True)
        except (ValueError, ImportError, TypeError) as error:
            raise StoreError(
                f"store URL {url} cannot be opened ({_one_line(error)}): use a path, file://, "
                "webdav+https:// or a protocol whose fsspec package is installed"
            ) from error
        self._fs, self._root = cast("tuple[_AnyFileSystem, str]", opened)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _call(self, path: str, operation: Callable[[str], _T]) -> _T:
        target = f"{self._root.rstrip('/')}/{path}".rstrip("/")
        return self._retries(f"{self.url}/{path}".rstrip("/"), lambda: operation(target))

    def read(self, path: str) -> bytes:
        return self._call(path, self._fs.cat_file)

    def write(self, path: str, data: bytes) -> None:
        def put(target: str) -> None:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, data)

        self._call(path, put)

    def entries(self, path: str) -> Sequence[Entry]:
        return self._call(path, self._entries)

    def _entries(self, target: str) -> Sequence[Entry]:
        self._fs.invalidate_cache()  # other processes write here too
        found: list[Entry] = []
        for item in self._fs.ls(target, detail=True):
            name = str(item["name"]).rstrip("/")
            is_dir = item["type"] == "directory"
            if name.strip("/") == target.strip("/"):
                if is_dir:
                    continue  # some object stores list the directory in itself
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", target)
            size = None if is_dir or item.get("size") is None else int(item["size"])
            found.append(Entry(name.rpartition("/")[2], size, is_dir))
        return sorted(found, key=lambda entry: entry.name)

    def make_dirs(self, path: str) -> None:
        self._call(path, lambda target: self._fs.makedirs(target, exist_ok=True))

    def delete(self, path: str) -> None:
        try:
            self._call(path, self._fs.rm_file)
        except FileNotFoundError:
            return

    def delete_dir(self, path: str) -> None:
        try:
            self._call(path, lambda target: self._fs.rm(target, recursive=True))
        except FileNotFoundError:
            return

    def size(self, path: str) -> int:
        return self._call(path, lambda target: int(self._fs.info(target)["size"]))
