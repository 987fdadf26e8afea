"""What a rented machine saved is taken over only as far as it can be a checkpoint of its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from safetensors.numpy import save

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.manifest import MANIFEST, FileRecord, Manifest
from tsgb.checkpoint.promote import MAX_CANDIDATES, Expected, hand_out, promote
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.store import CheckpointStore

CONFIG = "c" * 64
KEY = SecretStr("a key of the control plane")
EXPECTED = Expected(attempt=2, config_sha256=CONFIG, last_step=100, max_bytes=10_000)


def tensors(**arrays: Any) -> bytes:
    return save({name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()})


def files(value: float = 1.0) -> dict[str, bytes]:
    return {
        "guard.safetensors": tensors(weight=[value, 2.0]),
        "guard.safetensors/round-1": tensors(weight=[0.5, 2.0]),
        "optim_guard.safetensors": tensors(moment=[value]),
        "trainer_state.json": b'{"state":{}}',
        "trainer_state.json/round-1": b'{"attacks":[]}',
    }


class Place:
    """A run and what a machine sees of it."""

    def __init__(self) -> None:
        self.stored = MemoryFiles("memory://store/r1")
        self.outbox = MemoryFiles("memory://exchange/r1/0002-77/r1")
        self.run = RunStore(self.stored, self.stored.url, manifest_key=KEY)
        self.seen = RunStore(self.outbox, self.outbox.url)
        self.told: list[str] = []

    def machine(self, attempt: int = 2) -> CheckpointStore:
        store = CheckpointStore(self.seen)
        store.claim(attempt)
        return store

    def promote(self, expected: Expected = EXPECTED) -> int | None:
        """The step of what was taken over."""
        ref = promote(self.seen, self.run, expected, note=self.told.append)
        return None if ref is None else ref.step

    def newest(self) -> int | None:
        ref = CheckpointReader(self.run).newest()
        return None if ref is None else ref.step


@pytest.fixture
def place() -> Place:
    return Place()


def begun(place: Place) -> Place:
    """A run with one checkpoint, handed out to the machine of attempt 2."""
    store = CheckpointStore(place.run)
    store.claim(1)
    store.publish(10, 5, files(), CONFIG)
    place.run.write_text("metrics.jsonl", '{"step": 10, "loss": 1.0}\n')
    assert hand_out(place.run, place.seen) is not None
    return place


def test_a_machine_goes_on_from_what_it_is_handed(place: Place) -> None:
    begun(place)
    reader = CheckpointReader(place.seen)
    ref = reader.newest()
    assert ref is not None
    assert (ref.step, ref.attempt) == (10, 1)
    assert reader.read(ref) == files()
    assert place.machine(2).newest() == ref
    assert all(b"hmac" not in data for data in place.outbox.files.values())


def test_attempts_that_saved_nothing_are_handed_out_too(place: Place) -> None:
    store = CheckpointStore(place.run)
    store.claim(1)
    store.publish(10, 5, files(), CONFIG)
    CheckpointStore(place.run).claim(2)
    place.run.write_json("exits/0002.json", {"outcome": "interrupted"})
    ref = hand_out(place.run, place.seen)
    assert ref is not None
    assert CheckpointStore(place.seen).claim(3) == 3
    assert {token.attempt for token in place.seen.fencing_tokens()} == {1, 2, 3}
    assert place.seen.read_json("exits/0002.json") == {"outcome": "interrupted"}


def test_what_it_saves_is_taken_over_signed_and_once(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    assert place.promote() == 30
    reader = CheckpointReader(place.run)
    ref = reader.newest()
    assert ref is not None
    assert (ref.step, ref.episode, ref.attempt) == (30, 9, 2)
    assert reader.read(ref) == files(3.0)
    written = dict(place.stored.files)
    place.outbox.files.clear()  # whatever it does afterwards
    assert place.promote() is None
    assert place.newest() == 30
    assert {name for name in place.stored.files if name.startswith("checkpoints/")} == {
        name for name in written if name.startswith("checkpoints/")
    }


def test_a_machine_that_never_trained_leaves_no_trace(place: Place) -> None:
    begun(place)
    before = dict(place.stored.files)
    assert place.promote() is None
    assert place.stored.files == before


def test_a_later_attempt_has_gone_on(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    CheckpointStore(place.run).claim(3)
    assert place.promote() is None


def test_a_run_without_a_checkpoint(place: Place) -> None:
    assert hand_out(place.run, place.seen) is None
    place.machine().publish(0, 0, files(), CONFIG)
    assert place.promote() == 0


def swapped(name: str, data: bytes) -> Callable[[Place], None]:
    """A sound manifest about a file that is none of a checkpoint."""

    def publish(place: Place) -> None:
        place.machine().publish(30, 9, {**files(3.0), name: data}, CONFIG)

    return publish


def manifested(**changes: Any) -> Callable[[Place], None]:
    """A manifest that says something else than what was saved."""

    def publish(place: Place) -> None:
        ref = place.machine().publish(30, 9, files(3.0), CONFIG)
        path = f"checkpoints/{ref.name}/{MANIFEST}"
        manifest = Manifest.from_bytes(place.outbox.files[path])
        place.outbox.files[path] = manifest.model_copy(update=changes).to_bytes()

    return publish


def raw(data: bytes) -> Callable[[Place], None]:
    """Bytes in the place of a manifest."""

    def publish(place: Place) -> None:
        ref = place.machine().publish(30, 9, files(3.0), CONFIG)
        place.outbox.files[f"checkpoints/{ref.name}/{MANIFEST}"] = data

    return publish


def out_of_the_directory() -> bytes:
    manifest = Manifest(
        run_id="r1",
        step=30,
        episode=9,
        attempt=2,
        writer="00012345",
        parent=None,
        files={"guard.safetensors": FileRecord.of(b"x")},
        versions={},
        config_sha256=CONFIG,
        created_at="2026-11-29T00:00:00Z",  # pyright: ignore[reportArgumentType]
    )
    return manifest.to_bytes().replace(b"guard.safetensors", b"../../../evilmod.py")


def header(**tensor: Any) -> bytes:
    described = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **tensor}
    text = json.dumps({"w": described}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 4


HOSTILE: Mapping[str, Callable[[Place], None]] = {
    "no safetensors": swapped("guard.safetensors", b"{}"),
    "a header of 2**63 bytes": swapped("guard.safetensors", b"\xff" * 8),
    "a header that is deep": swapped(
        "guard.safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000
    ),
    "a shape that lies": swapped("guard.safetensors", header(shape=[10**9])),
    "a negative shape": swapped("guard.safetensors", header(shape=[-1, -1])),
    "offsets beyond the file": swapped("guard.safetensors", header(data_offsets=[4, 8])),
    "bytes behind the tensors": swapped("guard.safetensors", header() + b"more"),
    "a type that does not exist": swapped("guard.safetensors", header(dtype="PICKLE")),
    "not a number": swapped("guard.safetensors", tensors(weight=[float("nan"), 2.0])),
    "infinite": swapped("optim_guard.safetensors", tensors(moment=[float("inf")])),
    "another shape": swapped("guard.safetensors", tensors(weight=[1.0, 2.0, 3.0])),
    "another tensor": swapped("guard.safetensors", tensors(weights=[1.0, 2.0])),
    "a state that is deep": swapped("trainer_state.json", b"[" * 200_000),
    "a state that is half": swapped("trainer_state.json", b"{"),
    "a part that is none": swapped("guard.safetensors/round-2", b"import os"),
    "too large": swapped("optim_guard.safetensors", tensors(moment=np.zeros(9_000))),
    "another run": manifested(run_id="r2"),
    "another configuration": manifested(config_sha256="d" * 64),
    "no files": manifested(files={}, parts={}),
    "a name that leads out": raw(out_of_the_directory()),
    "half a manifest": raw(b"{"),
    "a deep manifest": raw(b"[" * 200_000),
    "a huge manifest": raw(b" " * (17 << 20)),
    "NUL": raw(b"\0" * 100),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_cannot_be_a_checkpoint_is_refused_and_the_one_before_it_counts(
    place: Place, what: str
) -> None:
    begun(place)
    machine = place.machine()
    machine.publish(20, 7, files(2.0), CONFIG)
    HOSTILE[what](place)
    assert place.promote() == 20
    assert place.newest() == 20
    assert len(place.told) == 1
    assert "of attempt 2 is refused" in place.told[0]
    assert place.told[0].isprintable()
    assert len(place.told[0]) < 600
    assert all(name.isascii() and ".." not in name for name in place.stored.files)


def test_files_that_were_changed_after_the_manifest(place: Place) -> None:
    begun(place)
    ref = place.machine().publish(30, 9, files(3.0), CONFIG)
    place.outbox.files[f"checkpoints/{ref.name}/guard.safetensors"] = files(4.0)[
        "guard.safetensors"
    ]
    assert place.promote() is None
    assert place.newest() == 10


@pytest.mark.parametrize(("attempt", "step"), [(1, 30), (3, 30), (2, 101), (2, 10)])
def test_only_its_own_attempt_and_only_steps_of_the_training(
    place: Place, attempt: int, step: int
) -> None:
    begun(place)
    place.machine(2)
    machine = CheckpointStore(place.seen)
    if attempt >= 2:
        machine.claim(attempt)
        machine.publish(step, 9, files(3.0), CONFIG)
    assert place.promote() is None
    assert place.newest() == 10


def test_no_more_than_a_few_are_looked_at(place: Place) -> None:
    begun(place)
    place.machine()
    for number in range(10_000):
        name = f"checkpoints/step-{11 + number % 80:08d}-a0002-{number:08x}/{MANIFEST}"
        place.outbox.files[name] = b"{"
    assert place.promote() is None
    assert len(place.told) == MAX_CANDIDATES


def test_metrics_are_figures_of_its_own_updates(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    lines = [
        '{"step": 10, "loss": 99.0}',
        '{"step": 20, "loss": 0.5, "phase": "guard"}',
        '{"step": 21, "loss": NaN}',
        '{"step": 22, "note": "\\u001b[2J"}',
        '{"step": 23, "deep": [1]}',
        "{",
        '{"step": 30, "loss": 0.25}',
        '{"step": 31, "loss": 0.1}',
    ]
    place.seen.write_text("metrics.jsonl", "\n".join(lines))
    assert place.promote() == 30
    kept = place.run.read_text("metrics.jsonl").splitlines()
    assert [json.loads(line) for line in kept] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 0.5, "phase": "guard"},
        {"step": 30, "loss": 0.25},
    ]


def test_an_exit_record_tells_figures_and_no_checkpoint(place: Place) -> None:
    begun(place)
    place.machine()
    told = {"outcome": "done", "useful_seconds": 7.5, "checkpoint": {"step": 90}, "step": 90}
    place.seen.write_json("exits/0002.json", {**told, "message": "\x1b[2J", "attempt": 2})
    assert place.promote() is None
    assert place.run.read_json("exits/0002.json") == {
        "attempt": 2,
        "outcome": "done",
        "step": 90,
        "useful_seconds": 7.5,
    }
    assert place.newest() == 10
