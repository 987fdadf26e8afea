"""What is told of checkpoints without reading them, and what is found by reading them."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fakes.checkpoints import content, flip, open_store, publish, writer
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tsgb.checkpoint.inspect import CheckpointState, Inspector


def inspector(files: MemoryFiles | FaultyFiles) -> Inspector:
    return Inspector(open_store(files).run)


class TestInspect:
    def test_a_listing_and_a_manifest_each_are_all_that_is_asked_for(self) -> None:
        files = MemoryFiles()
        publish(writer(files), *range(50))
        asked: list[tuple[str, str]] = []
        watched = FaultyFiles(files, lambda operation, path: asked.append((operation, path)))
        listed = inspector(watched).all()
        assert [item.checkpoint.step for item in listed] == list(reversed(range(50)))
        assert {item.state for item in listed} == {CheckpointState.OK}
        assert {item.size for item in listed[:5]} == {sum(map(len, content(49).values()))}
        assert Counter(operation for operation, _ in asked) == {"entries": 1, "read": 50}
        assert all(path.endswith("/manifest.json") for _, path in asked[1:])

    def test_states(self) -> None:
        files = MemoryFiles()
        publish(writer(files), 1, 2)
        dying = FaultyFiles(files)
        store = writer(dying)
        dying.before = dies_after(2)
        with pytest.raises(Killed):
            publish(store, 3)
        [manifest] = [
            path for path in files.files if "step-00000001-" in path and "manifest" in path
        ]
        files.files[manifest] = flip(files.files[manifest], 5)
        listed = inspector(files).all()
        assert [item.state for item in listed] == [
            CheckpointState.UNFINISHED,
            CheckpointState.OK,
            CheckpointState.DAMAGED,
        ]
        assert listed[0].size == sum(sorted(map(len, content(3).values()))[:2])
        assert "did not finish" in listed[0].reason
        assert "manifest.json is damaged" in listed[2].reason
        assert listed[2].manifest is None
