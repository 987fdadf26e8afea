"""The response log: an append-only file of what a target answered, so that it is asked once.

A file belongs to one identity of a target, and lies on this machine's disk, because a WebDAV store
cannot append. It holds answers, and prompts as hashes only. Each line is whole or is not there: a
process that dies loses what it had not been answered yet, and nothing else.

    {"log": 1, "target": "MyLLM", "identity": {"name": "my-llm", "version": "2"}}
    {"key": "<sha256>", "error": null, "text": "...", "finish_reason": "stop", ..., "at": "..."}

It knows keys and responses. Who is asked, and when, is the business of `logged_target`.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, Self, cast

from tsgb.checkpoint.documents import canonical_json, parse_json_object
from tsgb.errors import StoreError, StoreFull
from tsgb.logging import get_logger
from tsgb.types import Messages, Response

DIRECTORY = "responses"
"""Name of the logs' directory in the cache directory."""
_FORMAT = 1
_KEY_HEAD = b'{"key":"'
_KEY_END = len(_KEY_HEAD) + 64
_ANSWERED = b'","error":null,'
_BLOCK = 2**22
"""Bytes that are read at once."""
_APPEND = 0
"""Byte of the lock file that is locked while a line is written; others stand for questions."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, NoneType),
    "bool": (bool,),
    "int": (int,),
    "int | None": (int, NoneType),
    "float": (int, float),
    "float | None": (int, float, NoneType),
}
"""Types that a field of `Response` may have, by its annotation."""
Note = Callable[[str], None]


def warn(text: str) -> None:
    """Log a warning."""
    get_logger().warning(text)


def key_of(messages: Messages, sample: int = 0) -> str:
    """Return the key of a question within the log of one identity.

    Args:
        messages: The chat, of any Unicode code points.
        sample: Number of the draw, from 0: a stochastic target answers each anew.

    Returns:
        A sha256 in hexadecimal; unequal chats have unequal keys.
    """
    chat = [[message["role"], message["content"]] for message in messages]
    text = json.dumps([chat, sample], ensure_ascii=False, separators=(",", ":"))
    # Lone surrogates have bytes too: escaped, two of them would equal the character they spell.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def log_path(directory: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Return the file of the target that is called `name` and declares this identity."""
    digest = hashlib.sha256(canonical_json(dict(identity))).hexdigest()
    return directory / f"{_readable(name)}-{digest[:16]}.jsonl"


def logs_of(directory: Path, name: str) -> list[Path]:
    """Return the files of all identities of targets that are called `name`, if they hold anything.

    Names that differ in special characters alone share their files' names.
    """
    found = sorted(directory.glob(f"{_readable(name)}-{'[0-9a-f]' * 16}.jsonl"))
    return [path for path in found if path.is_file() and path.stat().st_size]


def _readable(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:60] or "target"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response of the log."""

    response: Response
    """What the target answered, or the error."""
    earlier: bool
    """Whether it was there before this log was opened."""


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    """Offset of the line."""
    size: int
    """Its bytes, without the line break."""
    answered: bool
    """Whether it is an answer and no error."""


class ResponseLog:
    """Reads and extends one log; several processes may do so at once.

    Example: `with ResponseLog(path, "MyLLM", {"name": "my-llm", "version": "2"}) as log: ...`
    """

    def __init__(
        self,
        path: Path,
        target: str,
        identity: Mapping[str, Any],
        *,
        note: Note | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the log, which is made if there is none, and read where its lines are.

        Args:
            path: The file; beside it lies another one for locks.
            target: Name of the target, for people who read the file.
            identity: What the target declares itself to be; it is written as it is, so it holds no
                secret.
            note: Is told what is strange about the file; without it a warning is logged.
            now: Time of an answer.

        Raises:
            StoreError: The file cannot be made, read or written.
            StoreFull: The disk has no space for it.
        """
        self.path = path
        self._note = note or warn
        self._now = now
        self._lines: dict[bytes, _Line] = {}
        self._read_to = 0
        self._strange = 0
        self._file = self._locks = -1
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = _opened(path, os.O_APPEND)
            self._locks = _opened(path.with_suffix(".lock"))
            with self._appending() as size:
                if size == 0:
                    head = {"log": _FORMAT, "target": target, "identity": dict(identity)}
                    self._write(_encoded(head), size)
            self._read()
        except OSError as error:
            self.close()
            self._fail(error)
        self._opened_at = self._read_to
        if self._strange:
            self._note(f"{path}: left out {self._strange} lines that are no responses")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._lines)

    def close(self) -> None:
        """Bring what was written to the disk, and close the files."""
        for descriptor in (self._file, self._locks):
            if descriptor >= 0:
                with suppress(OSError):
                    os.fsync(descriptor)
                os.close(descriptor)
        self._file = self._locks = -1

    def sync(self) -> None:
        """Bring what was written to the disk: until then a power cut may take it.

        Raises:
            StoreError: The disk refuses.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            self._fail(error)

    # -- reading ---------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take note of lines that others wrote since.

        Raises:
            StoreError: The file cannot be read.
        """
        try:
            self._read()
        except OSError as error:
            self._fail(error)

    def _read(self) -> None:
        size = os.fstat(self._file).st_size
        if size < self._read_to:  # somebody cut or emptied it
            self._lines.clear()
            self._read_to = 0
        rest = b""
        while self._read_to + len(rest) < size:
            block = os.pread(self._file, _BLOCK, self._read_to + len(rest))
            if not block:
                break
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                self._learn(line, self._read_to)
                self._read_to += len(line) + 1

    def find(self, key: str) -> StoredResponse | None:
        """Return the newest answer to a question, or the newest error if there is no answer."""
        name = bytes.fromhex(key)
        line = self._lines.get(name)
        if line is None:
            return None
        try:
            response = _response(os.pread(self._file, line.size, line.start))
        except OSError as error:
            self._fail(error)
        if response is None:
            del self._lines[name]
            self._note(f"{self.path}: left out a line that is no response, at byte {line.start}")
            return None
        return StoredResponse(response, earlier=line.start < self._opened_at)

    def _learn(self, line: bytes, start: int) -> None:
        if not line.startswith(_KEY_HEAD):
            self._strange += b'"log"' not in line[:8]
            return
        try:
            name = bytes.fromhex(line[len(_KEY_HEAD) : _KEY_END].decode("ascii"))
        except ValueError:
            self._strange += 1
            return
        found = _Line(start, len(line), line[_KEY_END:].startswith(_ANSWERED))
        before = self._lines.get(name)
        if len(name) == 32 and (found.answered or before is None or not before.answered):
            self._lines[name] = found

    # -- writing ---------------------------------------------------------------------------

    def append(self, key: str, response: Response) -> None:
        """Store a response; it survives the death of this process from here on.

        Raises:
            StoreFull: The disk has no space; what was stored before is untouched.
            StoreError: The file cannot be written.
        """
        said = asdict(response)
        error = said.pop("error")
        content = {"key": key, "error": error, **said, "at": self._now().isoformat()}
        try:
            with self._appending() as size:
                self._write(_encoded(content), size)
            self._read()
        except OSError as failure:
            self._fail(failure)

    def claim(self, key: str) -> bool:
        """Reserve a question for this process, unless another one is asking it now.

        The kernel frees it when this process dies.
        """
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except OSError as error:
            # A file system without locks: then two processes may ask twice, and nothing worse.
            return error.errno not in {errno.EACCES, errno.EAGAIN}
        return True

    def release(self, key: str) -> None:
        """Free a question."""
        with suppress(OSError):
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _byte(key))

    @contextmanager
    def _appending(self) -> Generator[int]:
        """Keep others from writing; gives the size of the file, whose last line is whole."""
        locked = True
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, _APPEND)
        except OSError:
            locked = False
        try:
            yield self._mended()
        finally:
            if locked:
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _APPEND)

    def _mended(self) -> int:
        """Drop a torn last line, of a process that died while it wrote; returns the size."""
        size = os.fstat(self._file).st_size
        end = size
        while end and os.pread(self._file, 1, end - 1) != b"\n":
            start = max(0, end - _BLOCK)
            end = start + os.pread(self._file, end - start, start).rfind(b"\n") + 1
        if end < size:
            os.ftruncate(self._file, end)
            self._note(f"{self.path}: dropped a torn last line of {size - end} bytes")
        return end

    def _write(self, line: bytes, size: int) -> None:
        """Append a line, or nothing; `size` is that of the file before."""
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def _fail(self, error: OSError) -> NoReturn:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StoreFull(
                f"response log {self.path} cannot grow ({reason}): make room there, or set "
                "TSGB_CACHE_DIR to a larger disk; what is stored is untouched, and the same "
                "command goes on from it"
            ) from error
        raise StoreError(
            f"response log {self.path} cannot be used ({reason}): set TSGB_CACHE_DIR to a "
            "directory that you can read and write"
        ) from error


def _opened(path: Path, more: int = 0) -> int:
    """Open a file of this user's alone, which is made if there is none."""
    wanted = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | more
    descriptor = os.open(path, wanted, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(errno.EACCES, "not a file of this user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.fchmod(descriptor, 0o600)
    return descriptor


def _byte(key: str) -> int:
    """Return the byte of the lock file that stands for a question."""
    return 1 + int(key[:15], 16)


def _encoded(content: Mapping[str, Any]) -> bytes:
    """Return a line: ASCII, so that no text of an answer acts on a terminal."""
    values = {name: _storable(value) for name, value in content.items()}
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _storable(value: Any) -> Any:
    """Return a text that JSON cannot hold, one with surrogates, as its bytes."""
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raw = value.encode(errors="surrogatepass")
        return {"base64": base64.b64encode(raw).decode("ascii")}
    return value


def _response(line: bytes) -> Response | None:
    """Return the response of a line; None if it holds none."""
    try:
        document = parse_json_object(line)
    except ValueError:
        return None
    known: dict[str, Any] = {}
    for field in fields(Response):
        if field.name in document:
            value: object = _restored(document[field.name])
            types = _TYPES.get(str(field.type))
            if types is not None and type(value) not in types:
                return None
            known[field.name] = value
    return Response(**known) if "text" in known else None


def _restored(value: object) -> object:
    coded = cast("Mapping[str, object]", value).get("base64") if isinstance(value, dict) else None
    if isinstance(coded, str):
        with suppress(ValueError):  # also what base64 and UTF-8 raise
            return base64.b64decode(coded, validate=True).decode(errors="surrogatepass")
    return cast("object", value)


def questions(chats: Sequence[Messages]) -> list[str]:
    """Return a key for each chat; the k-th of equal chats is draw k."""
    seen: dict[str, int] = {}
    keys: list[str] = []
    for chat in chats:
        first = key_of(chat)
        number = seen.get(first, 0)
        seen[first] = number + 1
        keys.append(key_of(chat, number) if number else first)
    return keys
