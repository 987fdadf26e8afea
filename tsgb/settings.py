"""What a process reads from its environment: addresses, secrets, places. Only flows and cli use it.

What determines a result is in `config.py` instead. This is the only file that touches `os.environ`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tsgb.errors import ConfigError

_NOT_THEIRS = frozenset({"VAST_API_KEY", "CONTAINER_API_KEY"})


def _user_cache() -> Path:
    """The user's cache directory, as the XDG base directory specification names it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "tsgb"


class Settings(BaseSettings):
    """All environment variables of TSGB; an `.env` file in the working directory counts too."""

    model_config = SettingsConfigDict(
        env_prefix="TSGB_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,  # it may be a secret
        use_attribute_docstrings=True,
    )

    webdav_url: str | None = Field(default=None, validation_alias="RCLONE_WEBDAV_URL")
    """Store for runs, `https://...`; the default store where it is set."""
    webdav_user: str | None = Field(default=None, validation_alias="RCLONE_WEBDAV_USER")
    webdav_pass: SecretStr | None = Field(default=None, validation_alias="RCLONE_WEBDAV_PASS")
    """In plain text."""
    store: str | None = None
    """Store for runs: a path or any fsspec URL. Wins over RCLONE_WEBDAV_URL."""
    manifest_key: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Signs checkpoints; one that is not signed with it does not count."""
    vast_api_key: SecretStr | None = Field(default=None, validation_alias="VAST_API_KEY")
    """Rents machines; a worker never gets it."""
    vast_url: str = "https://console.vast.ai"
    """Vast.ai, or a simulator of it."""
    deployment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,15}$")] = "home"
    """Part of the labels of instances: those of another deployment are never touched."""
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Dollars that one run may cost on rented machines, all attempts together."""
    max_price: Annotated[float, Field(gt=0, le=128)] = 0.3
    """Dollars an hour that one machine may cost, storage included."""
    image: str = "python:3.11-slim"
    """Container image of rented machines; infra/Dockerfile makes one that starts faster."""
    image_gb: Annotated[float, Field(ge=0, le=500)] = 0.05
    """What a host downloads of it, compressed: billed before anything inside can count it."""
    disk_gb: Annotated[float, Field(ge=8, le=2048)] = 20.0
    """Disk of a rented machine."""
    gpus: Annotated[tuple[str, ...], NoDecode] = ()
    """Names of GPUs that may be rented, commas between; any if empty."""
    gpu_ram_gb: Annotated[float, Field(ge=0)] = 8.0
    """Least memory of its GPU."""
    reliability: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least reliability of a host, by the service's own measure."""
    look_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Between two looks at a rented machine."""
    lease_seconds: Annotated[float, Field(ge=1)] = 1200.0
    """So long a rented machine works on when its flow is dead."""
    skew_seconds: Annotated[float, Field(ge=0)] = 600.0
    """By how much the clocks of this machine, a rented one and the reaper's may differ."""
    provision_seconds: Annotated[float, Field(gt=0)] = 1200.0
    """From a rental to the first sign of life, then the machine is given up."""
    silence_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Without a sign of life from a rented machine, then it is given up."""
    offer_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """So long an offer within the terms is waited for."""
    container_id: str | None = Field(default=None, validation_alias="CONTAINER_ID")
    """Of the rented machine that this is; the service sets it."""
    container_api_key: SecretStr | None = Field(default=None, validation_alias="CONTAINER_API_KEY")
    """Destroys this rented machine and does nothing else; the service sets it."""
    lease_poll_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Between two looks of a rented machine at its lease; its other paces follow."""
    min_free_gb: Annotated[float, Field(ge=0)] = 2.0
    """Free disk without which a rented machine does not begin."""
    net_dev: Path = Path("/proc/net/dev")
    """Where a rented machine reads how many bytes it sent and got."""
    net_before: Path | None = None
    """The same as it was when the container started; `infra/bootstrap.sh` sets it."""
    alive_file: Path | None = None
    """Touched by a rented machine's watcher while it is alive."""
    cache_dir: Path = Field(default_factory=_user_cache)
    """Built models, files of remote checkpoints (at most 4 GiB), logs of workers and the database
    of the embedded Prefect API."""
    worker_command: Annotated[list[str], NoDecode] = [sys.executable, "-m", "tsgb.cli", "worker"]
    """What starts a worker, split as a shell would."""
    max_parallel: Annotated[int, Field(gt=0)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Workers at a time."""
    poll_seconds: Annotated[float, Field(gt=0)] = 0.5
    """Between two looks at the workers."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a worker may take to save after SIGTERM."""
    stall_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A worker without a sign of life for so long is taken away and started anew."""
    retries: Annotated[int, Field(ge=0)] = 20
    """How often one segment survives the loss of its machines."""
    retry_delay_seconds: Annotated[float, Field(ge=0)] = 1.0

    @field_validator("worker_command", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return shlex.split(value) if isinstance(value, str) else value

    @field_validator("gpus", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @property
    def default_store(self) -> str:
        """Where runs go unless a store is named: `./runs` if the environment names none either."""
        return self.store or self.webdav_url or str(Path("runs").absolute())

    @property
    def prefect_home(self) -> Path:
        """Home of the embedded Prefect API."""
        return self.cache_dir / "prefect"

    @property
    def log_dir(self) -> Path:
        """Logs of workers, a directory a run."""
        return self.cache_dir / "logs"


def load_settings() -> Settings:
    """Read the environment now.

    Raises:
        ConfigError: A variable has a value that its rule forbids.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"environment variable for {name!r}: {first['msg']}; set it right or unset it"
        ) from error


def child_environment(settings: Settings | None = None) -> Mapping[str, str]:
    """The environment for a process of ours: without Prefect's variables, which are not its.

    Nor are the keys that rent and destroy machines. With `settings`, the store's secrets are in it
    even if they came from an `.env` file.
    """
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and k not in _NOT_THEIRS
    }
    if settings is not None:
        if settings.webdav_user is not None:
            environment["RCLONE_WEBDAV_USER"] = settings.webdav_user
        if settings.webdav_pass is not None:
            environment["RCLONE_WEBDAV_PASS"] = settings.webdav_pass.get_secret_value()
        if settings.manifest_key is not None:
            environment["TSGB_MANIFEST_KEY"] = settings.manifest_key.get_secret_value()
    return environment
