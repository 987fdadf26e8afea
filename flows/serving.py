"""`tsgb manager loop`: the stage 1 deployment, served by this process on an interval."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType

from flows.stage1 import stage1
from tsgb.errors import UsageError


def serve(interval_seconds: float, parameters: Mapping[str, Any]) -> None:
    """Start the flow every so often until interrupted; a start while one runs is skipped.

    Raises:
        UsageError: No Prefect server is named.
    """
    url = get_current_settings().api.url
    if not url:
        raise UsageError(
            "PREFECT_API_URL is not set: start a server with `prefect server start`, then set it "
            "to http://127.0.0.1:4200/api"
        )
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
