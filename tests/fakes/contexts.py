"""Contexts of worker processes with what a test chooses, and defaults for the rest."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tsgb.checkpoint.run import RunStore
from tsgb.plugins import NO_TRUST, Trust
from tsgb.setting_groups import HubSettings, StoreSettings, WorkerSettings
from tsgb.worker.context import WorkerContext


def worker_context(
    cache_dir: Path,
    *,
    trust: Trust = NO_TRUST,
    user: str | None = None,
    password: SecretStr | None = None,
    manifest_key: SecretStr | None = None,
    grace_seconds: float = 60.0,
    hub: HubSettings | None = None,
    resume_pins: str | None = None,
) -> WorkerContext:
    return WorkerContext(
        store=StoreSettings(webdav_user=user, webdav_pass=password, manifest_key=manifest_key),
        worker=WorkerSettings(
            cache_dir=cache_dir, grace_seconds=grace_seconds, resume_pins=resume_pins
        ),
        trust=trust,
        hub=hub or HubSettings(),
    )


def signalled(cache_dir: Path, trust: Trust = NO_TRUST) -> WorkerContext:
    """A context whose process is told to stop, once, as soon as a run is opened."""
    opened: list[str] = []

    class Signalled(WorkerContext):
        def open(self, run_url: str, **options: Any) -> RunStore:
            if not opened:
                os.kill(os.getpid(), signal.SIGTERM)
            opened.append(run_url)
            return WorkerContext.open(self, run_url, **options)

    made = worker_context(cache_dir, trust=trust)
    return Signalled(store=made.store, worker=made.worker, trust=made.trust)
