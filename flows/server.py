"""The user's Prefect server: found by Prefect's own settings, and every obstacle in one line.

It knows nothing of deployments. An experiment's own server is in `flows.embedded`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from http import HTTPStatus
from importlib.metadata import requires
from typing import TYPE_CHECKING

import httpx

from tsgb.errors import TSGBError, UsageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_MOST_DETAIL = 300


def server_url() -> str:
    """Return the URL of the server's API, by `PREFECT_API_URL` or the user's profile.

    Raises:
        UsageError: No server is named, or Prefect's settings are wrong.
    """
    said = io.StringIO()
    try:
        # Prefect prints what is wrong with its settings in lines of its own, before it fails.
        with redirect_stderr(said), warnings.catch_warnings(action="ignore"):
            from prefect.settings import get_current_settings

            url = get_current_settings().api.url
    except ValueError as error:  # it reads its settings when it is imported
        raise UsageError(
            f"Prefect's settings cannot be read: {error}: mend its variables, its profile, .env, "
            "prefect.toml or pyproject.toml here"
        ) from error
    note = f" ({said.getvalue().strip()})" if said.getvalue() else ""
    if not url:
        raise UsageError(
            f"PREFECT_API_URL is not set{note}: start a server with `prefect server start`, then "
            "set it to http://127.0.0.1:4200/api"
        )
    return url


@contextmanager
def connected_server() -> Generator[SyncPrefectClient]:
    """Connect to the server, of the same version as the client; say in one line what it refuses.

    Raises:
        UsageError: No server is named or answers, it is no Prefect server or one of another
            version, or it refuses the user or what is sent inside the block.
        TSGBError: It failed inside the block.
    """
    url = server_url()
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            _check_version(client, url)
            yield client
    except PrefectHTTPStatusError as error:
        raise _complaint(error.response, url) from error
    except httpx.RequestError as error:
        raise _unreachable(url, error) from error


def _check_version(client: SyncPrefectClient, url: str) -> None:
    """Compare the minor versions: objects and their fields change with them.

    Raises:
        UsageError: They differ, or this is no Prefect server.
    """
    from prefect.client.base import ServerType

    if client.server_type is ServerType.CLOUD:  # it serves clients of every version
        return
    try:
        found = str(client.api_version())
    except ValueError as error:  # a page of something else
        raise _no_prefect(url) from error
    mine = client.client_version()
    if not re.match(r"\d+\.\d+\.", found):
        raise _no_prefect(url)
    if found.split(".")[:2] != mine.split(".")[:2]:
        raise UsageError(
            f"the Prefect server at PREFECT_API_URL {url} has version {found}, and the client here "
            f"has {mine}: give both one minor version, the server with `pip install "
            f"prefect=={mine}` (TSGB takes {_requirement()})"
        )


def _requirement() -> str:
    """Return the range of versions that this project is tested with, as its metadata says it."""
    return next(line for line in requires("tsgb") or () if line.startswith("prefect"))


def _no_prefect(url: str) -> UsageError:
    return UsageError(
        f"what answers at PREFECT_API_URL {url} is no Prefect server: the URL ends with /api, as "
        "in http://127.0.0.1:4200/api"
    )


def _unreachable(url: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Prefect server answers at PREFECT_API_URL {url} ({error or type(error).__name__}): "
        "start it with `prefect server start`, or correct the URL"
    )


def _complaint(response: httpx.Response, url: str) -> TSGBError:
    """Return what a status means for the user."""
    asked = f"{response.request.method} {response.request.url.path}"
    status = response.status_code
    if status in _REFUSED:
        return UsageError(
            f"the Prefect server at PREFECT_API_URL {url} refuses {asked} (status {status}): set "
            "PREFECT_API_AUTH_STRING or PREFECT_API_KEY to an account that may change deployments"
        )
    if status == HTTPStatus.NOT_FOUND and response.request.url.path.endswith("/admin/version"):
        return _no_prefect(url)
    text = f"the Prefect server at PREFECT_API_URL {url} answers {asked} with status {status}"
    detail = response.text[:_MOST_DETAIL]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return TSGBError(f"{text}: {detail}: see its log, then try again")
    return UsageError(f"{text}: {detail}")
