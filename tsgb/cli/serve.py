"""`tsgb serve`: an exported guard behind the interfaces that clients already call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsgb.cli.options import BaseOption, DeviceOption
from tsgb.errors import UsageError


def serve(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `tsgb export-guard` wrote.")
    ],
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="IP", help="Address to listen on; beyond this machine with a token."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8100,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Windows of text that may wait; then 503.")
    ] = 256,
    deadline: Annotated[
        float, typer.Option("--deadline", help="Seconds in which a request is answered.")
    ] = 30.0,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, help="Bytes of the longest body.")
    ] = 1 << 20,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Operating point; the export's own without it.")
    ] = None,
    base: BaseOption = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32 or bfloat16; the export's own without it."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Serve an exported guard: /v1/moderations, LiteLLM's guardrail, NeMo's /v1/checks.

    It listens on this machine alone unless TSGB_SERVE_TOKEN is set. SIGTERM ends it when what it
    has accepted is answered.
    """
    from tsgb.serve.server import address_of, bind, check_exposure, run_server
    from tsgb.settings import load_settings

    token = load_settings().serve_token
    check_exposure(host, has_token=token is not None)
    if not 0 < deadline <= 3600:
        raise UsageError(f"--deadline {deadline:g}: name seconds above 0, up to 3600")
    listener = bind(host, port)
    from transformers.utils.logging import disable_progress_bar

    from tsgb import load_guard
    from tsgb.logging import get_logger
    from tsgb.serve.app import GuardService, ServiceLimits

    disable_progress_bar()  # stderr is for ours
    with listener:
        guard = load_guard(directory, base=base, preset=preset, device=device, dtype=dtype)
        limits = ServiceLimits(queue=queue, deadline_seconds=deadline, max_body_bytes=max_body)
        service = GuardService(guard, limits=limits, token=token)
        log, url = get_logger(), address_of(*listener.getsockname()[:2])
        if service.not_ready:
            log.warning("not ready: nothing is judged", reason=service.not_ready)
        run_server(
            service.app(),
            listener,
            deadline_seconds=deadline,
            on_start=lambda: log.info(
                "serving", url=url, guard=service.name, ready=not service.not_ready
            ),
        )
        log.info("ended", begun=service.begun, answered=service.answered)
