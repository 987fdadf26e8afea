"""Checkpoints of made-up content, and stores that neither sleep nor look at the clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.filesystem import FileSystem
from tsgb.checkpoint.store import CheckpointStore, RunStore

NAMES = (
    "attacker.safetensors",
    "guard.safetensors",
    "optim_attacker.safetensors",
    "optim_guard.safetensors",
    "trainer_state.json",
)
CONFIG = "0" * 64


def content(step: int) -> Mapping[str, bytes]:
    return {name: f"{name} after {step}".encode() * 3 for name in NAMES}


def with_parts(step: int) -> Mapping[str, bytes]:
    """The files and their parts: one that has two names, and one of each step so far."""
    rounds = {f"guard.safetensors/round-{n}": b"the guard of round %d" % n for n in range(step + 1)}
    starts = dict.fromkeys(("attacker.safetensors/sft", "attacker.safetensors/warm"), b"a start")
    return {**content(step), **starts, **rounds}


def open_store(files: FileSystem) -> CheckpointStore:
    run = RunStore(files, files.url, sleep=lambda _seconds: None)
    return CheckpointStore(run, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))


def writer(files: FileSystem, attempt: int | None = None) -> CheckpointStore:
    store = open_store(files)
    store.claim(attempt)
    return store


def publish(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.publish(step, step * 10, content(step), CONFIG)


def publish_with_parts(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.publish(step, step * 10, with_parts(step), CONFIG)


def parts_in(files: MemoryFiles) -> dict[str, bytes]:
    """Files of parts by path."""
    return {path: data for path, data in files.files.items() if path.startswith("parts/")}


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
