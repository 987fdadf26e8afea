"""`tsgb manager loop`: the stage 1 deployment, served by this process on an interval."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tsgb.errors import UsageError


def serve(interval_seconds: float, parameters: Mapping[str, Any]) -> None:
    """Start the flow every so often until interrupted; a start while one runs is skipped.

    Args:
        interval_seconds: Seconds between two starts.
        parameters: Parameters of the flow; those that are None keep their defaults.

    Raises:
        UsageError: No Prefect server is named, none answers, or Prefect's settings are wrong.
    """
    _check_server()
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.stage1 import stage1

    name = f"manager-{parameters['run']}"
    stage1.serve(
        name=name,
        interval=timedelta(seconds=interval_seconds),
        parameters={key: value for key, value in parameters.items() if value is not None},
        limit=1,
        global_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        tags=["tsgb", "stage1"],
        entrypoint_type=EntrypointType.MODULE_PATH,  # a file's annotations would not resolve
        print_starting_message=True,
    )


def _check_server() -> None:
    try:
        from prefect import get_client
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    except ValueError as error:  # it reads its settings when it is imported
        raise UsageError(
            f"Prefect's settings cannot be read: {error}: mend its variables, .env, prefect.toml "
            "or pyproject.toml here"
        ) from error
    if not url:
        raise UsageError(
            "PREFECT_API_URL is not set: start a server with `prefect server start`, then set it "
            "to http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise UsageError(
            f"no Prefect server answers at PREFECT_API_URL {url} ({error}): start it with "
            "`prefect server start`, or correct the URL"
        ) from error
