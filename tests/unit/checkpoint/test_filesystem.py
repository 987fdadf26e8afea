"""Every kind of store behaves alike, and every failure has one meaning."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.filesystem import (
    DirectoryEntry,
    FileAddress,
    FileSystem,
    FileTooLargeError,
    open_filesystem,
)
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
                files.read(f"{path}/x".lstrip("/"))

    def test_a_copy_is_made_where_the_file_is(self, files: FileSystem) -> None:
        files.write("a/x", b"content")
        files.write("b/x", b"old")
        other = open_filesystem(f"{files.url}/b/inner", deadline_seconds=0)
        for target in (FileAddress(files.url, "b/x"), FileAddress(other.url, "c/d/x")):
            assert files.copy(FileAddress(files.url, "a/x"), target)
            assert other.copy(FileAddress(files.url, "a/x"), target)
        assert (files.read("b/x"), other.read("c/d/x")) == (b"content", b"content")
        there = FileAddress(files.url, "b/y")
        assert not files.copy(FileAddress(files.url, "a/none"), there)
        assert not files.copy(FileAddress("https://dav.test/base", "x"), there)
        assert not files.copy(FileAddress(files.url, "a/x"), FileAddress("https://dav.test", "x"))
        for way_out in ("../x", "b/../../x"):
            with pytest.raises(StoreError, match="is refused"):
                files.copy(FileAddress(files.url, "a/x"), FileAddress(files.url, way_out))
        assert [entry.name for entry in files.entries("b")] == ["inner", "x"]

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

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "..", "a\0", "a//b"])
    def test_nothing_outside_the_root_is_touched(
        self, files: FileSystem, tmp_path: Path, path: str
    ) -> None:
        files.write("a/b", b"1")
        before = sorted(tmp_path.rglob("*"))
        for call in (files.read, files.entries, files.delete, files.delete_dir):
            with pytest.raises(StoreError, match="is refused"):
                call(path)
        with pytest.raises(StoreError, match="is refused"):
            files.write(path, b"2")
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_file_that_is_too_large(self, files: FileSystem) -> None:
        files.write("x", b"12345")
        assert files.read("x", 5) == b"12345"
        with pytest.raises(FileTooLargeError, match="x has more than 4 bytes"):
            files.read("x", 4)


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

    def test_a_child_that_cannot_be_looked_at_is_no_absent_directory(self, tmp_path: Path) -> None:
        files = open_filesystem(str(tmp_path), deadline_seconds=0)
        files.write("a/x", b"1")
        (tmp_path / "a" / "gone").symlink_to("nowhere")
        (tmp_path / "a" / ".#x").symlink_to("nowhere")
        (tmp_path / "a" / "loop").symlink_to("loop")
        assert list(files.entries("a")) == [
            DirectoryEntry("gone", None, is_dir=False),
            DirectoryEntry("loop", None, is_dir=False),
            DirectoryEntry("x", 1, is_dir=False),
        ]

    def test_what_a_link_to_nowhere_hides_is_not_absent(self, tmp_path: Path) -> None:
        (tmp_path / "run").symlink_to(tmp_path / "not-mounted")
        files = open_filesystem(str(tmp_path / "run"), deadline_seconds=0)
        for call in (files.entries, files.read):
            with pytest.raises(StoreError, match=r"run is a link to .*not-mounted, .*mount"):
                call("checkpoints")

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


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(StoreError, match=r"needs the package s3fs.*pip install s3fs$") as caught:
        open_filesystem("s3://bucket/run-1")
    assert "\n" not in str(caught.value)


def opened(
    handle: Callable[[httpx.Request], httpx.Response],
    url: str = "https://dav.test/base/run-1",
    deadline_seconds: float = 60,
) -> FileSystem:
    """A WebDAV store whose server is a function."""
    return open_filesystem(
        url,
        "me",
        SecretStr(PASSWORD),
        deadline_seconds=deadline_seconds,
        sleep=lambda _seconds: None,
        transport=httpx.MockTransport(handle),
    )


def answering(
    *statuses: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    deadline_seconds: float = 60,
    url: str = "https://dav.test/base/run-1",
) -> tuple[FileSystem, list[httpx.Request]]:
    """A WebDAV store whose server gives these answers in turn, the last one for ever."""
    seen: list[httpx.Request] = []
    left = list(statuses)

    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request)
        status = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, content=body, headers=headers)

    return opened(handle, url, deadline_seconds), seen


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

    @pytest.mark.parametrize(
        ("statuses", "sent", "is_done"),
        [
            ((201,), ["COPY"], True),
            ((503, 204), ["COPY", "COPY"], True),
            ((409, 201, 201), ["COPY", "MKCOL", "COPY"], True),
            ((404, 405, 404), ["COPY", "MKCOL", "COPY"], False),
            ((409, 403), ["COPY", "MKCOL"], False),
            *(((status,), ["COPY"], False) for status in (401, 403, 405, 412, 423, 501, 502, 507)),
        ],
    )
    def test_a_copy_is_asked_for_once_where_it_is_refused(
        self, statuses: tuple[int, ...], sent: list[str], is_done: bool
    ) -> None:
        files, seen = answering(*statuses)
        there = FileAddress("webdav+https://dav.test/other", "a/y")
        assert files.copy(FileAddress(files.url, "x"), there) is is_done
        assert [request.method for request in seen] == sent
        assert seen[0].url.path == "/base/run-1/x"
        assert seen[0].headers["Destination"] == "https://dav.test/other/a/y"
        assert seen[0].headers["Depth"] == "0", "a directory is not copied with its content"
        assert seen[0].headers["Authorization"].startswith("Basic ")

    def test_no_password_is_sent_to_another_server_for_a_copy(self) -> None:
        files, seen = answering(201)
        for other in ("https://dav.other/base", "http://dav.test/base", "https://dav.test:8443"):
            assert not files.copy(FileAddress(other, "x"), FileAddress(files.url, "y"))
            assert not files.copy(FileAddress(files.url, "x"), FileAddress(other, "y"))
        assert seen == []

    def test_a_copy_that_may_still_be_made_is_asked_for_again(self) -> None:
        files, _ = answering(504, deadline_seconds=0)
        with pytest.raises(StoreUnreachable):
            files.copy(FileAddress(files.url, "x"), FileAddress(files.url, "y"))

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

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("call", ["read", "entries", "write", "delete"])
    def test_a_redirect_says_where_to(self, status: int, call: str) -> None:
        headers = {"location": f"https://me:{PASSWORD}@login.test/in?token={PASSWORD}"}
        files, seen = answering(status, headers=headers)
        says = rf"redirected to https://login\.test/in \(HTTP {status}"
        with pytest.raises(StoreError, match=says) as caught:
            getattr(files, call)(*(["x", b"1"] if call == "write" else ["x"]))
        assert len(seen) == 1
        assert PASSWORD not in str(caught.value)

    def test_a_server_that_only_speaks_digest(self) -> None:
        digest = 'Digest realm="x", nonce="1"'
        files, _ = answering(401, headers={"www-authenticate": digest})
        with pytest.raises(StoreError, match=r"Digest authentication only.*allow Basic"):
            files.read("x")
        files, _ = answering(401, headers={"www-authenticate": f'{digest}, Basic realm="y"'})
        with pytest.raises(StoreError, match="user or password refused"):
            files.read("x")

    @pytest.mark.parametrize("name", ["a%23b", "a%3Fb", "a%20b", "a%25b", "%C3%A9"])
    def test_a_root_is_asked_for_as_it_was_written(self, name: str) -> None:
        files, seen = answering(201, url=f"https://dav.test/{name}")
        files.write("x", b"1")
        files.delete_dir("x")
        assert [request.url.raw_path.decode() for request in seen] == [f"/{name}/x", f"/{name}/x/"]

    def test_an_answer_that_is_too_large_is_not_read_to_its_end(self) -> None:
        files, _ = answering(200, body=b"x" * 1000)
        assert len(files.read("x", 1000)) == 1000
        with pytest.raises(FileTooLargeError, match="has more than 999 bytes"):
            files.read("x", 999)


def listing(*addresses: str) -> bytes:
    """A WebDAV listing; what ends in a slash is a directory."""
    rows = [
        f"<d:response><d:href>{address}</d:href><d:propstat><d:prop><d:resourcetype>"
        f"{'<d:collection/>' if address.endswith('/') else ''}</d:resourcetype></d:prop>"
        "<d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response>"
        for address in addresses
    ]
    return f'<d:multistatus xmlns:d="DAV:">{"".join(rows)}</d:multistatus>'.encode()


CLAIMS = "/base/run-1/claims"


class TestWebDAVListings:
    @pytest.mark.parametrize(
        "addresses",
        [
            pytest.param([f"{CLAIMS}/", f"{CLAIMS}/a1", f"{CLAIMS}/b/"], id="in order"),
            pytest.param([f"{CLAIMS}/b/", f"{CLAIMS}/a1", f"{CLAIMS}/"], id="itself last"),
            pytest.param([f"https://h{CLAIMS}/", f"{CLAIMS}/a1", f"{CLAIMS}/b/"], id="a URL"),
            pytest.param([f"{CLAIMS}/a1", f"{CLAIMS}/b/"], id="itself left out"),
            pytest.param(["/claims/", "/claims/a1", "/claims/b/"], id="rewritten by a proxy"),
            pytest.param(
                [f"{CLAIMS}/{x}" for x in ("", "a1", "b/", ".DS_Store", "x%20y")], id="foreign"
            ),
        ],
    )
    def test_names(self, addresses: list[str]) -> None:
        files, _ = answering(207, body=listing(*addresses))
        found = [(entry.name, entry.is_dir) for entry in files.entries("claims")]
        assert found == [("a1", False), ("b", True)]

    @pytest.mark.parametrize(
        "addresses",
        [[], ["/run-1/claims/a1", "/run-1/claims/b/"], ["/run-1/other/"], ["/", "/x/y/"]],
    )
    def test_a_listing_of_something_else_never_looks_empty(self, addresses: list[str]) -> None:
        files, _ = answering(207, body=listing(*addresses))
        with pytest.raises(StoreError, match="makes no sense"):
            files.entries("claims")

    def test_an_empty_directory(self) -> None:
        files, _ = answering(207, body=listing("/base/run-1/claims/"))
        assert files.entries("claims") == []

    def test_the_slash_that_a_server_asks_for(self) -> None:
        def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/"):
                return httpx.Response(207, content=listing("/base/run-1/claims/"))
            return httpx.Response(301, headers={"location": f"http://inner{request.url.path}/"})

        assert opened(handle).entries("claims") == []
