"""A real checkpoint with one changed byte, at 200 random places of each of its six files."""

from __future__ import annotations

from random import Random

import pytest

from tests.fakes.checkpoints import CONFIG, NAMES, open_store, writer
from tests.fakes.filesystems import MemoryFiles
from tests.fakes.miniature import make_trainer, miniature_config
from tsgb.checkpoint.manifest import MANIFEST

OFFSETS = 200
STEPS = (6, 10)


@pytest.fixture(scope="module")
def run() -> tuple[MemoryFiles, dict[str, bytes]]:
    """A run with two checkpoints, and the files of the older one."""
    files = MemoryFiles()
    store = writer(files)
    trainer = make_trainer(miniature_config())
    saved: list[dict[str, bytes]] = []
    for step in STEPS:
        while trainer.state.step < step:
            trainer.step()
        saved.append(trainer.files())
        store.publish(step, trainer.state.episode, saved[-1], CONFIG)
    assert set(saved[0]) == set(NAMES)
    assert all(saved[0][name] != saved[1][name] for name in NAMES)
    return files, saved[0]


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_every_changed_byte_is_found_and_the_older_checkpoint_is_used(
    run: tuple[MemoryFiles, dict[str, bytes]], name: str
) -> None:
    files, older = run
    [path] = [
        path for path in files.files if f"step-{STEPS[1]:08d}" in path and path.endswith(f"/{name}")
    ]
    good = files.files[path]
    rng = Random(name)
    try:
        for _ in range(OFFSETS):
            offset, change = rng.randrange(len(good)), rng.randrange(1, 256)
            bad = bytearray(good)
            bad[offset] ^= change
            files.files[path] = bytes(bad)
            skipped: list[str] = []
            found = open_store(files).newest_valid(skipped.append)
            where = f"byte {offset} of {name}, by {change}"
            assert found is not None, where
            assert found[0].step == STEPS[0], where
            assert found[1] == older, where
            assert len(skipped) == 1, where
            assert name in skipped[0], where
    finally:
        files.files[path] = good
    assert open_store(files).newest_valid(pytest.fail) is not None
