"""Stores that fail on demand. Real code behind the `FileSystem` protocol, no patching."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from tsgb.checkpoint.filesystem import DirectoryEntry, FileAddress, FileTooLargeError
from tsgb.types import Buffer


class Killed(BaseException):
    """The process dies here: nothing may catch it."""


class CopyingServer:
    """A server that copies files between its roots, as COPY of WebDAV does, and may lie."""

    def __init__(self) -> None:
        self.roots: dict[str, MemoryFiles] = {}
        self.copies: list[str] = []
        """Paths of the copies that it made."""
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        """What becomes of the bytes on their way."""
        self.refuses = False

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        here, there = self.roots.get(source.root), self.roots.get(target.root)
        if self.refuses or here is None or there is None or source.path not in here.files:
            return False
        there.files[target.path] = self.spoil(here.files[source.path])
        self.copies.append(target.path)
        return True


class MemoryFiles:
    """A dict of files; directories exist as long as something is in them."""

    def __init__(
        self, url: str = "memory://fake/run-1", server: CopyingServer | None = None
    ) -> None:
        self.url = url
        self.server = server or CopyingServer()
        self.server.roots[url] = self
        self.files: dict[str, bytes] = {}
        self.writes: list[str] = []

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if max_bytes is not None and len(self.files[path]) > max_bytes:
            raise FileTooLargeError(f"{path} has more than {max_bytes} bytes")
        return self.files[path]

    def write(self, path: str, data: Buffer) -> None:
        self.writes.append(path)
        self.files[path] = bytes(data)  # a view's owner may fill it again

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        prefix = f"{path}/" if path else ""
        below = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        if not below:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        found = {
            name: DirectoryEntry(name, None, is_dir=True)
            if slash
            else DirectoryEntry(name, len(self.files[prefix + name]), is_dir=False)
            for name, slash, _ in (item.partition("/") for item in below)
        }
        return [found[name] for name in sorted(found)]

    def delete(self, path: str) -> None:
        self.files.pop(path, None)

    def delete_dir(self, path: str) -> None:
        for name in [name for name in self.files if name.startswith(f"{path}/")]:
            del self.files[name]

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        return self.server.copy(source, target)


class FaultyFiles:
    """Another file system seen through faults.

    `before` is called with the operation and the path before each call, and may raise.
    With `torn`, a write during which it raises leaves the first half of the file under its final
    name, as a WebDAV server may after a broken upload.
    """

    def __init__(
        self,
        inner: MemoryFiles,
        before: Callable[[str, str], None] = lambda _operation, _path: None,
        *,
        torn: bool = False,
    ) -> None:
        self.inner = inner
        self.before = before
        self.torn = torn
        self.url = inner.url

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        self.before("read", path)
        return self.inner.read(path, max_bytes)

    def write(self, path: str, data: Buffer) -> None:
        try:
            self.before("write", path)
        except BaseException:
            if self.torn:
                self.inner.write(path, data[: len(data) // 2])
            raise
        self.inner.write(path, data)

    def entries(self, path: str) -> Sequence[DirectoryEntry]:
        self.before("entries", path)
        return self.inner.entries(path)

    def delete(self, path: str) -> None:
        self.before("delete", path)
        self.inner.delete(path)

    def delete_dir(self, path: str) -> None:
        self.before("delete_dir", path)
        self.inner.delete_dir(path)

    def copy(self, source: FileAddress, target: FileAddress) -> bool:
        self.before("copy", target.path)
        return self.inner.copy(source, target)


def dies_after(num_changes: int) -> Callable[[str, str], None]:
    """For `FaultyFiles`: lets so many changes through, then kills the process at the next one."""
    left = num_changes

    def before(operation: str, path: str) -> None:
        nonlocal left
        if operation in {"write", "delete", "delete_dir", "copy"}:
            left -= 1
            if left < 0:
                raise Killed

    return before
