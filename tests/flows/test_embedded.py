"""The embedded API and its client are Prefect's own defaults, whatever the user's Prefect is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_stage1 import TWO_SEGMENTS

pytestmark = pytest.mark.flows

FILES = {
    ".env": "PREFECT_SERVER_API_AUTH_STRING=admin:secret\nPREFECT_API_REQUEST_TIMEOUT=many\n",
    "prefect.toml": '[server.api]\nauth_string = "admin:secret"\n[tasks]\ndefault_retries = "x"\n',
    "pyproject.toml": "this is = = no TOML\n",
}
VARIABLES = {
    "PREFECT_PROFILE": "absent",
    "PREFECT_API_URL": "http://127.0.0.1:9/api",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
    "PREFECT_LOGGING_LEVEL": "loud",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "HOME": "/proc/nowhere",
    "TSGB_CACHE_DIR": "cache",
}


@pytest.mark.slow
def test_an_experiment_in_an_environment_made_for_another_prefect(
    store: Path, tmp_path: Path, migrated: Path
) -> None:
    home = tmp_path / "cache" / "prefect"
    home.mkdir(parents=True)
    shutil.copy(migrated, home)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    words = [
        "experiment",
        "--profile",
        "smoke",
        "--arms",
        "selfplay",
        "--run-id",
        "theirs",
        "--json",
    ]
    settings = [f"--set={path}" for path in overrides(TWO_SEGMENTS)]
    done = subprocess.run(
        [sys.executable, "-m", "tsgb.cli", *words, *settings],
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["stage1"]["state"] == document["stage2"]["state"] == "COMPLETED"
    assert "Traceback" not in done.stderr
    assert "INFO" not in done.stderr, "Prefect's log goes to its database"
    assert not list(tmp_path.glob(".prefect"))


def overrides(nested: dict[str, object], prefix: str = "") -> list[str]:
    """`{"a": {"b": 1}}` as `["a.b=1"]`."""
    found: list[str] = []
    for name, value in nested.items():
        if isinstance(value, dict):
            found += overrides(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}={json.dumps(value)}")
    return found
