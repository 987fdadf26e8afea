"""Where a worker finds its run and its configuration; all of it from arguments. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import RunConfig, parse_config
from tsgb.errors import CheckpointError, StoreError, StoreUnreachable, UsageError
from tsgb.plugins import NO_TRUST, Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What the environment would say; the command line fills it in."""

    cache_dir: Path
    user: str | None = None
    password: SecretStr | None = None
    grace_seconds: float = 60.0
    """Between a signal and the end of the process."""
    manifest_key: SecretStr | None = None
    trust: Trust = NO_TRUST
    """Modules that may be imported although only a stored configuration names them."""

    def open(self, run_url: str) -> RunStore:
        """A run's documents."""
        return open_run(
            run_url,
            self.user,
            self.password,
            manifest_key=self.manifest_key,
            cache=self.files,
        )

    @property
    def files(self) -> FileCache:
        """Files of remote checkpoints, kept on this machine."""
        return FileCache(self.cache_dir / "files")


def find_run(places: Places, url: str) -> RunStore:
    """The run that a user means by a run or store URL.

    Raises:
        UsageError: there is none, or the store holds several and none is named.
    """
    run = places.open(canonical_url(url))
    try:
        run.read_bytes("config.json")
    except FileNotFoundError:
        pass
    else:
        return run
    candidates: list[str] = []
    try:
        names = run.list("")
    except FileNotFoundError:
        names = list[str]()
    for name in names:
        try:
            run.read_bytes(f"{name}/config.json")
        except StoreUnreachable:
            raise  # nobody knows what is there
        except (FileNotFoundError, StoreError):
            continue
        candidates.append(name)
    if len(candidates) == 1:
        return places.open(f"{run.run_url}/{candidates[0]}")
    if not candidates:
        raise UsageError(
            f"no run at {run.run_url}: it has no config.json, and no directory below has one; "
            "give the URL of a run, or begin one with `tsgb experiment` or `tsgb train-local`"
        )
    raise UsageError(
        f"{run.run_url} holds {len(candidates)} runs ({', '.join(sorted(candidates)[:6])}): "
        f"name one, as in --resume-path {run.run_url}/{min(candidates)}"
    )


def read_config(run: RunStore) -> RunConfig:
    """The run's configuration.

    Raises:
        CheckpointError: there is none; checkpoints alone do not say what they belong to.
    """
    try:
        text = run.read_text("config.json")
    except FileNotFoundError:
        raise CheckpointError(
            f"run {run.run_url} has no config.json, which says how its guard is used: copy the "
            "whole run, not its checkpoints alone"
        ) from None
    return parse_config(text, f"{run.run_url}/config.json")
