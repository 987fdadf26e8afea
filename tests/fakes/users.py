"""Users of this machine that a test can be for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def other_user() -> Iterator[None]:
    """Be a user without a passwd entry, who is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    before = os.getresuid()
    os.setresuid(54321, 54321, 0)
    try:
        yield
    finally:
        os.setresuid(*before)
