"""Contexts of worker processes with what a test chooses, and defaults for the rest."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from tsgb.plugins import NO_TRUST, Trust
from tsgb.setting_groups import StoreSettings, WorkerSettings
from tsgb.worker.context import WorkerContext


def worker_context(
    cache_dir: Path,
    *,
    trust: Trust = NO_TRUST,
    user: str | None = None,
    password: SecretStr | None = None,
    manifest_key: SecretStr | None = None,
    grace_seconds: float = 60.0,
) -> WorkerContext:
    return WorkerContext(
        store=StoreSettings(webdav_user=user, webdav_pass=password, manifest_key=manifest_key),
        worker=WorkerSettings(cache_dir=cache_dir, grace_seconds=grace_seconds),
        trust=trust,
    )
