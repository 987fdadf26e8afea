"""What a machine is created with: the code, the scripts, the environment and no more."""

from __future__ import annotations

import base64
import gzip
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud import bundle as module
from tsgb.cloud.bundle import BootSpec, CodeArchive, boot
from tsgb.cloud.vast.records import Rental
from tsgb.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[3]
CODE = CodeArchive("https://dav.example.org/tsgb/r1/code/0.tar.gz", "0" * 64)
SECRETS = {"webdav_pass": "sentinel-password", "manifest_key": "sentinel-manifest-key"}


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def run(files: MemoryFiles) -> RunStore:
    return RunStore(files, files.url)


def make(**changes: Any) -> BootSpec:
    given: dict[str, Any] = {
        "run_url": "https://dav.example.org/tsgb/r1",
        "attempt": 3,
        "arms": ["selfplay", "sft", "frozen"],
        "code": CODE,
        "vast_url": "https://console.vast.ai/",
        "webdav_user": "me",
        **{name: SecretStr(value) for name, value in SECRETS.items()},
        "boot_seconds": 900.0,
    }
    return boot(**given | changes)


def plain(made: BootSpec) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in made.env.items()}


def test_it_fits_into_a_rental() -> None:
    made = make()
    rental = Rental(
        image="img", label="l", price=0.1, disk_gb=20, onstart=made.onstart, env=made.env
    )
    assert rental.body()["onstart"] == made.onstart
    assert len(made.onstart.encode()) < 2048
    assert made.onstart.isascii()


def test_the_bootstrap_travels_in_a_variable() -> None:
    packed = plain(make())["TSGB_BOOT_B64"]
    text = gzip.decompress(base64.b64decode(packed)).decode()
    assert text == (ROOT / "infra" / "bootstrap.sh").read_text()
    assert make().env["TSGB_BOOT_B64"] == make().env["TSGB_BOOT_B64"]


def test_what_the_machine_must_know() -> None:
    env = plain(make(worker_env={"TSGB_GRACE_SECONDS": "30"}))
    del env["TSGB_BOOT_B64"]
    assert env == {
        "TSGB_BOOT_SECONDS": "900",
        "TSGB_VAST_URL": "https://console.vast.ai",
        "TSGB_CODE_URL": CODE.url,
        "TSGB_CODE_SHA256": CODE.sha256,
        "TSGB_RUN_URL": "https://dav.example.org/tsgb/r1",
        "TSGB_ATTEMPT": "3",
        "TSGB_ARMS": "selfplay,sft,frozen",
        "TSGB_GRACE_SECONDS": "30",
        "RCLONE_WEBDAV_USER": "me",
        "RCLONE_WEBDAV_PASS": "sentinel-password",
        "TSGB_MANIFEST_KEY": "sentinel-manifest-key",
    }
    nobody = plain(make(webdav_user=None, webdav_pass=None, manifest_key=None))
    assert not {"RCLONE_WEBDAV_USER", "RCLONE_WEBDAV_PASS", "TSGB_MANIFEST_KEY"} & nobody.keys()


def test_the_accounts_key_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_API_KEY", "sentinel-account-key")
    made = make()
    assert "VAST_API_KEY" not in made.env
    assert "sentinel-account-key" not in f"{plain(made)}{made.onstart}"
    with pytest.raises(UsageError, match="VAST_API_KEY must not be sent"):
        make(worker_env={"VAST_API_KEY": "sentinel-account-key"})


def test_secrets_show_in_no_repr() -> None:
    assert not [value for value in SECRETS.values() if value in repr(make())]


def test_a_wheel_carries_the_scripts_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {
        f"infra/{name}": f"tsgb/cloud/{name}" for name in ("onstart.sh", "bootstrap.sh")
    }
    monkeypatch.setattr(module, "__file__", str(tmp_path / "tsgb" / "cloud" / "bundle.py"))
    with pytest.raises(ConfigError, match=r"bootstrap\.sh is not installed"):
        make()
    for source, target in included.items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).write_text((ROOT / source).read_text())
    assert make().onstart == (ROOT / "infra" / "onstart.sh").read_text()


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("script", ["onstart.sh", "bootstrap.sh"])
def test_every_shell_can_read_the_scripts(shell: str, script: str) -> None:
    done = subprocess.run(
        [shell, "-n", str(ROOT / "infra" / script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
