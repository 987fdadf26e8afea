"""What a host can do with the password that its container gets, where each user has a folder.

It holds the exchange's credentials and speaks to the server itself, with every method that WebDAV
has and every way to write an address. Of the runs in the store it lists, reads and changes nothing.
"""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from tests.fakes.dav_programs import TwoFolders, run_for_two
from tests.fakes.dav_server import MACHINES_PASSWORD, MACHINES_USER, PASSWORD, USER
from tsgb.checkpoint.run import open_run
from tsgb.cloud.exchange import Exchange
from tsgb.errors import StoreError

pytestmark = pytest.mark.integration

SECRET, NAME = "only-for-the-store", "weights-of-r2"
READS = ("GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH", "POST")
CHANGES = ("DELETE", "PUT", "MKCOL", "PROPPATCH", "LOCK", "UNLOCK", "PATCH")


@pytest.fixture(params=["wsgidav", "rclone", "apache"])
def place(request: pytest.FixtureRequest) -> Iterator[TwoFolders]:
    # Not below pytest's directory, which nobody but its owner may enter.
    with (
        TemporaryDirectory(prefix="tsgb-dav-") as made,
        run_for_two(request.param, Path(made)) as served,
    ):
        yield served


def contents(folder: Path) -> dict[str, bytes]:
    """All that lies below a folder; a folder in it is a name with a slash."""
    found = sorted(folder.rglob("*"))
    return {
        f"{path.relative_to(folder)}{'/' * path.is_dir()}": b""
        if path.is_dir()
        else path.read_bytes()
        for path in found
    }


class Host:
    """A stranger with the exchange's password, who writes his own requests."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        pair = base64.b64encode(f"{MACHINES_USER}:{MACHINES_PASSWORD}".encode()).decode()
        self._headers = {"Authorization": f"Basic {pair}"}

    def ask(self, method: str, target: str, headers: Mapping[str, str] = {}) -> tuple[int, str]:
        """Status, and all that the server said; the target goes out as it is."""
        body = b"mine" if method in {"PUT", "POST", "PATCH"} else None
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            connection.request(method, target, body, {**self._headers, **headers})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, f"{answer.headers}{text}"
        finally:
            connection.close()


def spellings(place: TwoFolders, path: str) -> list[str]:
    """Targets by which a server may be brought to look at a path of the store."""
    store, exchange = urlsplit(place.store).path, urlsplit(place.exchange).path
    up = [f"{exchange}/{dots}/runs/{path}" for dots in ("..", "%2e%2e", "..%2f..", "r1/../..")]
    up += [f"{exchange}/{dots}/{path}" for dots in ("..", "%2e%2e", "%2e%2e%2fruns")]
    plain = [f"{store}/{path}", f"/{store}//{path}", f"{exchange}/runs/{path}", f"/runs/{path}"]
    return [*plain, *up, f"{place.store}/{path}", f"{exchange}/{place.runs}/{path}"]


def test_a_host_sees_and_changes_nothing_of_a_run_in_the_store(place: TwoFolders) -> None:
    run = open_run(f"{place.store}/r2", USER, SecretStr(PASSWORD))
    run.write_text("config.json", SECRET)
    run.write_text(f"checkpoints/{NAME}/manifest.json", SECRET)
    exchange = Exchange(
        url=place.exchange, user=MACHINES_USER, password=SecretStr(MACHINES_PASSWORD)
    )
    seen = exchange.open("r1", "0001-aa")
    seen.write_text("mine.txt", "mine")
    assert seen.read_text("mine.txt") == "mine", "the password is good for its own folder"
    before, host = contents(place.runs), Host(place.store)
    assert f"r2/checkpoints/{NAME}/manifest.json" in before

    own = f"{urlsplit(place.exchange).path}/r1/0001-aa/r1"
    status, listed = host.ask("PROPFIND", f"{own}/", {"Depth": "1"})
    assert (status, "mine.txt" in listed) == (207, True)
    said: list[str] = []
    for path in ("", "r2", "r2/", "r2/config.json", f"r2/checkpoints/{NAME}/manifest.json"):
        for target in spellings(place, path):
            answers = [
                host.ask(method, target, {"Depth": depth})[1]
                for method in READS
                for depth in (("0", "1", "infinity") if method == "PROPFIND" else ("0",))
            ]
            # A page may repeat the address that was asked for, and tells nothing by that.
            said += [text.replace(NAME, "") if NAME in target else text for text in answers]
            for method in CHANGES:
                host.ask(method, target)
            if not path:  # a copy of a folder into itself has no end where that is its own
                continue
            for method in ("COPY", "MOVE"):
                for theirs in (target, f"{place.store}/{path}"):
                    host.ask(method, theirs, {"Destination": f"{place.exchange}/taken"})
                    to = {"Destination": theirs, "Overwrite": "T"}
                    host.ask(method, f"{own}/mine.txt", to)
                    seen.write_text("mine.txt", "mine")
    assert contents(place.runs) == before
    assert not [text for text in said if SECRET in text or NAME in text]
    taken = contents(place.machines)
    assert SECRET.encode() not in b"".join(taken.values())
    assert not [name for name in taken if NAME in name]

    stolen = open_run(f"{place.store}/r2", MACHINES_USER, SecretStr(MACHINES_PASSWORD))
    with pytest.raises((StoreError, FileNotFoundError)):
        stolen.read_text("config.json")
