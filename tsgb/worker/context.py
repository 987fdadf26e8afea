"""Context of a worker process: its settings, the runs that it opens, the signals that stop it.

Everything is an argument: nothing here reads the environment. Torch-free.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType

from pydantic import SecretStr

from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.documents import MAX_JSON_BYTES
from tsgb.checkpoint.filesystem import DEADLINE_SECONDS
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import RunConfig, parse_config
from tsgb.errors import CheckpointError, Interrupted, StoreError, StoreUnreachable, UsageError
from tsgb.plugins import NO_TRUST, Trust
from tsgb.setting_groups import (
    CloudSettings,
    HubSettings,
    InstanceSettings,
    StoreSettings,
    WorkerSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Settings of a worker process.

    Example: `WorkerContext(store=settings, worker=settings).open("file:///tmp/runs/r1")`
    """

    store: StoreSettings
    """Credentials of the store."""
    worker: WorkerSettings
    """Directories of this machine, and how workers are run."""
    hub: HubSettings = field(default_factory=HubSettings)
    """The hub that pretrained models come from."""
    trust: Trust = NO_TRUST
    """Modules that may be imported although only a stored configuration names them."""
    keys: Callable[[str], SecretStr | None] = lambda _: None
    """Returns the key of an endpoint in a variable of the environment, by the variable's name."""

    def open(self, run_url: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> RunStore:
        """Open a run, which need not exist yet.

        Args:
            run_url: URL of the run.
            deadline_seconds: Seconds after which a silent store counts as unreachable.
        """
        return open_run(
            run_url,
            self.store.webdav_user,
            self.store.webdav_pass,
            manifest_key=self.store.manifest_key,
            cache=self.file_cache,
            deadline_seconds=deadline_seconds,
        )

    @property
    def file_cache(self) -> FileCache:
        """Files of remote checkpoints, kept on this machine."""
        return FileCache(self.worker.cache_dir / "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineContext(WorkerContext):
    """Settings of a rented machine.

    Example: `MachineContext(store=s, worker=s, instance=s, cloud=s, environment={})`
    """

    instance: InstanceSettings
    """The instance that this machine is."""
    cloud: CloudSettings
    """Address of the provider."""
    environment: Mapping[str, str]
    """Environment of the worker processes."""


def find_run(context: WorkerContext, url: str) -> RunStore:
    """Return the run that a user means by the URL of a run, or of a store with one run.

    Raises:
        UsageError: There is none, or the store has several and none is named.
    """
    run = context.open(canonical_url(url))
    try:
        run.read_bytes("config.json", MAX_JSON_BYTES)
    except FileNotFoundError:
        pass
    else:
        return run
    candidates: list[str] = []
    for name in run.list_if_present(""):
        try:
            run.read_bytes(f"{name}/config.json", MAX_JSON_BYTES)
        except StoreUnreachable:
            raise  # it may be a run
        except (FileNotFoundError, StoreError):
            continue
        candidates.append(name)
    if len(candidates) == 1:
        return context.open(f"{run.run_url}/{candidates[0]}")
    if not candidates:
        raise UsageError(
            f"no run at {run.run_url}: it has no config.json, and no directory below has one; "
            "give the URL of a run, or begin one with `tsgb experiment` or `tsgb train-local`"
        )
    raise UsageError(
        f"{run.run_url} has {len(candidates)} runs ({', '.join(sorted(candidates)[:6])}): "
        f"name one, as in --resume-path {run.run_url}/{min(candidates)}"
    )


def read_config(run: RunStore) -> RunConfig:
    """Return the run's configuration.

    Raises:
        CheckpointError: There is none; checkpoints alone do not name their configuration.
    """
    try:
        text = run.read_text("config.json", MAX_JSON_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"run {run.run_url} has no config.json, which says how its guard is used: copy the "
            "whole run, not its checkpoints alone"
        ) from None
    return parse_config(text, f"{run.run_url}/config.json")


class StopSignals:
    """Handler of SIGTERM and SIGINT: the first sets a flag, the second ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal; None before it."""

    @classmethod
    def installed(cls) -> StopSignals:
        """Install the handler of both signals; only the main thread may do so."""
        signals = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signals._handle)
        return signals

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            Interrupted: One has.
        """
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Interrupted(f"stopped by {name}; the same command goes on from here")
