"""A loop that cannot start says why in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("variables", "profiles", "message"),
    [
        ({}, 'active = "x"', "PREFECT_API_URL is not set (WARNING: Active profile 'x' set in"),
        ({}, "active = ", "Prefect's settings cannot be read: Invalid value"),
        (
            {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
            "",
            "no Prefect server answers at PREFECT_API_URL http://127.0.0.1:9/api",
        ),
        (
            {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_API_REQUEST_TIMEOUT": "many"},
            "",
            "Prefect's settings cannot be read: ",
        ),
    ],
    ids=["no url", "broken profile", "no server", "wrong settings"],
)
def test_a_loop_without_a_server(
    tmp_path: Path, variables: dict[str, str], profiles: str, message: str
) -> None:
    (tmp_path / "profiles.toml").write_text(profiles)
    code = """
from flows.serving import serve
from tsgb.errors import UsageError
try:
    serve(60, {"run": "r1"})
except UsageError as error:
    print(error)
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**kept, "PREFECT_HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(message)
