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


@contextmanager
def unknown_user() -> Iterator[None]:
    """Be a user without a passwd entry, so without a home, who may still read what root may.

    A command imports modules when it needs them, and root's Python may lie where others read
    nothing: as `other_user` it would find only what earlier tests of this process had imported.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    before = os.getresuid()
    os.setresuid(54321, 0, 0)  # `~` is the home of the real user, permissions the effective one's
    try:
        yield
    finally:
        os.setresuid(*before)
