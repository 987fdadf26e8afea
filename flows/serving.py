"""`tsgb manager loop`: the stage 1 deployment, served by this process on an interval."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from flows.server import connected_server


def serve(interval_seconds: float, parameters: Mapping[str, Any]) -> None:
    """Start the flow every so often until interrupted; a start while one runs is skipped.

    Args:
        interval_seconds: Seconds between two starts.
        parameters: Parameters of the flow; those that are None keep their defaults.

    Raises:
        UsageError: See `flows.server.connected_server`.
    """
    with connected_server():
        pass
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
