"""Every kind of store behaves alike, and every failure has one meaning."""

from __future__ import annotations

import errno
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.failures import HTTPFailure, StoreRetry
from tsgb.checkpoint.filesystem import DirectoryEntry, FileSystem, open_filesystem
from tsgb.checkpoint.urls import canonical_url, local_path
from tsgb.errors import StoreError, StoreFull, StoreUnreachable

PASSWORD = sentinel("webdav")


@pytest.fixture(params=["path", "file", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    root = tmp_path / "a store" / "run-1"
    if request.param == "memory":
        return open_filesystem(f"memory://{tmp_path.name}/run-1", deadline_seconds=0)
    url = str(root) if request.param == "path" else root.as_uri()
    return open_filesystem(url, deadline_seconds=0)


class TestEveryKind:
    def test_round_trip(self, files: FileSystem) -> None:
        files.write("a/b/c.bin", b"\x00\xff")
        files.write("a/empty", b"")
        assert files.read("a/b/c.bin") == b"\x00\xff"
        assert files.read("a/empty") == b""
        assert list(files.entries("")) == [DirectoryEntry("a", None, is_dir=True)]
        assert list(files.entries("a")) == [
            DirectoryEntry("b", None, is_dir=True),
            DirectoryEntry("empty", 0, is_dir=False),
        ]

    def test_write_replaces(self, files: FileSystem) -> None:
        files.write("x", b"long content")
        files.write("x", b"short")
        assert files.read("x") == b"short"
        assert [entry.name for entry in files.entries("")] == ["x"]

    def test_absence_is_definite(self, files: FileSystem) -> None:
        for path in ("", "a", "a/b"):
            with pytest.raises(FileNotFoundError):
                files.entries(path)
            with pytest.raises(FileNotFoundError):
                files.read(f"{path}/x")

    def test_a_file_is_not_an_empty_directory(self, files: FileSystem) -> None:
        files.write("x", b"1")
        with pytest.raises(StoreError):
            files.entries("x")

    def test_delete(self, files: FileSystem) -> None:
        for name in ("a/one", "a/two", "b/three"):
            files.write(name, b"1")
        files.delete("a/one")
        files.delete("a/one")
        files.delete_dir("a")
        files.delete_dir("a")
        assert [entry.name for entry in files.entries("")] == ["b"]
        with pytest.raises(FileNotFoundError):
            files.entries("a")


class TestLocal:
    @pytest.mark.parametrize("root", ["/proc/no-such", "/dev/null/below"])
    def test_where_nothing_can_be_created_is_an_error_and_not_an_absence(self, root: str) -> None:
        with pytest.raises(StoreError, match=f"^{root}/x[: ]"):
            open_filesystem(root).write("x", b"")

    def test_nothing_half_written_is_ever_seen(self, tmp_path: Path) -> None:
        files = open_filesystem(str(tmp_path))
        files.write("x", b"old")
        (tmp_path / ".x.0a0a0a0a.tmp").write_bytes(b"ne")  # a process was killed here
        assert [entry.name for entry in files.entries("")] == ["x"]

    def test_a_failed_write_leaves_the_old_file_and_no_litter(self, tmp_path: Path) -> None:
        files = open_filesystem(str(tmp_path), deadline_seconds=0)
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "inside").touch()
        with pytest.raises(StoreError):
            files.write("x", b"a file cannot replace a directory")
        assert list(tmp_path.iterdir()) == [tmp_path / "x"]

    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"")
        with pytest.raises(StoreError, match=r"x.*: check the path"):
            open_filesystem(str(tmp_path / "x"), deadline_seconds=0).write("a", b"")


class TestURLs:
    @pytest.mark.parametrize(
        ("url", "canonical", "is_local"),
        [
            ("/a/b/", "/a/b", True),
            ("file:///a/b%20c/", "file:///a/b%20c", True),
            ("memory://x/y/", "memory://x/y", False),
            ("memory://", "memory://", False),
            ("webdav+https://h/d/", "webdav+https://h/d", False),
            ("https://h:8443/d", "https://h:8443/d", False),
            ("s3://bucket/p//", "s3://bucket/p", False),
        ],
    )
    def test_forms(self, url: str, canonical: str, is_local: bool) -> None:
        assert canonical_url(url) == canonical
        assert (local_path(url) is not None) is is_local

    def test_paths_become_absolute(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert canonical_url("runs/r1") == str(tmp_path / "runs" / "r1")
        assert local_path((tmp_path / "a b").as_uri()) == tmp_path / "a b"

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("", "empty"),
            pytest.param(f"https://me:{quote(PASSWORD, '')}@h/d", "holds a password", id="quoted"),
            pytest.param(f"https://me:{PASSWORD}@h/d", "port: if it holds a password", id="slash"),
            pytest.param(f"webdav+https://h/d?key={PASSWORD}", "query", id="query"),
            ("webdav://h/d", r"write webdav\+https://"),
            ("https:///d", "names no host"),
            ("http://[::1/d", "cannot be read"),
            ("file://host/d", "names a host"),
            ("nonsense://x", "cannot be opened"),
        ],
    )
    def test_refused_in_one_line_without_the_secret(self, url: str, message: str) -> None:
        with pytest.raises(StoreError, match=message) as caught:
            open_filesystem(url)
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(StoreError, match=r"needs the package s3fs.*pip install s3fs$") as caught:
        open_filesystem("s3://bucket/run-1")
    assert "\n" not in str(caught.value)


def failing(error: Exception) -> Callable[[], bytes]:
    def operation() -> bytes:
        raise error

    return operation


class TestClassification:
    @pytest.mark.parametrize(
        ("error", "expected", "words"),
        [
            (FileNotFoundError(errno.ENOENT, "gone"), FileNotFoundError, "the-place"),
            (HTTPFailure(404), FileNotFoundError, "the-place"),
            (OSError(errno.ENOSPC, "No space left on device"), StoreFull, "free some"),
            (OSError(errno.EDQUOT, "Quota exceeded"), StoreFull, "free some"),
            (HTTPFailure(507), StoreFull, "507"),
            (PermissionError(errno.EACCES, "Permission denied"), StoreError, "read and write"),
            (OSError(errno.EROFS, "Read-only file system"), StoreError, "another store"),
            (HTTPFailure(401), StoreError, "RCLONE_WEBDAV_USER"),
            (HTTPFailure(403), StoreError, "grant"),
            (HTTPFailure(413), StoreError, "too large"),
            (HTTPFailure(405), StoreError, "WebDAV"),
            (HTTPFailure(501), StoreError, "501"),
            (httpx.UnsupportedProtocol("x"), StoreError, "no sense"),
            (KeyError("surprise\nin two lines"), StoreError, "no sense"),
        ],
        ids=lambda value: repr(value)[:40] if isinstance(value, Exception) else "",
    )
    def test_definite_errors_are_raised_at_once(
        self, error: Exception, expected: type[Exception], words: str
    ) -> None:
        retries = StoreRetry(60.0, sleep=lambda _seconds: pytest.fail("no retry can heal this"))
        with pytest.raises(expected) as caught:
            retries("the-place", failing(error))
        assert type(caught.value) is expected
        assert "the-place" in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "error",
        [
            *(HTTPFailure(status) for status in (408, 423, 425, 429, 500, 502, 503, 504, 509)),
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("slow"),
            httpx.RemoteProtocolError("cut"),
            ConnectionResetError(errno.ECONNRESET, "reset"),
            TimeoutError("slow"),
            OSError(errno.ESTALE, "stale"),
        ],
        ids=repr,
    )
    def test_what_can_heal_is_retried(self, error: Exception) -> None:
        pauses: list[float] = []
        answers = iter([error, error, None])

        def operation() -> str:
            answer = next(answers)
            if answer is not None:
                raise answer
            return "healed"

        assert StoreRetry(60.0, pauses.append)("the-place", operation) == "healed"
        assert len(pauses) == 2
        assert all(0 <= pause <= 2 for pause in pauses)
        with pytest.raises(StoreError, match=r"the-place cannot be reached: .* gave up") as caught:
            StoreRetry(0.0, pauses.append)("the-place", failing(error))
        assert "\n" not in str(caught.value)

    def test_gives_up_at_the_deadline(self) -> None:
        pauses: list[float] = []
        with pytest.raises(StoreError, match=r"retrying for 0\.05 s"):
            StoreRetry(0.05, pauses.append)("x", failing(httpx.ConnectError("refused")))
        assert sum(pauses) <= 0.05 * len(pauses)

    def test_who_never_answered_is_given_up_soon(self) -> None:
        retries = StoreRetry(3600.0, lambda _seconds: None, "https://nobody.test", 0.0)
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match=r"gave up after retrying for 0 s\. Check"):
                retries("the-place", failing(httpx.ConnectError("refused")))

    @pytest.mark.parametrize(
        "answer",
        [None, HTTPFailure(404), HTTPFailure(507), HTTPFailure(401)],
        ids=["done", "missing", "full", "refused"],
    )
    def test_who_ever_answered_is_waited_for(self, answer: Exception | None) -> None:
        server = f"https://{answer}.test"
        first = StoreRetry(3600.0, pytest.fail, server, 0.0)
        with suppress(StoreError, FileNotFoundError):
            first("the-place", lambda: b"" if answer is None else failing(answer)())

        pauses: list[float] = []
        left = iter([httpx.ConnectError("refused")] * 30)

        def operation() -> str:
            for error in left:
                raise error
            return "healed"

        # By whoever asks: a flow opens a store anew for each look at it.
        assert StoreRetry(3600.0, pauses.append, server, 0.0)("x", operation) == "healed"
        assert len(pauses) == 30

    def test_the_global_generator_is_left_alone(self) -> None:
        # tenacity's own jitter would change it, and with it what a run samples after an outage.
        before = random.getstate()
        answers = iter([HTTPFailure(503)] * 5)

        def operation() -> None:
            for answer in answers:
                raise answer

        StoreRetry(60.0, sleep=lambda _seconds: None)("x", operation)
        assert random.getstate() == before

    def test_interrupts_pass(self) -> None:
        def operation() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            StoreRetry(60.0, sleep=lambda _seconds: None)("x", operation)


def answering(
    *statuses: int, body: bytes = b"", deadline_seconds: float = 60
) -> tuple[FileSystem, list[httpx.Request]]:
    """A WebDAV store whose server gives these answers in turn, the last one for ever."""
    seen: list[httpx.Request] = []
    left = list(statuses)

    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request)
        return httpx.Response(left.pop(0) if len(left) > 1 else left[0], content=body)

    files = open_filesystem(
        "https://dav.test/base/run-1",
        "me",
        SecretStr(PASSWORD),
        deadline_seconds=deadline_seconds,
        sleep=lambda _seconds: None,
        transport=httpx.MockTransport(handle),
    )
    return files, seen


class TestWebDAVAnswers:
    @pytest.mark.parametrize("status", [500, 502, 503, 429, 423])
    def test_an_outage_never_looks_empty(self, status: int) -> None:
        files, _ = answering(status, deadline_seconds=0)
        for call in (files.entries, files.read):
            with pytest.raises(StoreUnreachable, match=f"cannot be reached: HTTP {status}"):
                call("checkpoints")

    def test_a_page_of_something_else_never_looks_empty(self) -> None:
        files, _ = answering(207, body=b"<html>log in first</html>")
        with pytest.raises(StoreError):
            files.entries("checkpoints")
        files, _ = answering(200, body=b"<html><br>log in first</html>")
        with pytest.raises(StoreError, match="makes no sense"):
            files.entries("checkpoints")

    def test_put_is_retried_with_the_whole_body(self) -> None:
        files, seen = answering(503, 502, 201)
        files.write("x", b"payload")
        assert [request.method for request in seen] == ["PUT"] * 3
        assert [request.content for request in seen] == [b"payload"] * 3

    def test_put_makes_the_missing_parents_only(self) -> None:
        files, seen = answering(409, 409, 201, 405, 201)
        files.write("a/x", b"1")
        assert [(request.method, request.url.path) for request in seen] == [
            ("PUT", "/base/run-1/a/x"),
            ("MKCOL", "/base/run-1/a/"),
            ("MKCOL", "/base/run-1/"),
            ("MKCOL", "/base/run-1/a/"),
            ("PUT", "/base/run-1/a/x"),
        ]

    @pytest.mark.parametrize("status", [404, 409, 500])
    def test_no_server_says_alike_that_a_parent_is_missing(self, status: int) -> None:
        files, seen = answering(status, 201, 201)
        files.write("a/x", b"1")
        assert [request.method for request in seen] == ["PUT", "MKCOL", "PUT"]

    def test_a_lost_answer_to_delete_is_no_error(self) -> None:
        files, seen = answering(503, 404)
        files.delete_dir("checkpoints/x")
        assert seen[-1].url.path == "/base/run-1/checkpoints/x/"

    def test_one_request_a_read(self) -> None:
        files, seen = answering(200, body=b"data")
        assert files.read("x") == b"data"
        assert [request.method for request in seen] == ["GET"]

    def test_full(self) -> None:
        files, _ = answering(507)
        with pytest.raises(StoreFull):
            files.write("x", b"1")

    @pytest.mark.parametrize("status", [401, 403, 413, 503])
    def test_the_password_is_nowhere(self, status: int) -> None:
        files, _ = answering(status, deadline_seconds=0)
        with pytest.raises(StoreError) as caught:
            files.write("x", b"1")
        shown = "".join(traceback.format_exception(caught.value)) + repr(files) + str(files)
        assert PASSWORD not in shown
        assert "https://dav.test/base/run-1" in str(caught.value)

    def test_the_password_is_sent(self) -> None:
        files, seen = answering(200)
        files.read("x")
        assert seen[0].headers["Authorization"].startswith("Basic ")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return None
