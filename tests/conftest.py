"""What holds in every test of this suite: its secrets are in nothing that the session leaves.

Property tests draw the same examples in every session, and no example is timed: a busy machine
changes nothing. A failure prints the line that reproduces it.

Compiled bytecode is kept, whatever the environment says: the suite starts some hundred processes,
and without it each spends more time on compiling torch and Prefect than on importing them.
"""

from __future__ import annotations

import os
import sys

from hypothesis import HealthCheck, settings

from tests.fakes.sentinels import pytest_configure, searched_for_secrets

__all__ = ["pytest_configure", "searched_for_secrets"]

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile(
    "tsgb",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tsgb")
