"""Addresses of stores and runs, and names below them: one meaning each, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.urls import (
    canonical_url,
    check_path,
    check_run_id,
    is_name,
    join_run,
    local_path,
)
from tsgb.errors import StoreError, UsageError

PASSWORD = sentinel("webdav")


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
            ("/a#b", "/a#b", True),
            ("/a?b", "/a?b", True),
            ("/a::b", "/a::b", True),
            ("file:///a::b", "file:///a::b", True),
            ("https://h/a%23b%3Fc", "https://h/a%23b%3Fc", False),
            ("http://[::1]:8080/d", "http://[::1]:8080/d", False),
        ],
    )
    def test_forms(self, url: str, canonical: str, is_local: bool) -> None:
        assert canonical_url(url) == canonical
        assert (local_path(url) is not None) is is_local

    def test_paths_become_absolute(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert canonical_url("runs/r1") == str(tmp_path / "runs" / "r1")
        for name in ("a b", "a#b", "a?b", "a::b", "a%23b"):
            assert local_path((tmp_path / name).as_uri()) == tmp_path / name
            assert local_path(f"./{name}") == tmp_path / name

    def test_two_addresses_are_two_places(self, tmp_path: Path) -> None:
        names = ("a", "a#b", "a?b", "a::b", "a%23b")
        addresses = [f"{tmp_path}/{name}" for name in names]
        for number, address in enumerate(addresses):
            open_filesystem(address).write("x", b"%d" % number)
        for number, address in enumerate(addresses):
            assert open_filesystem(address).read("x") == b"%d" % number

    def test_a_directory_that_exists_is_not_taken_for_a_host(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my.runs").mkdir()
        assert local_path("my.runs/r1") == tmp_path / "my.runs" / "r1"

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
            ("file:///a#b", "write %3F and %23"),
            ("file:///a?b", "write %3F and %23"),
            ("memory://a#b", "query or a fragment"),
            ("simplecache::s3://bucket/p", "colon"),
            ("memory://x/a::b", "a chain of URLs"),
            ("a::b", r"write \./a::b for a local directory"),
            ("nextcloud:tsgb", r"webdav\+https://host/path"),
            ("C:\\runs", "colon"),
            ("dav.example.org/tsgb", "write https://dav.example.org/tsgb"),
            ("dav.example.org", r"\./dav.example.org for a local"),
            ("192.168.1.5/dav", "name of a host"),
            ("localhost/dav", "name of a host"),
            ("a\0b", "control character"),
            ("https://h/a\nb", "control character"),
        ],
    )
    def test_refused_in_one_line_without_the_secret(self, url: str, message: str) -> None:
        with pytest.raises(StoreError, match=message) as caught:
            open_filesystem(url)
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


class TestRunIds:
    @pytest.mark.parametrize("run_id", ["r1", "2026-01-02_a.b", "X" * 128])
    def test_good(self, run_id: str) -> None:
        assert join_run("/store/", run_id) == f"/store/{run_id}"

    @pytest.mark.parametrize(
        "run_id",
        ["", ".", "..", ".x", "a/b", "a b", "ä", "a%20b", "latest", "checkpoints", "X" * 129],
    )
    def test_bad(self, run_id: str) -> None:
        with pytest.raises(UsageError, match="choose another"):
            check_run_id(run_id)


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["config.json", "step-00000001-a0001-000fb595", "a0001-000fb595", "r1", "_x", "X" * 128],
    )
    def test_ours(self, name: str) -> None:
        assert is_name(name)

    @pytest.mark.parametrize(
        "name",
        [
            ".DS_Store",
            "._0003.json",
            ".#manifest.json",
            "#manifest.json#",
            "manifest.json~",
            ".manifest.json.swp",
            ".nfs000000000001",
            ".0003.json.0a0a0a0a.tmp",
            "0003 (conflicted copy 2026-11-28).json",
            "0003 (1).json",
            "0003.sync-conflict-20261128-101112-ABCDEFG.json",
            "Thumbs.db",
            "desktop.ini",
            "lost+found",
            "@eaDir",
            "Icon\r",
            "..",
            ".",
            "",
            "a/b",
            "a\0",
            "a\n",
            "X" * 129,
        ],
    )
    def test_foreign(self, name: str) -> None:
        assert not is_name(name)

    @pytest.mark.parametrize("path", ["", "a", "a/b.c/d_e-f"])
    def test_paths_below_the_root(self, path: str) -> None:
        assert check_path(path) == path

    @pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/x", "a//b", "a/", "./a", "a\0b"])
    def test_paths_that_lead_elsewhere(self, path: str) -> None:
        with pytest.raises(StoreError, match=r"path .* is refused"):
            check_path(path)
