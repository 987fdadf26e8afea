"""What holds in every test of this suite: its secrets are in nothing that the session leaves."""

from __future__ import annotations

from tests.fakes.sentinels import pytest_configure, searched_for_secrets

__all__ = ["pytest_configure", "searched_for_secrets"]
