"""Settings on the Prefect server complete those of the worker, and never replace them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import get_client
from prefect.blocks.system import Secret
from prefect.variables import Variable

from flows.server_settings import complete, read_secrets, read_variables
from tsgb.settings import load_settings

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api", "store")]
KEY = "made-up-key-of-an-account"


@pytest.fixture(autouse=True)
def held_by_the_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables and blocks; the environment is as before afterwards."""
    before = dict(os.environ)
    values = {"tsgb_budget": 7.5, "tsgb_retries": 3, "tsgb_nonsense": "x", "other": "y"}
    for name, value in {**values, "tsgb_exchange_pass": "seen"}.items():
        Variable.set(name, value, overwrite=True)
    for name in ("vast-api-key", "acme-api-key", "ld-preload"):
        Secret(value=KEY).save(name, overwrite=True)
    for name in ("TSGB_BUDGET", "TSGB_RETRIES", "VAST_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name in (*values, "tsgb_exchange_pass"):
        Variable.unset(name)


def test_they_are_read_by_the_names_of_the_environment() -> None:
    warned: list[str] = []
    with get_client(sync_client=True) as client:
        assert read_variables(client, warned.append) == {"TSGB_BUDGET": "7.5", "TSGB_RETRIES": "3"}
        assert read_secrets(client) == {"VAST_API_KEY": KEY, "ACME_API_KEY": KEY}
    assert sorted(warned) == [
        "the variable tsgb_exchange_pass is a secret: make it the Secret block tsgb-exchange-pass",
        "the variable tsgb_nonsense is no setting of TSGB",
    ]


def test_environment_and_file_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSGB_BUDGET", "2")
    Path(".env").write_text("TSGB_RETRIES=9\n")
    complete(lambda _: None)
    settings = load_settings()
    assert (settings.budget, settings.retries) == (2, 9)
    assert settings.vast_api_key is not None
    assert settings.vast_api_key.get_secret_value() == KEY
