"""What holds in every test of this suite: its secrets are in nothing that the session leaves.

Property tests draw the same examples in every session, and no example is timed: a busy machine
changes nothing. A failure prints the line that reproduces it.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.fakes.sentinels import pytest_configure, searched_for_secrets

__all__ = ["pytest_configure", "searched_for_secrets"]

settings.register_profile(
    "tsgb",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tsgb")
