"""A service with a guard that counts words, asked without a network."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr
from starlette.testclient import TestClient

from tests.fakes.word_guard import WordGuard
from tsgb.serve.app import GuardService, ServiceLimits
from tsgb.serve.audit import AuditLog
from tsgb.serve.feedback import FeedbackFile

HERE = "http://127.0.0.1:8100"


@contextmanager
def asking(
    guard: WordGuard | None = None,
    *,
    token: str | None = None,
    audit: AuditLog | None = None,
    feedback: FeedbackFile | None = None,
    **limits: Any,
) -> Generator[TestClient]:
    """A client of a service that has started."""
    service = GuardService(
        guard or WordGuard(),
        limits=ServiceLimits(**limits),
        token=None if token is None else SecretStr(token),
        audit=audit,
        feedback=feedback,
    )
    with TestClient(service.app(), base_url=HERE, raise_server_exceptions=False) as client:
        yield client
