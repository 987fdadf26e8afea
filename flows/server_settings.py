"""Settings that a Prefect server holds: variables, and `Secret` blocks.

The environment and the `.env` file of the Prefect worker come first; what they leave open may stand
on the server, where its users look for it. The variable `tsgb_store` stands for `TSGB_STORE`, the
Secret block `hf-token` for `HF_TOKEN`. Flows read them once, at their start.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
from prefect import get_client, get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectException
from prefect.runtime import deployment

from tsgb.settings import (
    Settings,
    add_to_environment,
    load_settings,
    secret_variables,
    setting_variables,
)

_MOST = 200
_KEY = "_API_KEY"
"""Ending of the variables that hold keys of endpoints, whose names users choose."""


def settings_of_flow() -> Settings:
    """Return the settings of this process, completed by those of the server in a deployed flow.

    Raises:
        ConfigError: A value breaks its rule.
    """
    if deployment.id is not None:
        complete(get_run_logger().warning)
    return load_settings()


def complete(warn: Callable[[str], object]) -> None:
    """Take into the environment what the server holds and nothing here names.

    Args:
        warn: Is told of what is not taken, and never of a value.
    """
    try:
        with get_client(sync_client=True) as client:
            found = read_variables(client, warn) | read_secrets(client)
    except (httpx.HTTPError, OSError, PrefectException) as error:
        warn(f"settings on the Prefect server were not read: {error}")
        return
    add_to_environment(found)


def read_variables(client: SyncPrefectClient, warn: Callable[[str], object]) -> dict[str, str]:
    """Return the settings among the server's variables, by the name of the environment variable.

    Args:
        client: The server.
        warn: Is told of names that are no setting, and of secrets, which everybody could read.
    """
    secrets, known = secret_variables(), setting_variables()
    found: dict[str, str] = {}
    for variable in client.read_variables(limit=_MOST):
        name = variable.name.upper()
        if not name.startswith("TSGB_"):
            continue
        if name in secrets:
            block = name.lower().replace("_", "-")
            warn(f"the variable {variable.name} is a secret: make it the Secret block {block}")
        elif name not in known:
            warn(f"the variable {variable.name} is no setting of TSGB")
        else:
            found[name] = _text(variable.value)
    return found


def read_secrets(client: SyncPrefectClient) -> dict[str, str]:
    """Return the secrets among the server's Secret blocks, by the name of their variable."""
    secrets = secret_variables()
    found: dict[str, str] = {}
    for document in client.read_block_documents_by_type("secret", include_secrets=True):
        name = (document.name or "").upper().replace("-", "_")
        value: object = document.data.get("value")
        if (name in secrets or name.endswith(_KEY)) and isinstance(value, str):
            found[name] = value
    return found


def _text(value: object) -> str:
    """Return a variable's JSON value as the environment would hold it."""
    if isinstance(value, str):
        return value
    return json.dumps(value)
