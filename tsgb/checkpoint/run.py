"""One run's directory in a store: its address, its documents, its local lock.

It knows the documents by their names only, and no checkpoint; store.py does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.documents import (
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    canonical_json,
    parse_json_object,
)
from tsgb.checkpoint.filesystem import (
    DEADLINE_SECONDS,
    FileAddress,
    FileSystem,
    FileTooLargeError,
    open_filesystem,
)
from tsgb.checkpoint.layout import CLAIMS, FencingToken, parse_attempt_document
from tsgb.checkpoint.urls import canonical_url, check_run_id, local_path
from tsgb.errors import StoreError, UsageError
from tsgb.types import Buffer

_SIGNATURE = ".hmac"
_READS = 3
_PAUSE_SECONDS = 0.2


class RunStore:
    """The documents of one run, by name: `config.json`, `lease.json`, `heartbeats/0003.json` ...

    Absence raises `FileNotFoundError` and is always definite; see filesystem.py for the rest.
    Writing replaces. On a WebDAV server a replaced document may be read half, so reading JSON
    tries again before it gives up; on a local disk replacement is atomic.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        run_url: str,
        *,
        manifest_key: SecretStr | None = None,
        cache: FileCache | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open a run; nothing is read or written yet.

        Args:
            filesystem: The run's directory.
            run_url: URL of that directory; its last part is the run's id.
            manifest_key: Signs the manifests of this run; None where they are not signed.
            cache: Keeps files of checkpoints on this machine; None where every read goes to the
                store.
            sleep: Waits so many seconds between two reads of a damaged document.
        """
        self.filesystem = filesystem
        self.manifest_key = manifest_key
        self.cache = cache
        self.run_url = canonical_url(run_url)
        self.run_id = check_run_id(self.run_url.rpartition("/")[2])
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.run_url!r})"

    def read_bytes(self, name: str, max_bytes: int | None = None) -> bytes:
        """Return a document as it is.

        Raises:
            FileTooLargeError: It has more than `max_bytes`.
        """
        return self.filesystem.read(name, max_bytes)

    def read_text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """Return a document as text.

        Raises:
            StoreError: It is not UTF-8, or has more than `max_bytes`.
        """
        try:
            return str(self.read_bytes(name, max_bytes), "utf-8")
        except UnicodeDecodeError as error:
            raise StoreError(
                f"{self.run_url}/{name} is not UTF-8 text (byte {error.start}): it is damaged or "
                "was written by something else; write it again or delete it"
            ) from error

    def read_json(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
        """Return a JSON object.

        Raises:
            FileNotFoundError: There is none.
            StoreError: It is no JSON object on each of three reads, is nested too deep, or has more
                than `max_bytes`.
        """
        reason = ""
        for read in range(_READS):
            if read:
                self._sleep(_PAUSE_SECONDS)
            data = self.read_bytes(name, max_bytes)  # outside: a StoreError is a ValueError too
            try:
                return parse_json_object(data)
            except ValueError as error:
                reason = f" ({error})" if "nested" in str(error) else ""
        raise StoreError(
            f"{self.run_url}/{name} is not a JSON object{reason}: its writer was killed half way "
            "or it is damaged; write it again or delete it"
        )

    def write_bytes(self, name: str, data: Buffer) -> None:
        """Create or replace a document."""
        self.filesystem.write(name, data)

    def write_text(self, name: str, text: str) -> None:
        r"""Create or replace a document, as UTF-8.

        Half of a surrogate pair, which UTF-8 cannot hold, is written as an escape such as `\ud800`.
        """
        self.write_bytes(name, text.encode(errors="backslashreplace"))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Create or replace a document, as canonical JSON."""
        self.write_bytes(name, canonical_json(content))

    def copy_from(self, source: RunStore, name: str, max_bytes: int = MAX_JSON_BYTES) -> bool:
        """Copy a document of another run, if it is there; return whether it is.

        Raises:
            FileTooLargeError: It has more than `max_bytes`.
        """
        try:
            data = source.read_bytes(name, max_bytes)
        except FileNotFoundError:
            return False
        self.write_bytes(name, data)
        return True

    def address(self, name: str) -> FileAddress:
        """Return where a document is, for `FileSystem.copy`."""
        return FileAddress(self.filesystem.url, name)

    def write_signed(self, name: str, data: Buffer) -> None:
        """Create or replace a document that counts only with our key, where there is one.

        The signature (HMAC, RFC 2104, with SHA-256) is over the id of the run, the name and the
        content. It lies beside the document, `NAME.hmac`, and comes last.
        """
        self.write_bytes(name, data)
        if self.manifest_key is not None:
            self.write_text(f"{name}{_SIGNATURE}", self._signature(name, data, self.manifest_key))

    def read_signed(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """Return a document that `write_signed` wrote.

        Raises:
            FileNotFoundError: There is none; or there is a key, and it is not signed with it, so
                that somebody else may have written it.
            FileTooLargeError: It has more than `max_bytes`.
        """
        data = self.read_bytes(name, max_bytes)
        key = self.manifest_key
        if key is not None:
            wanted = self._signature(name, data, key).encode()
            try:
                found = self.read_bytes(f"{name}{_SIGNATURE}", len(wanted))
            except FileTooLargeError:
                found = b""
            if not hmac.compare_digest(found, wanted):
                raise FileNotFoundError(errno.ENOENT, "it is not signed with our key", name)
        return data

    def read_signed_json(self, name: str) -> dict[str, Any]:
        """Return a JSON object that `write_signed` wrote.

        Raises:
            FileNotFoundError: See `read_signed`.
            StoreError: It is no JSON object, or has more than `MAX_JSON_BYTES`.
        """
        if self.manifest_key is None:
            return self.read_json(name)
        data = self.read_signed(name)
        try:
            return parse_json_object(data)
        except ValueError as error:
            raise StoreError(f"{self.run_url}/{name} is not a JSON object: {error}") from error

    def _signature(self, name: str, data: Buffer, key: SecretStr) -> str:
        # The secret gets no name: a traceback with locals would show it.
        digest = hmac.new(
            key.get_secret_value().encode(), f"{self.run_id}/{name}\n".encode(), hashlib.sha256
        )
        digest.update(data)
        return digest.hexdigest()

    def check_writable(self) -> None:
        """Write and delete a tiny file, to hear now what would be said after hours of work.

        It shows a password that is refused, a user or a store that may only read, and a store that
        is full to the last byte. It cannot show a quota or a limit on the size of a body: a real
        body does, that of checkpoint 0.

        Raises:
            StoreError: It may not be written; `StoreFull` and `StoreUnreachable` as everywhere.
        """
        name = f"probe-{secrets.token_hex(4)}"
        self.write_bytes(name, b"may this be written?")
        self.delete(name)

    def list(self, name: str = "") -> Sequence[str]:
        """Return the names in a directory of the run, sorted, without foreign files."""
        return [entry.name for entry in self.filesystem.entries(name)]

    def list_if_present(self, name: str) -> Sequence[str]:
        """Return the names in a directory, as `list` does; none if it is surely not there."""
        try:
            return self.list(name)
        except FileNotFoundError:
            return []

    def fencing_tokens(self) -> Sequence[FencingToken]:
        """Return the claims of all attempts on this run; other names among them are ignored."""
        names = self.list_if_present(CLAIMS)
        return [token for name in names if (token := FencingToken.parse(name))]

    def attempt_documents(self, name: str) -> Sequence[int]:
        """Return the attempts that a directory has a document `NNNN.json` about, in order.

        Other names in it are ignored; a directory that is not there has none.
        """
        found = map(parse_attempt_document, self.list_if_present(name))
        return sorted(number for number in found if number is not None)

    def delete(self, name: str) -> None:
        """Delete a document; a missing one is fine."""
        self.filesystem.delete(name)


def open_run(
    run_url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
    manifest_key: SecretStr | None = None,
    cache: FileCache | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> RunStore:
    """Open a run by its URL; it need not exist yet.

    Args:
        run_url: URL of the run's directory.
        user: User name for WebDAV.
        password: Password for WebDAV.
        manifest_key: Signs manifests; those that it did not sign do not count.
        cache: Keeps files on this machine; not used for a store on its disk, which is as fast.
        deadline_seconds: Seconds for which one call retries; see `open_filesystem`.
    """
    filesystem = open_filesystem(run_url, user, password, deadline_seconds=deadline_seconds)
    if local_path(filesystem.url) is not None:
        cache = None
    return RunStore(filesystem, filesystem.url, manifest_key=manifest_key, cache=cache)


class RunLock:
    """Keeps a second process of this machine off a run in a local directory.

    The kernel frees the lock when the process dies, however it dies. For any other store it does
    nothing: there the claims decide (see `CheckpointStore.check_fence`).

    Example: `with RunLock(run_url): train()`
    """

    def __init__(self, run_url: str) -> None:
        directory = local_path(run_url)
        self._path = None if directory is None else directory / "lock"
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock, or fail at once.

        Raises:
            UsageError: Another live process holds it.
            StoreError: The directory cannot be written.
        """
        if self._path is None or self._handle is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}: choose another store") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UsageError(
                f"run {self._path.parent} is in use by process {holder}: stop that process, or "
                "choose another run id"
            ) from None
        except OSError:
            os.close(handle)  # a file system without locks; the claims still decide
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; the file stays, since deleting it would race with the next owner."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
