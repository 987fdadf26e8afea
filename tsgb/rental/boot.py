"""How a bare container becomes a worker: the code in the store, the script, the environment.

It knows what the two scripts of `infra/` read. It rents nothing and knows no account's key.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from pydantic import SecretStr

from tsgb.checkpoint.run import RunStore
from tsgb.errors import ConfigError, UsageError

_PACKAGES = ("tsgb", "flows")
_CONTROL_PLANE = frozenset({"prefect", "fastapi", "sqlalchemy"})
"""No worker imports them, which an import contract proves; they are 200 MB."""
_NEVER_SENT = frozenset({"VAST_API_KEY"})


@dataclass(frozen=True, slots=True)
class CodeArchive:
    """Our code in the store.

    Example: `CodeArchive("https://dav.example.org/tsgb/r1/code/1f2e....tar.gz", "1f2e...")`
    """

    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Boot:
    """What `Rental` takes."""

    onstart: str
    env: dict[str, SecretStr]


def publish_code(run: RunStore) -> CodeArchive:
    """Put the code that is running now into the run, unless it is there.

    Raises:
        StoreError: It cannot be written.
    """
    data = _packed()
    digest = hashlib.sha256(data).hexdigest()
    name = f"code/{digest}.tar.gz"
    try:
        there = hashlib.sha256(run.read_bytes(name)).hexdigest() == digest
    except FileNotFoundError:
        there = False
    if not there:
        run.write_bytes(name, data)
    return CodeArchive(f"{run.run_url}/{name}", digest)


def boot(
    *,
    run_url: str,
    attempt: int,
    arms: Sequence[str],
    code: CodeArchive,
    vast_url: str,
    webdav_user: str | None,
    webdav_pass: SecretStr | None,
    manifest_key: SecretStr | None,
    boot_seconds: float,
    worker_env: Mapping[str, str] | None = None,
) -> Boot:
    """What a machine is created with.

    Args:
        run_url: Of the main run.
        attempt: The fencing token.
        arms: What it trains, by name.
        code: See `publish_code`.
        vast_url: Where the machine destroys itself.
        webdav_user: Of the store.
        webdav_pass: Of the store.
        manifest_key: Signs checkpoints.
        boot_seconds: From the container's start until the watcher must have taken over.
        worker_env: More settings for the machine, such as `TSGB_GRACE_SECONDS`.

    Raises:
        UsageError: A key that must never leave the control plane is in `worker_env`.
    """
    given = dict(worker_env or {})
    if leaked := _NEVER_SENT & given.keys():
        raise UsageError(f"{', '.join(sorted(leaked))} must not be sent to a rented machine")
    bootstrap = gzip.compress(_script("bootstrap.sh").encode(), mtime=0)
    given |= {
        "TSGB_BOOT_B64": base64.b64encode(bootstrap).decode(),
        "TSGB_BOOT_SECONDS": str(max(1, round(boot_seconds))),
        "TSGB_VAST_URL": vast_url.rstrip("/"),
        "TSGB_CODE_URL": code.url,
        "TSGB_CODE_SHA256": code.sha256,
        "TSGB_RUN_URL": run_url,
        "TSGB_ATTEMPT": str(attempt),
        "TSGB_ARMS": ",".join(arms),
    }
    env = {name: SecretStr(value) for name, value in given.items()}
    if webdav_user is not None:
        env["RCLONE_WEBDAV_USER"] = SecretStr(webdav_user)
    if webdav_pass is not None:
        env["RCLONE_WEBDAV_PASS"] = webdav_pass
    if manifest_key is not None:
        env["TSGB_MANIFEST_KEY"] = manifest_key
    return Boot(_script("onstart.sh"), env)


def _script(name: str) -> str:
    """From the checkout, or from the wheel, which carries it beside this file."""
    here = Path(__file__).parent
    for path in (here / name, here.parents[1] / "infra" / name):
        if path.is_file():
            return path.read_text()
    raise ConfigError(f"{name} is not installed with tsgb: install it from its repository")


def _packed() -> bytes:
    """Equal code gives equal bytes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, data in sorted(_files()):
            entry = tarfile.TarInfo(name)  # no owner, time 0
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _files() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"package {package} is not installed")
        root = Path(spec.submodule_search_locations[0])
        for path in root.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()
    yield "requirements.txt", "".join(f"{line}\n" for line in _requirements()).encode()


def _requirements() -> list[str]:
    """What the worker needs, without extras."""
    named = [line for line in requires("tsgb") or [] if "extra ==" not in line]
    return sorted(
        line for line in named if re.split(r"[^A-Za-z0-9._-]", line)[0] not in _CONTROL_PLANE
    )
