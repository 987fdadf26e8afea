"""The store's password, the hub's token and the manifest key are in nothing that a session leaves.

What the whole suite leaves is searched in `tests/conftest.py`; here is a session made for it.
A session of real processes over WebDAV: an experiment from workers to report (they compute nothing,
but get the secrets as real ones do), a real worker, commands with a wrong password and with another
key, and a worker that cannot read its run.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.contexts import worker_context
from tests.fakes.dav_server import USER, dav_app, serve
from tests.fakes.miniature import miniature_config
from tests.fakes.sentinels import leaking_files, leaks, sentinel
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import StoreError
from tsgb.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PASSWORD, KEY, WRONG = sentinel("password"), sentinel("manifest"), sentinel("wrong")
TOKEN = sentinel("hub")
SMALL = {
    "segments": 1,
    "attacker": {"sft_steps": 2, "warmup_steps": 0},
    "guard": {"sft_steps": 2},
    "selfplay": {"rounds": 1, "attacker_steps": 2, "guard_steps": 2},
}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """As `--set` names them."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def write_config(run: Path) -> None:
    run.mkdir()
    (run / "config.json").write_text(miniature_config().canonical())


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "dav").mkdir()
    with serve(dav_app(tmp_path / "dav", PASSWORD)) as root:
        yield f"{root}/runs"


def session(tmp_path: Path, url: str, *words: str, **environment: str) -> tuple[int, str]:
    """Run `tsgb`; what it exits with and what it says."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tsgb.cli", *words],
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "TSGB_CACHE_DIR": str(tmp_path / "cache"),
            "TSGB_MAX_PARALLEL": "1",
            "TSGB_MANIFEST_KEY": KEY,
            "RCLONE_WEBDAV_URL": url,
            "RCLONE_WEBDAV_USER": USER,
            "RCLONE_WEBDAV_PASS": PASSWORD,
            "HF_TOKEN": TOKEN,
            **environment,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_no_secret_is_left_behind(url: str, tmp_path: Path, migrated: Path) -> None:
    (tmp_path / "cache" / "prefect").mkdir(parents=True)
    shutil.copy(migrated, tmp_path / "cache" / "prefect")
    experiment = ["experiment", "--profile", "smoke", "--run-id", "r1", "--arms", "selfplay"]
    for name, value in flat(SMALL):
        experiment += ["--set", f"{name}={json.dumps(value)}"]
    said: list[str] = []

    fake = shlex.join([sys.executable, str(ROOT / "tests" / "fakes" / "worker.py")])
    code, text = session(tmp_path, url, *experiment, TSGB_WORKER_COMMAND=fake)
    assert code == 0, text
    said.append(text)
    write_config(tmp_path / "dav" / "runs" / "r2")
    code, text = session(
        tmp_path, url, "worker", "run", "--trust-config", "--resume-path", f"{url}/r2"
    )
    assert code == 0, text
    said.append(text)
    evaluate = ["eval-local", "--checkpoint-path", f"{url}/r1/latest"]
    for change, reason in (
        ({"RCLONE_WEBDAV_PASS": WRONG}, "HTTP 401"),
        ({"TSGB_MANIFEST_KEY": WRONG}, "signed with another key"),
        ({"TSGB_MANIFEST_KEY": WRONG[:9]}, "at least 16"),
    ):
        code, text = session(tmp_path, url, *evaluate, **change)
        assert code == 2
        assert reason in text
        said.append(text)
    (tmp_path / "dav" / "runs" / "r2" / "config.json").write_text("{")
    code, text = session(
        tmp_path, url, "worker", "run", "--trust-config", "--resume-path", f"{url}/r2"
    )
    assert code != 0
    said.append(text)

    assert not leaks("".join(said))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".safetensors", ".json", ".jsonl", ".html", ".log", ".db"} <= kinds
    manifests = [path for path in files if path.name == "manifest.json"]
    assert manifests
    assert all(b"hmac_sha256" in path.read_bytes() for path in manifests)
    assert leaking_files(tmp_path) == []


def test_no_secret_is_in_a_repr_or_a_traceback(url: str) -> None:
    context = worker_context(
        Path("cache"),
        user=USER,
        password=SecretStr(WRONG),
        manifest_key=SecretStr(KEY),
    )
    settings = Settings(
        webdav_user=USER, webdav_pass=SecretStr(PASSWORD), manifest_key=SecretStr(KEY)
    )
    run = open_run(f"{url}/r1", USER, SecretStr(WRONG), manifest_key=SecretStr(KEY))
    store = CheckpointStore(run)
    with pytest.raises(StoreError) as caught:
        store.claim()
    shown = [*map(repr, (context, settings, run, run.filesystem, store)), repr(vars(run))]
    shown += [str(settings), settings.model_dump_json(), repr(vars(run.filesystem))]
    shown += traceback.format_exception(caught.value)
    assert not leaks("\n".join(shown))
