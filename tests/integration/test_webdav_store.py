"""Checkpoints on a real WebDAV server: wsgidav on loopback, basic auth, real sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import SecretStr

from tests.fakes.checkpoints import with_parts
from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.miniature import make_trainer, miniature_config
from tests.fakes.sentinels import leaks
from tsgb.checkpoint.filesystem import FileSystem, open_filesystem
from tsgb.checkpoint.promote import hand_out
from tsgb.checkpoint.store import CheckpointStore, RunStore, load, open_run, resolve
from tsgb.errors import LeaseLost, StoreError, StoreUnreachable

pytestmark = pytest.mark.integration

CONFIG = "0" * 64


@dataclass(frozen=True)
class Server:
    url: str
    directory: Path

    def open(self, path: str, password: str = PASSWORD, deadline_seconds: float = 20) -> FileSystem:
        return open_filesystem(
            f"{self.url}/{path}", USER, SecretStr(password), deadline_seconds=deadline_seconds
        )

    def store(self, path: str) -> CheckpointStore:
        files = self.open(path)
        return CheckpointStore(RunStore(files, files.url))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("dav")
    with serve(dav_app(directory)) as url:
        yield Server(f"webdav+{url}", directory)


def test_what_never_changes_is_sent_once(tmp_path: Path) -> None:
    """A run of two rounds that saves after every update, and is taken over in its middle."""
    config = miniature_config({"model": {"adapter": "lora", "rank": 2}})
    puts: list[tuple[str, int]] = []
    app = dav_app(tmp_path)

    def counting(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def note(status: str, *rest: Any) -> Any:
            # The first file of a directory is refused, and sent again once that is made.
            if environ["REQUEST_METHOD"] == "PUT" and status.startswith("2"):
                puts.append((environ["PATH_INFO"], int(environ["CONTENT_LENGTH"])))
            return start(status, *rest)

        return app(environ, note)

    with serve(counting) as url:
        first, trainer = True, make_trainer(config)
        while True:
            store = CheckpointStore(open_run(f"{url}/r1", USER, SecretStr(PASSWORD)))
            store.claim()
            found = store.newest_valid(pytest.fail)
            assert (found is None) == first
            if found is not None:
                trainer = make_trainer(config)
                trainer.load(found[1])
            while not trainer.done and not (first and trainer.state.step == 9):
                trainer.step()
                store.publish(trainer.state.step, 0, trainer.files(), CONFIG)
                store.prune(keep=2)
            if not first:
                break
            first = False
        found = store.newest_valid(pytest.fail)
        assert found is not None
        assert trainer.files().keys() == found[1].keys()

    parts = [item for item in puts if item[0].startswith("/r1/parts/")]
    # A fresh attacker and two to restart from, three guards, what three attackers wrote.
    assert len(parts) == 3 + 3 + 3
    assert len({path.partition("-")[0] for path, _ in parts}) == len(parts), "each content once"
    saves = [size for path, size in puts if "/checkpoints/" in path and "manifest" not in path]
    assert len(saves) == 5 * config.total_steps
    # The last save sends two adapters and their moments, however many rounds lie behind it.
    last = {p: n for p, n in puts if f"step-{config.total_steps:08d}" in p and "manifest" not in p}
    adapters = sum(n for p, n in last.items() if p.endswith(".safetensors"))
    tensors = [*trainer.attacker.parameters.values(), *trainer.guard.parameters.values()]
    numbers = sum(tensor.numel() for tensor in tensors)
    content = adapters - sum(header_bytes(tmp_path / path[1:]) for path in last)
    steps = 4 * len(tensors)  # of the optimizer: one number a tensor
    assert content == 3 * 4 * numbers + steps, "the weights and two moments, four bytes each"
    left = {path.name for path in (tmp_path / "r1" / "parts").iterdir()}
    assert len(left) == len(parts) - 1, "the fresh attacker is part of no checkpoint any more"


def header_bytes(path: Path) -> int:
    """Bytes before the tensors of a safetensors file."""
    data = path.read_bytes()
    return 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0


def test_publish_read_resolve_prune(server: Server) -> None:
    store = server.store("deep/er/a store/run-1")
    assert store.newest() is None
    assert store.claim() == 1
    files = {"guard.safetensors": bytes(range(256)) * 4096, "trainer_state.json": b"{}"}
    refs = [store.publish(step, step, files, CONFIG) for step in range(4)]

    reader = server.store("deep/er/a store/run-1")
    assert reader.newest() == refs[-1]
    assert reader.read(refs[-1]) == files
    for url in (refs[-1].url, store.run.run_url, f"{server.url}/deep/er/a store/latest"):
        assert resolve(url, USER, SecretStr(PASSWORD), deadline_seconds=20) == refs[-1]
    assert store.prune(keep=2) == [refs[0].name, refs[1].name]
    left = server.directory / "deep" / "er" / "a store" / "run-1" / "checkpoints"
    assert {path.name for path in left.iterdir()} == {refs[2].name, refs[3].name}


def test_rot_on_the_servers_disk_is_found(server: Server) -> None:
    store = server.store("run-2")
    store.claim()
    older = store.publish(1, 1, {"guard.safetensors": b"one" * 100}, CONFIG)
    newer = store.publish(2, 2, {"guard.safetensors": b"two" * 100}, CONFIG)
    path = server.directory / "run-2" / "checkpoints" / newer.name / "guard.safetensors"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    skipped: list[str] = []
    found = load(f"{server.url}/run-2/latest", USER, SecretStr(PASSWORD), on_skip=skipped.append)
    assert found == (older, {"guard.safetensors": b"one" * 100})
    assert len(skipped) == 1


def test_two_writers(server: Server) -> None:
    old, new = server.store("run-3"), server.store("run-3")
    old.claim()
    new.claim()
    with pytest.raises(LeaseLost):
        old.publish(1, 1, {"x": b"1"}, CONFIG)
    new.publish(1, 1, {"x": b"1"}, CONFIG)


def test_a_machine_is_handed_its_checkpoint_by_copies(server: Server) -> None:
    """And a file that it has saved can be copied into a run: nothing but a manifest is sent."""
    store = server.store("copies/r1")
    store.claim()
    ref = store.publish(1, 10, with_parts(1), CONFIG)
    seen = server.store("copies/_exchange/r1/0002-77/r1").run
    handed = hand_out(store.run, seen)
    assert handed is not None
    machine = CheckpointStore(seen)
    machine.claim(2)
    assert machine.read(handed.seen) == store.read(ref) == with_parts(1)
    [name, *_] = with_parts(1)
    found = machine.newest_whole(pytest.fail)
    assert found is not None
    later = server.store("copies/r2")
    later.claim()
    path = seen.address(f"checkpoints/{handed.seen.name}/{name}")
    placed = later.place_copy(2, name, found[1].files[name], path, later.run)
    assert placed == with_parts(1)[name]
    assert placed is not None
    copied = later.publish(2, 20, {name: placed}, CONFIG)
    assert later.bytes_sent == 0
    assert later.read(copied) == {name: placed}


def test_documents(server: Server) -> None:
    files = server.open("run-4")
    run = RunStore(files, files.url)
    with pytest.raises(FileNotFoundError):
        run.read_json("lease.json")
    with pytest.raises(FileNotFoundError):
        run.list("attempts")
    run.write_json("lease.json", {"attempt": 1, "note": "long" * 50})
    run.write_json("lease.json", {"attempt": 2})
    run.write_bytes("reports/e1/results.jsonl", b"")
    assert run.read_json("lease.json") == {"attempt": 2}
    assert run.list() == ["lease.json", "reports"]
    assert run.read_bytes("reports/e1/results.jsonl") == b""
    with pytest.raises(StoreError):
        run.list("lease.json")
    run.delete("lease.json")
    run.delete("lease.json")


def test_a_wrong_password_is_one_clear_line(server: Server) -> None:
    files = server.open("run-5", password="wrong-" + PASSWORD)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1.*run-5.*RCLONE_WEBDAV_PASS") as caught:
        files.entries("checkpoints")
    with pytest.raises(StoreError, match="HTTP 401"):
        files.write("x", b"1")
    assert "\n" not in str(caught.value)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["a%23b", "a%3Fb", "a%20b", "a%25b"])
def test_addresses_are_taken_literally(server: Server, name: str) -> None:
    files = server.open(f"{name}/run-1")
    files.write("claims/x", b"1")
    assert [entry.name for entry in files.entries("claims")] == ["x"]
    assert files.read("claims/x") == b"1"
    assert (server.directory / unquote(name) / "run-1" / "claims" / "x").is_file()
    files.delete_dir("claims")
    with pytest.raises(FileNotFoundError):
        files.entries("claims")


def test_a_server_that_is_down_is_not_an_empty_store() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        port = closed.getsockname()[1]
        files = open_filesystem(f"http://127.0.0.1:{port}/run-6", deadline_seconds=0.5)
        store = CheckpointStore(RunStore(files, files.url))
        with pytest.raises(StoreUnreachable, match="cannot be reached: ConnectError"):
            store.newest()


WRITER = """
import os, sys
from pydantic import SecretStr
from tsgb.checkpoint.store import CheckpointStore, open_run

url, user = sys.argv[1:]
password = os.environ["PASSWORD"]  # other tests look for it in all command lines
store = CheckpointStore(open_run(url, user, SecretStr(password), deadline_seconds=20))
store.claim()
found = store.newest_valid(lambda line: None)
step = 0 if found is None else found[0].step + 1
while True:
    ref = store.publish(step, step, {name: b"%d," % step * 300_000 for name in "abc"}, "0" * 64)
    print(ref.step, flush=True)
    store.prune(keep=2)
    step += 1
"""


@pytest.mark.parametrize("kind", ["local", "webdav"])
def test_killed_writers_lose_nothing_they_acknowledged(
    server: Server, tmp_path: Path, kind: str
) -> None:
    url = f"{server.url}/killed" if kind == "webdav" else str(tmp_path / "killed")
    dice = Random(7)
    acknowledged = -1
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, url, USER]
        env = {**os.environ, "PASSWORD": PASSWORD}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(dice.uniform(0, 0.25))
            process.kill()
            acknowledged = int(([first, *process.stdout.read().split()])[-1])
        found = load(f"{url}/latest", USER, SecretStr(PASSWORD), deadline_seconds=20)
        step = found[0].step
        assert step in {acknowledged, acknowledged + 1}  # committed, but not yet said so
        assert found[1] == dict.fromkeys("abc", b"%d," % step * 300000)
        assert int(first) <= step


def test_commands_about_checkpoints(server: Server, tmp_path: Path) -> None:
    store = server.store("commands/run-1")
    store.run.write_json("config.json", {})
    store.claim()
    files = {"attacker.safetensors": bytes(300_000), "guard.safetensors": b"one" * 100_000}
    for step in (1, 2, 3):
        store.publish(step, step, {**files, "trainer_state.json": b"%d" % step}, CONFIG)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "RCLONE_WEBDAV_URL": f"{server.url}/commands",
        "RCLONE_WEBDAV_USER": USER,
        "RCLONE_WEBDAV_PASS": PASSWORD,
    }

    def tsgb(*words: str) -> tuple[int, dict[str, Any], str]:
        ended = subprocess.run(
            [sys.executable, "-m", "tsgb.cli", "checkpoint", *words, "--json"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not leaks(ended.stdout + ended.stderr)
        return ended.returncode, json.loads(ended.stdout or "{}"), ended.stderr

    code, listed, _ = tsgb("ls")
    assert code == 0
    assert [row["step"] for row in listed["checkpoints"]] == [3, 2, 1]
    checkpoints = server.directory / "commands" / "run-1" / "checkpoints"
    newest = checkpoints / listed["checkpoints"][0]["name"]
    data = bytearray((newest / "attacker.safetensors").read_bytes())
    data[4321] ^= 1
    (newest / "attacker.safetensors").write_bytes(data)

    code, verified, message = tsgb("verify", f"{server.url}/commands/run-1")
    assert code == 1
    assert (verified["ok"], verified["damaged"]) == (2, 1)
    [problem] = verified["checkpoints"][0]["problems"]
    assert (problem["file"], problem["begin"], problem["end"]) == (
        "attacker.safetensors",
        4321,
        4322,
    )
    assert "1 of 3 checkpoints are damaged" in message

    code, pulled, message = tsgb("pull", f"{server.url}/commands/latest", "copy")
    assert code == 0
    assert "attacker.safetensors is damaged" in message
    ref, copied = load(str(tmp_path / "copy"))
    assert ref.step == 2
    assert copied == {**files, "trainer_state.json": b"2"}
    assert pulled["checkpoint"] == ref.url

    code, pruned, _ = tsgb("prune", "--keep", "1")
    assert code == 0
    assert [row["step"] for row in pruned["deleted"]] == [1]  # 2 is the newest that verifies
    assert pruned["freed_bytes"] == 600_001
    assert len(list(checkpoints.iterdir())) == 2
    environment["RCLONE_WEBDAV_PASS"] = "wrong"  # noqa: S105
    code, _, message = tsgb("ls")
    assert code == 2
    assert "RCLONE_WEBDAV_PASS" in message
    assert message.count("\n") == 1
