"""A process may die at any request, a read among them: what was there before stays loadable."""

from __future__ import annotations

from itertools import count

import pytest

from tests.fakes.checkpoints import content, open_store, publish, writer
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles


class Countdown:
    """For `FaultyFiles`: dies at a request, after so many have been let through."""

    def __init__(self, num_requests: int) -> None:
        self.left = num_requests

    def __call__(self, operation: str, path: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def life(files: FaultyFiles) -> None:
    """All that a worker asks of its store: claim, resume, save, prune."""
    store = writer(files)
    assert store.newest_valid(pytest.fail) is not None
    publish(store, 8, 9)
    store.prune(keep=1)


@pytest.mark.parametrize("torn", [False, True], ids=["clean kill", "half a file left"])
def test_any_prefix_of_the_requests_leaves_a_whole_checkpoint(torn: bool) -> None:
    seen: set[int] = set()
    for num_requests in count():
        files = MemoryFiles()
        publish(writer(files), 6, 7)
        dying = FaultyFiles(files, Countdown(num_requests), torn=torn)
        try:
            life(dying)
        except Killed:
            found = open_store(files).newest_valid(lambda _line: None)
            assert found is not None, f"after {num_requests} requests"
            assert found[1] == content(found[0].step), f"after {num_requests} requests"
            seen.add(found[0].step)
            # The next machine goes on.
            publish(writer(files), 10)
            newest = open_store(files).newest()
            assert newest is not None
            assert newest.step == 10
            continue
        break
    assert num_requests > 40
    assert seen == {7, 8, 9}
