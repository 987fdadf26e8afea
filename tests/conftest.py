"""What holds in every test of this suite: its secrets are in nothing that the session leaves.

Property tests draw the same examples in every session, and no example is timed: a busy machine
changes nothing. A failure prints the line that reproduces it. Of several processes (`pytest -n 4
--dist loadfile`) each takes whole files, and one of them all that needs the session's server.

Compiled bytecode is kept, whatever the environment says: the suite starts some hundred processes,
and without it each spends more time on compiling torch and Prefect than on importing them. Torch
has one thread, as in a worker: processes share few cores, and models of tests are too small for a
second thread to be worth its start.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from flows import embedded
from tests.fakes.sentinels import pytest_configure, searched_for_secrets
from tsgb.settings import child_environment

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

__all__ = ["pytest_configure", "searched_for_secrets"]

WITH_PREFECT = (
    "tests/flows/",
    "tests/integration/test_experiment_endpoints.py",
    "tests/integration/test_kill.py",
    "tests/integration/test_secrets.py",
)

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile(
    "tsgb",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tsgb")


def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer | None
) -> LoadFileScheduling | None:
    """Give out files as `--dist loadfile` does, and all that needs Prefect's server as one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "Prefect" if file.startswith(WITH_PREFECT) else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of every later collection of garbage.

    It is alive until the end, and looking through it took a sixth of the CPU time of unit tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def migrated(pytestconfig: pytest.Config) -> Path:
    """A migrated database, kept between sessions: making one takes 6 of 15 seconds of CPU time."""
    cache = pytestconfig.cache
    assert cache is not None
    home = cache.mkdir("prefect-api")
    found = home / embedded.TEMPLATE
    if not found.exists():
        with embedded.start(home, "first", child_environment()) as api:
            api.wait()
    return found


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[None]:
    """One embedded API for all tests of the session that run flows in this process.

    A second one beside it would get no events: Prefect's client keeps the connection of the first.
    """
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(migrated, home)
    with embedded.start(home, "tests", child_environment()) as api, embedded.connected(api):
        yield
