"""The environment becomes typed settings, and secrets stay secret."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import traceback
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer

import httpx
import pytest

from tests.fakes.sentinels import sentinel
from tests.fakes.users import other_user
from tsgb.cloud.vast.client import VAST_URL
from tsgb.errors import ConfigError
from tsgb.setting_groups import (
    CloudSettings,
    EndpointSettings,
    ExchangeSettings,
    HubSettings,
    InstanceSettings,
    ServeSettings,
    WorkerSettings,
)
from tsgb.settings import (
    child_environment,
    endpoint_key,
    is_home_known,
    load_settings,
    without_prefect_settings,
)

GROUPS = (
    ExchangeSettings,
    CloudSettings,
    HubSettings,
    EndpointSettings,
    ServeSettings,
    WorkerSettings,
    InstanceSettings,
)
"""In the order of the example."""
EXAMPLE = Path(__file__).parents[2] / ".env.example"
PASSWORD, KEY = sentinel("webdav"), sentinel("key")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        known = ("TSGB_", "RCLONE_WEBDAV_", "VAST_", "XDG_CACHE", "HF_", "OPENAI_", "ANTHROPIC_")
        if name.startswith(known):
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
    said = r"^environment variable TSGB_MAX_PARALLEL: .*greater than 0; give it an allowed value"
    with pytest.raises(ConfigError, match=said):
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
    with pytest.raises(ConfigError, match=r"TSGB_MANIFEST_KEY: .*at least 16") as caught:
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


def test_the_token_of_the_hub_reaches_workers_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"HF_TOKEN={KEY}\nHF_HUB_OFFLINE=1\n")
    settings = load_settings()
    assert settings.hf_offline
    assert child_environment(settings)["HF_TOKEN"] == KEY
    assert KEY not in f"{settings!r}{settings.model_dump()}{settings}"
    assert "HF_TOKEN" not in child_environment()


def test_a_wrong_value_in_an_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TSGB_BUDGET=much\n")
    with pytest.raises(ConfigError, match=r"^\.env, variable TSGB_BUDGET: .*valid number"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "TSGB_STORE=/données\n".encode("latin-1"),
            "text in another encoding, not UTF-8 .byte 0xe9 in line 1.: save it as UTF-8",
        ),
        (
            "A=1\nTSGB_STORE=/s\n".encode("utf-16"),
            "UTF-16 text, not UTF-8 .byte 0xff in line 1",
        ),
        (
            "A=1\nTSGB_STORE=/s\n".encode("utf-16-le"),
            "UTF-16 text, not UTF-8 .a NUL byte in line 1",
        ),
    ],
    ids=["latin-1", "utf-16", "utf-16 without mark"],
)
def test_an_env_file_in_another_encoding(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/\.env is {message}"):
        load_settings()


def test_an_env_file_with_the_byte_order_mark_of_utf_8(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("TSGB_STORE=/données\n".encode("utf-8-sig"))
    assert load_settings().store == "/données"


def test_an_env_file_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(ConfigError, match=r"\.env is a directory: remove it"):
        load_settings()


@pytest.mark.parametrize("closed", [".", ".env"])
def test_an_env_file_that_may_not_be_read(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directory is root's alone
        monkeypatch.chdir(name)
        Path(name).chmod(0o755)
        Path(".env").write_text("TSGB_STORE=/s\n")
        Path(closed).chmod(0)
        refused = rf"{name}/\.env cannot be read .Permission denied"
        with other_user(), pytest.raises(ConfigError, match=refused):
            load_settings()


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.chdir("/")
    with other_user():
        with pytest.raises(ConfigError, match=r"HOME is not set and .* set TSGB_CACHE_DIR"):
            load_settings()
        monkeypatch.setenv("TSGB_CACHE_DIR", "/elsewhere")
        assert load_settings().cache_dir == Path("/elsewhere")


def test_prefect_gets_a_home_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HOME")
    with other_user():
        with without_prefect_settings(tmp_path):
            assert Path.home() == tmp_path
        assert not is_home_known()
    with without_prefect_settings(tmp_path):
        assert Path.home() != tmp_path


def test_a_cache_directory_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TSGB_CACHE_DIR", "~/cache")  # from an `.env`, which no shell expands
    assert load_settings().make_cache_dir() == tmp_path / "cache"
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("home", ["/", "/dev/null", "/proc"])
def test_a_cache_directory_that_cannot_be_made(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.chdir("/")
    with other_user(), pytest.raises(ConfigError, match=r"cannot be written .*: set TSGB_CACHE_"):
        load_settings().make_cache_dir()


def test_loopback_is_never_proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    load_settings()
    assert "NO_PROXY" not in os.environ
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org, localhost")
    monkeypatch.setenv("no_proxy", "")
    for _ in range(2):
        load_settings()
    hosts = "example.org,localhost,127.0.0.1,::1"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == hosts
    assert child_environment()["NO_PROXY"] == hosts
    with TCPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert httpx.get(url).text == "here"
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://192.0.2.1")  # through the proxy, where nothing listens


def test_the_key_of_an_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert endpoint_key("MY_KEY") is None
    env_file = tmp_path / ".env"
    env_file.write_text("MY_KEY=of-the-file\nOPENAI_API_KEY=another\n")
    found = endpoint_key("MY_KEY"), endpoint_key("OPENAI_API_KEY"), load_settings().openai_api_key
    assert [key and key.get_secret_value() for key in found] == [
        "of-the-file", "another", "another"
    ]  # fmt: skip
    monkeypatch.setenv("MY_KEY", KEY)
    key = endpoint_key("MY_KEY")
    assert key is not None
    assert key.get_secret_value() == KEY
    assert KEY not in repr(key)


def test_the_example_says_what_each_setting_is() -> None:
    said: dict[str, str] = {}
    comment: list[str] = []
    for line in EXAMPLE.read_text().splitlines():
        if match := re.match("#([A-Z_]+)=", line):
            said[match[1]] = " ".join(comment)
        comment = [*comment, line.removeprefix("# ")] if line.startswith("# ") else []
    # A group that extends another one repeats its fields.
    fields = {name: field for group in GROUPS for name, field in group.model_fields.items()}
    assert list(said.values()) == [
        " ".join(str(field.description).split()) for field in fields.values()
    ]


def test_the_example_without_its_marks_changes_nothing(tmp_path: Path) -> None:
    before = load_settings()
    text = re.sub("^#(?=[A-Z_]+=)", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    (tmp_path / ".env").write_text(text)
    after = load_settings()
    assert after.model_copy(update={"store": None}) == before
    assert Path(after.default_store).absolute() == Path(before.default_store)


class _Answer(StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nhere")
