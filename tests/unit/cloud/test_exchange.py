"""The place that rented machines see, and whether they could reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.dav_server import MACHINES_PASSWORD, MACHINES_USER, USER, dav_app, serve
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.cloud.exchange import Exchange, check_reach, new_folder
from tsgb.errors import StoreError, UsageError
from tsgb.setting_groups import ExchangeSettings

VAST = "https://console.vast.ai"
STORE = "https://dav.example.org/tsgb"
MINE = {"webdav_user": "me", "webdav_pass": "my own"}


def exchange_of(**given: Any) -> Exchange:
    return Exchange.of(ExchangeSettings(**given), STORE)


def test_it_is_a_part_of_the_store_unless_it_is_named() -> None:
    found = exchange_of(**MINE)
    assert (found.url, found.user, found.is_own) == (f"{STORE}/_exchange", "me", False)
    assert found.what_machines_can_do == "machines get the whole store's password"


def test_its_own_credentials_are_the_only_ones() -> None:
    found = exchange_of(**MINE, exchange_url="https://dav.example.org/machines/")
    assert found == Exchange(url="https://dav.example.org/machines")
    assert "machines see https://dav.example.org/machines" in found.what_machines_can_do


def test_folders_cannot_be_guessed() -> None:
    names = {new_folder(3) for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("0003-") and len(name) == 21 for name in names)


UNREACHABLE = {
    "/home/me/runs": "is on this machine",
    "file:///home/me/runs": "is on this machine",
    "https://localhost/dav": "is in a private network",
    "https://127.0.0.1:8443/dav": "is in a private network",
    "https://[::1]/dav": "is in a private network",
    "https://192.168.1.7/dav": "is in a private network",
    "https://10.0.0.7/dav": "is in a private network",
    "https://169.254.169.254/dav": "is in a private network",
    "https://[fd00::7]/dav": "is in a private network",
    "https://nas/dav": "is in a private network",
    "webdav+https://nas.local/dav": "is in a private network",
    "https://home.example.org/dav": "is in a private network",
    "http://dav.example.org/tsgb": "is not encrypted",
    "webdav+http://dav.example.org/tsgb": "is not encrypted",
}


def resolve(host: str) -> list[str]:
    return {"home.example.org": ["192.168.0.2"], "dav.example.org": ["93.184.215.14"]}.get(host, [])


@pytest.mark.parametrize("url", UNREACHABLE)
def test_what_a_machine_cannot_reach_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=UNREACHABLE[url]) as raised:
        check_reach(exchange_of(exchange_url=url), VAST, resolve)
    assert "TSGB_EXCHANGE_URL" in str(raised.value)
    check_reach(exchange_of(exchange_url=url), "http://127.0.0.1:9", resolve)  # a simulated service


@pytest.mark.parametrize("url", [STORE, f"webdav+{STORE}", "https://unknown.example.org/x"])
def test_what_it_may_reach_is_not(url: str) -> None:
    check_reach(exchange_of(exchange_url=url), VAST, resolve)


def test_machines_credentials_open_nothing_of_the_store(tmp_path: Path) -> None:
    """H1: nothing of another run can be listed, read, changed or deleted with them."""
    (tmp_path / "dav" / "runs" / "r2").mkdir(parents=True)
    (tmp_path / "machines").mkdir()
    (tmp_path / "dav" / "runs" / "r2" / "config.json").write_text("{}")
    with serve(dav_app(tmp_path / "dav", machines=tmp_path / "machines")) as url:
        exchange = Exchange(
            url=f"{url}/machines", user=MACHINES_USER, password=SecretStr(MACHINES_PASSWORD)
        )
        exchange.open("r1", new_folder(1)).write_text("config.json", "{}")
        for user in (MACHINES_USER, USER):
            theirs = open_filesystem(f"{url}/runs", user, exchange.password, deadline_seconds=0.1)
            for use in (
                lambda theirs=theirs: theirs.entries(""),
                lambda theirs=theirs: theirs.entries("r2"),
                lambda theirs=theirs: theirs.read("r2/config.json"),
                lambda theirs=theirs: theirs.write("r2/config.json", b"theirs"),
                lambda theirs=theirs: theirs.delete("r2/config.json"),
                lambda theirs=theirs: theirs.delete_dir("r2"),
            ):
                with pytest.raises(StoreError, match="HTTP 401"):
                    use()
        assert (tmp_path / "dav" / "runs" / "r2" / "config.json").read_text() == "{}"
        exchange.delete("r1", "0001-no-such-folder")
