"""The environment becomes typed settings, and secrets stay secret."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

from tests.fakes.sentinels import sentinel
from tsgb.cloud.vast.client import VAST_URL
from tsgb.errors import ConfigError
from tsgb.settings import child_environment, load_settings

PASSWORD, KEY = sentinel("webdav"), sentinel("key")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("TSGB_", "RCLONE_WEBDAV_", "VAST_", "XDG_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.default_store == str(tmp_path / "runs")
    assert settings.cache_dir == Path.home() / ".cache" / "tsgb"
    assert settings.worker_command[1:] == ["-m", "tsgb.cli", "worker"]


def test_the_store_comes_from_the_webdav_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_WEBDAV_URL", "https://dav.example.org/tsgb")
    monkeypatch.setenv("RCLONE_WEBDAV_PASS", PASSWORD)
    assert load_settings().default_store == "https://dav.example.org/tsgb"
    assert PASSWORD not in repr(load_settings())
    monkeypatch.setenv("TSGB_STORE", "/elsewhere")
    assert load_settings().default_store == "/elsewhere"


@pytest.mark.parametrize("url", ["dav.example.org/tsgb", "nextcloud:tsgb", "/srv/dav", "ftp://h/d"])
def test_the_webdav_url_needs_its_scheme(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RCLONE_WEBDAV_URL", url)
    with pytest.raises(
        ConfigError, match=r"RCLONE_WEBDAV_URL.*no scheme.*write https://"
    ) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_an_env_file_reaches_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(
        f"RCLONE_WEBDAV_USER=me\nRCLONE_WEBDAV_PASS={PASSWORD}\nOTHER=1\n"
    )
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    environment = child_environment(load_settings())
    assert environment["RCLONE_WEBDAV_USER"] == "me"
    assert environment["RCLONE_WEBDAV_PASS"] == PASSWORD
    assert not [name for name in environment if name.startswith("PREFECT_")]
    assert "RCLONE_WEBDAV_PASS" not in child_environment()


def test_a_wrong_value_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSGB_MAX_PARALLEL", "0")
    with pytest.raises(ConfigError, match=r"max_parallel.*greater than 0"):
        load_settings()
    monkeypatch.setenv("TSGB_MAX_PARALLEL", "")
    assert load_settings().max_parallel >= 1


def test_a_command_is_split_as_a_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSGB_WORKER_COMMAND", "python 'my worker.py' --fast")
    assert load_settings().worker_command == ["python", "my worker.py", "--fast"]


def test_the_manifest_key_reaches_the_worker_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"TSGB_MANIFEST_KEY={KEY}\n")
    settings = load_settings()
    assert child_environment(settings)["TSGB_MANIFEST_KEY"] == KEY
    assert KEY not in f"{settings!r}{settings.model_dump()}{settings}"
    assert "TSGB_MANIFEST_KEY" not in child_environment()
    monkeypatch.setenv("TSGB_MANIFEST_KEY", "too-short")
    with pytest.raises(ConfigError, match=r"manifest_key.*at least 16") as caught:
        load_settings()
    assert "too-short" not in "".join(traceback.format_exception(caught.value))


def test_the_key_that_rents_machines_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_API_KEY", KEY)
    settings = load_settings()
    assert settings.vast_api_key is not None
    assert settings.vast_api_key.get_secret_value() == KEY
    assert KEY not in repr(settings)
    assert "VAST_API_KEY" not in child_environment(settings)
    assert settings.vast_url == VAST_URL
