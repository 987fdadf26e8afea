"""Heartbeats: signs of life that never hold training up and never end it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.urls import local_path
from tsgb.errors import StoreError
from tsgb.logging import get_logger

LOCAL_SECONDS = 1.0
REMOTE_SECONDS = 5.0


class Beats:
    """Writes the newest heartbeat: at once to a disk, on a thread to anything slower."""

    def __init__(self, run: RunStore, name: str) -> None:
        self._run = run
        self._name = name
        self._remote = local_path(run.run_url) is None
        self._wake = threading.Condition()
        self._next: Mapping[str, Any] | None = None
        self._writing = False
        self._thread: threading.Thread | None = None

    @property
    def every_seconds(self) -> float:
        """Between two beats."""
        return REMOTE_SECONDS if self._remote else LOCAL_SECONDS

    def put(self, content: Mapping[str, Any]) -> None:
        """Write this one next; one that still waits is dropped for it."""
        if not self._remote:
            self._write(content)
            return
        with self._wake:
            self._next = content
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="beats", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        """Give the newest one time to arrive."""
        with self._wake:
            self._wake.wait_for(lambda: self._next is None and not self._writing, timeout_seconds)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._writing = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._next is not None)
                content, self._next, self._writing = self._next, None, True
            if content is not None:
                self._write(content)

    def _write(self, content: Mapping[str, Any]) -> None:
        try:
            self._run.write_json(self._name, content)
        except StoreError as error:
            get_logger().warning("heartbeat not written", reason=str(error))
