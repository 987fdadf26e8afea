"""A store that will not do says so in one line, before a run has done a single update.

Real servers on loopback and the real attempt. It claims its run before it builds a model, which
shows an address, a password or a right that is wrong, a certificate, and an attempt that is over.
What only a large body shows, too little space and a limit on sizes, comes out with checkpoint 0:
models are built by then, and kept on this machine, but nothing is trained.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.contexts import worker_context
from tests.fakes.dav_server import PASSWORD, USER, dav_app, refusing, self_signed, serve
from tests.fakes.miniature import TRUST, miniature_config
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.errors import LeaseLost, StoreError, StoreFull, StoreUnreachable, TSGBError
from tsgb.worker.build import setup_torch
from tsgb.worker.context import StopSignals
from tsgb.worker.train import TrainingAttempt

pytestmark = pytest.mark.integration

CONFIG = miniature_config()
SMALL = 20_000
"""Bytes: more than any document, less than any tensor file of the miniature."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup_torch()
    return tmp_path_factory.mktemp("cache")


def opened(url: str, password: str = PASSWORD) -> RunStore:
    return open_run(f"{url}/runs/r1", USER, SecretStr(password), deadline_seconds=0.5)


@pytest.fixture
def fails(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Try to train; the error's text, which is one line about this store and holds no secret."""

    empty = tmp_path_factory.mktemp("empty")

    def trial(
        run: RunStore, kind: type[TSGBError], attempt: int | None = None, *, builds: bool = False
    ) -> str:
        updates: list[object] = []
        context = worker_context(cache if builds else empty, trust=TRUST)
        with pytest.raises(kind) as caught:
            TrainingAttempt(
                run,
                CONFIG,
                context,
                StopSignals(),
                attempt=attempt,
                on_update=updates.append,
            ).train(None)
        text = str(caught.value)
        assert type(caught.value) is kind
        assert updates == []
        assert [*empty.iterdir()] == [], "models were built"
        assert "\n" not in text
        assert run.run_url in text
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))
        return text

    return trial


@contextmanager
def wsgidav(directory: Path, **options: bool) -> Iterator[str]:
    with serve(dav_app(directory, **options)) as url:
        yield url


def test_a_wrong_password(fails: Callable[..., str], tmp_path: Path) -> None:
    with wsgidav(tmp_path) as url:
        text = fails(opened(url, "wrong"), StoreError)
    assert "HTTP 401" in text
    assert "set RCLONE_WEBDAV_USER and RCLONE_WEBDAV_PASS" in text


def test_a_server_that_only_speaks_digest(fails: Callable[..., str], tmp_path: Path) -> None:
    with wsgidav(tmp_path, digest=True) as url:
        text = fails(opened(url), StoreError)
    assert "the server accepts Digest authentication only (HTTP 401)" in text


def test_a_wrong_host(fails: Callable[..., str]) -> None:
    text = fails(opened("https://no-such-host.invalid"), StoreUnreachable)
    assert "Check the address" in text


def test_a_host_without_a_server(fails: Callable[..., str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        text = fails(opened(f"http://127.0.0.1:{closed.getsockname()[1]}"), StoreUnreachable)
    assert "cannot be reached: ConnectError" in text


def test_a_read_only_store(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with wsgidav(tmp_path, readonly=True) as url:
        text = fails(opened(url), StoreError)
    assert "HTTP 403" in text
    assert "grant read and write" in text


def test_no_space(fails: Callable[..., str], tmp_path: Path) -> None:
    with serve(refusing(dav_app(tmp_path), "507 Insufficient Storage", SMALL)) as url:
        text = fails(opened(url), StoreFull, builds=True)
    assert "no space left on the server (HTTP 507): free some" in text


def test_no_space_at_all(fails: Callable[..., str], tmp_path: Path) -> None:
    with serve(refusing(dav_app(tmp_path), "507 Insufficient Storage", 0)) as url:
        text = fails(opened(url), StoreFull)
    assert "no space left on the server (HTTP 507): free some" in text


def test_files_too_large_for_the_server(fails: Callable[..., str], tmp_path: Path) -> None:
    with serve(refusing(dav_app(tmp_path), "413 Content Too Large", SMALL)) as url:
        text = fails(opened(url), StoreError, builds=True)
    assert "too large for the server (HTTP 413): raise its limit" in text


def test_a_self_signed_certificate(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serve(dav_app(tmp_path), certificate) as url:
        run = open_run(f"{url}/runs/r1", USER, SecretStr(PASSWORD))  # at once, not after 300 s
        text = fails(run, StoreError)
        assert "its certificate is not trusted (self-signed certificate)" in text
        assert "set SSL_CERT_FILE" in text
        # The way out that it names is one.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        files = open_filesystem(f"{url}/runs/r1", USER, SecretStr(PASSWORD))
        files.write("x", b"1")
        assert files.read("x") == b"1"


def test_an_attempt_that_is_over(fails: Callable[..., str], tmp_path: Path) -> None:
    with wsgidav(tmp_path) as url:
        run = opened(url)
        TrainingAttempt(
            run, CONFIG, worker_context(tmp_path, trust=TRUST), StopSignals(), attempt=7
        )
        text = fails(run, LeaseLost, attempt=6)
    assert "attempt 6 of run" in text
    assert "attempt 7 has claimed it" in text


def test_a_run_that_was_deleted(tmp_path: Path, cache: Path) -> None:
    with wsgidav(tmp_path) as url:
        run = opened(url)
        attempt = TrainingAttempt(
            run, CONFIG, worker_context(cache, trust=TRUST), StopSignals(), attempt=None
        )
        run.filesystem.delete_dir("")
        with pytest.raises(StoreError, match=r"claim a0001-\w+ of run .* has vanished") as caught:
            attempt.train(None)
    assert "\n" not in str(caught.value)
