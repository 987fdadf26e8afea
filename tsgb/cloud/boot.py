"""How a bare container becomes a worker: the script and the environment.

It knows what the two scripts of `infra/` read. It rents nothing and knows no account's key.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from tsgb.cloud.bundle import CodeArchive
from tsgb.errors import ConfigError, UsageError

_NEVER_SENT = frozenset({"VAST_API_KEY"})


@dataclass(frozen=True, slots=True)
class Boot:
    """What `Rental` takes."""

    onstart: str
    env: dict[str, SecretStr]


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
