"""The settings of TSGB in groups: each is declared once, here, and is passed on whole.

A group is a plain record. It reads no environment, so any module of the library may take one as an
argument; `tsgb/settings.py` joins the groups and fills them in. Names of environment variables are
`TSGB_` and the field's name in capitals, unless the field says otherwise.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from tsgb.errors import ConfigError

IMAGE = "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime"
"""Default image of rented machines: PyTorch's own, with the torch that pyproject.toml requires
(2.13.0+cu130, Python 3.12); a host that keeps popular images downloads little of it. It changes
together with the torch in pyproject.toml and infra/Dockerfile, which a test compares."""
IMAGE_GB = 3.0
"""Its compressed size by a published table of images built on it; the wheels of torch and of its
CUDA libraries, which it holds, have 2.73 GB."""


class SettingsGroup(BaseModel):
    """Settings that belong together; errors never show their values."""

    model_config = SettingsConfigDict(
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,  # it may be a secret
        use_attribute_docstrings=True,
    )


class StoreSettings(SettingsGroup):
    """The store of runs, and the credentials for it.

    Example: `StoreSettings(webdav_url="https://dav.example.org/tsgb", webdav_user="me")`
    """

    webdav_url: str | None = Field(default=None, validation_alias="RCLONE_WEBDAV_URL")
    """URL of the WebDAV store for runs, `https://...`."""
    webdav_user: str | None = Field(default=None, validation_alias="RCLONE_WEBDAV_USER")
    """User name for the WebDAV store."""
    webdav_pass: SecretStr | None = Field(default=None, validation_alias="RCLONE_WEBDAV_PASS")
    """Password for the WebDAV store, in plain text (rclone itself obscures it); no URL may
    hold it."""
    store: str | None = None
    """Store for runs: a path or any fsspec URL. It wins over RCLONE_WEBDAV_URL, and --store wins
    over both; without any it is ./runs."""
    manifest_key: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Key of at least 16 characters that signs checkpoints and evaluations; what is not signed with
    it does not count."""

    @field_validator("webdav_url")
    @classmethod
    def _check_scheme(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(webdav\+)?https?://", value):
            # The value is not repeated: without a scheme, a password in it is hard to find.
            raise ValueError("it has no scheme, so it would name a local directory: write https://")
        return value

    @property
    def default_store(self) -> str:
        """Store for runs when none is named: `./runs` if the environment names none either."""
        return self.store or self.webdav_url or str(Path("runs").absolute())


class ExchangeSettings(StoreSettings):
    """The exchange that rented machines see, beside the store that they do not.

    Example: `ExchangeSettings(exchange_url="https://dav.example.org/machines")`
    """

    exchange_url: str | None = None
    """Directory for rented machines: a WebDAV URL with credentials of its own, so that a host sees
    nothing of your runs. Without it a directory of the store, whose password hosts get then."""
    exchange_user: str | None = None
    """User name for the exchange, which rented machines get."""
    exchange_pass: SecretStr | None = None
    """Password for the exchange, which rented machines get."""


class HubSettings(StoreSettings):
    """The Hugging Face Hub, or a server like it, and other places of pretrained models.

    Example: `HubSettings(hf_offline=True, hf_cache=Path("hub"))`
    """

    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    """Token for models that are gated or private; a rented machine never gets it. Without it the
    one that `hf auth login` stored."""
    hf_endpoint: str | None = Field(default=None, validation_alias="HF_ENDPOINT")
    """URL of the hub; without it https://huggingface.co."""
    hf_offline: bool = Field(default=False, validation_alias="HF_HUB_OFFLINE")
    """Whether only models in the local cache are used (0 or 1)."""
    hf_cache: Path | None = Field(default=None, validation_alias="HF_HUB_CACHE")
    """Directory of downloaded models; without it hub below HF_HOME, or ~/.cache/huggingface/hub."""
    models_url: str | None = None
    """Directory of pushed models; a rented machine gets it, and elsewhere `tsgb models pull` gets
    them."""


class EndpointSettings(SettingsGroup):
    """Keys of the services that black boxes are asked at; nothing else may hold one.

    A targets file may name other variables, which `tsgb.settings.endpoint_key` reads likewise.

    Example: `EndpointSettings(openai_api_key=SecretStr("..."))`
    """

    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    """Key for targets of the kind openai, at the address that the target names; a rented machine
    never gets it."""
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    """Key for targets of the kind anthropic, likewise."""


class ServeSettings(SettingsGroup):
    """Secrets of `tsgb serve`.

    Example: `ServeSettings(serve_token=SecretStr("..."))`
    """

    serve_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Secret of at least 16 characters that clients of `tsgb serve` have to show; without it only
    this machine may ask."""
    upstream_key: SecretStr | None = None
    """Key of the model service behind `tsgb serve --upstream`; no client of the proxy sees it."""


class WorkerSettings(SettingsGroup):
    """How worker processes are started and watched on the machine that drives a run.

    Example: `WorkerSettings(cache_dir=Path("cache"), max_parallel=2)`
    """

    cache_dir: Path
    """Directory of built models, files of remote checkpoints (at most 4 GiB), logs of workers and
    the database of the embedded Prefect API."""
    worker_command: Annotated[list[str], NoDecode] = [sys.executable, "-m", "tsgb.cli", "worker"]
    """Command that starts a worker, split as a shell would split it; without it this Python with
    `-m tsgb.cli worker`."""
    max_parallel: Annotated[int, Field(gt=0)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Number of workers that run at a time, at most; without it the number of cores. Fewer run
    where memory has no room for the models of so many."""
    memory_shares: Annotated[int, Field(gt=0)] = 1
    """Number of equal parts that the memory of this machine, and of its cards, is divided into; a
    process takes one. A flow sets it for the workers that it starts."""
    poll_seconds: Annotated[float, Field(gt=0)] = 0.5
    """Seconds between two looks at the workers."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that a worker may take to save after SIGTERM."""
    stall_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without progress after which a worker is killed and started anew."""
    retries: Annotated[int, Field(ge=0)] = 20
    """Number of times that one segment survives the loss of its machines."""
    resume_pins: str | None = None
    """Hashes of the manifests that a rented machine may go on from, commas between; a flow sets
    them. None where it goes on from any."""
    retry_delay_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Seconds between the loss of a machine and the next attempt."""
    task_runner: str = "local"
    """Where stage 2 evaluates: `local` on this machine, `dask` or `ray` in a cluster of this
    machine, `dask:ADDRESS` or `ray:ADDRESS` in a running one."""

    @field_validator("task_runner")
    @classmethod
    def _known_runner(cls, value: str) -> str:
        if not re.fullmatch(r"local|(dask|ray)(:\S+)?", value):
            raise ValueError("it is local, dask, dask:ADDRESS, ray or ray:ADDRESS")
        return value

    @field_validator("worker_command", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return shlex.split(value) if isinstance(value, str) else value

    @field_validator("cache_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return Path(os.path.expanduser(value))  # noqa: PTH111 - pathlib's raises without a home

    def make_cache_dir(self) -> Path:
        """Make the cache directory if there is none, and return it.

        Raises:
            ConfigError: It cannot be made, or not written.
        """
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(self.cache_dir, os.W_OK | os.X_OK) else "Permission denied"
        except OSError as error:
            reason = f"{error.strerror}"
        if reason:
            raise ConfigError(
                f"cache directory {self.cache_dir} cannot be written ({reason}): set "
                "TSGB_CACHE_DIR to a directory that you can write"
            )
        return self.cache_dir

    def shared_by(self, num: int) -> dict[str, str]:
        """Return the variables of each of `num` processes that divide the share of this one."""
        return {"TSGB_MEMORY_SHARES": str(self.memory_shares * num)}

    @property
    def prefect_home(self) -> Path:
        """Home directory of the embedded Prefect API."""
        return self.cache_dir / "prefect"

    @property
    def log_dir(self) -> Path:
        """Directory of the workers' logs, with a directory for each run."""
        return self.cache_dir / "logs"


class CloudSettings(SettingsGroup):
    """The account that rents machines, which ones it may rent, and how they are watched.

    Example: `CloudSettings(budget=20.0, max_price=0.25, gpus=("RTX 3090",))`
    """

    vast_api_key: SecretStr | None = Field(default=None, validation_alias="VAST_API_KEY")
    """Key that rents machines, with the permissions misc, user_read, instance_read and
    instance_write; a worker never gets it."""
    vast_url: str = "https://console.vast.ai"
    """URL of Vast.ai, or of a simulator of it; `http://` only on this machine."""
    deployment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,15}$")] = "home"
    """Part of the labels of instances; instances of another deployment are never touched."""
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Dollars that all seeds of a run may cost on rented machines, all attempts together."""
    max_price: Annotated[float, Field(gt=0, le=128)] = 0.3
    """Dollars an hour that one machine may cost, storage included."""
    image: str = IMAGE
    """Container image of rented machines, with Python 3.11 or 3.12; infra/Dockerfile makes one that
    starts faster."""
    image_gb: Annotated[float, Field(ge=0, le=500)] = IMAGE_GB
    """GB that a host downloads of the image, compressed; billed before the container starts."""
    disk_gb: Annotated[float, Field(ge=8, le=2048)] | None = None
    """Disk of a rented machine, GB; without it what the run's models need, and 20 at least."""
    gpus: Annotated[tuple[str, ...], NoDecode] = ()
    """Names of GPUs that may be rented, commas between, as in RTX 3090,RTX 4090; any if empty."""
    regions: Annotated[tuple[str, ...], NoDecode] = ()
    """Countries to rent in by their codes of two letters, commas between, as in DE,US; any if
    empty."""
    gpu_ram_gb: Annotated[float, Field(ge=0)] | None = None
    """Least memory of the GPU, GB, where you want more than the run's models need; 0 trains them
    without a card."""
    reliability: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least reliability of a host, 0 to 1, by the service's own measure."""
    look_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Seconds between two looks at a rented machine."""
    copy_every: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Saves of a rented machine after which one is copied into the store, while it works on; 0
    copies the last of each segment, and one an hour."""
    lease_seconds: Annotated[float, Field(ge=1, le=21_600)] = 1200.0
    """Seconds that a rented machine works on when its flow is dead."""
    skew_seconds: Annotated[float, Field(ge=0)] = 600.0
    """Seconds by which the clocks of this machine, a rented one and the reaper's may differ."""
    provision_seconds: Annotated[float, Field(gt=0)] = 1200.0
    """Seconds from a rental to the first heartbeat, after which the machine is given up."""
    silence_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a heartbeat after which a rented machine is given up."""
    offer_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """Seconds to wait for an offer that fits."""

    @field_validator("gpus", "regions", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("regions")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        codes = tuple(code.upper() for code in value)
        if not all(re.fullmatch("[A-Z]{2}", code) for code in codes):
            raise ValueError("a country is a code of two letters: write DE,US")
        return codes


class InstanceSettings(SettingsGroup):
    """Identity and intervals of a rented machine.

    Example: `InstanceSettings(container_id="7835610", alive_file=Path("alive"))`
    """

    container_id: str | None = Field(default=None, validation_alias="CONTAINER_ID")
    """Id of the instance that this machine is."""
    container_api_key: SecretStr | None = Field(default=None, validation_alias="CONTAINER_API_KEY")
    """Key that destroys this instance and does nothing else."""
    lease_poll_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds between two looks at the lease; the machine's other intervals follow from it."""
    min_free_gb: Annotated[float, Field(ge=0)] = 2.0
    """GB of free disk without which the machine does not begin."""
    net_dev: Path = Path("/proc/net/dev")
    """File with the counters of bytes sent and received."""
    net_before: Path | None = None
    """Copy of that file from the container's start; `infra/bootstrap.sh` sets it."""
    alive_file: Path | None = None
    """File that the watcher of a rented machine touches while it is alive."""
    card_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """GB of memory that the GPU must have, by the rental; 0 needs none, and looks for none."""
    probe_command: Annotated[list[str], NoDecode] = [sys.executable, "-m", "tsgb.worker.card_probe"]
    """Command that uses the GPU for some seconds and tells what it found, split as a shell would
    split it; without it this Python with `-m tsgb.worker.card_probe`."""

    @field_validator("probe_command", mode="before")
    @classmethod
    def _split_probe(cls, value: Any) -> Any:
        return shlex.split(value) if isinstance(value, str) else value
