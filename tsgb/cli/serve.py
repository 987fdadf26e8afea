"""`tsgb serve`: an exported guard behind the interfaces that clients already call."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from tsgb.cli.options import BaseOption, DeviceOption
from tsgb.errors import UsageError

E = TypeVar("E", bound=StrEnum)


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
    upstream: Annotated[
        str | None,
        typer.Option(
            "--upstream", metavar="URL", help="Model service that /v1/chat/completions is sent to."
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="Of chats: enforce, shadow (judge, block nothing) or off.")
    ] = "enforce",
    on_block: Annotated[
        str, typer.Option("--on-block", help="Form of a blocked chat: refusal or error.")
    ] = "refusal",
    fail_open: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-open",
            metavar="CLASS",
            help="Let a chat go on unjudged after guard_timeout, guard_error, overload or "
            "unsupported_content; may be repeated.",
        ),
    ] = None,
    input_only: Annotated[
        bool, typer.Option("--input-only", help="Judge messages, and pass answers on unjudged.")
    ] = False,
    upstream_timeout: Annotated[
        float,
        typer.Option(
            "--upstream-timeout", help="Seconds between two pieces of the model service's answer."
        ),
    ] = 120.0,
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit", metavar="FILE", help="Log of verdicts, without texts, beside its key."
        ),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(
            "--feedback",
            metavar="FILE",
            help="File for prompts that people label, and those that shadow mode would block; it "
            "holds texts.",
        ),
    ] = None,
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
    """Serve an exported guard: /v1/moderations, LiteLLM's guardrail, NeMo's /v1/checks, a proxy.

    It listens on this machine alone unless TSGB_SERVE_TOKEN is set. SIGTERM ends it when what it
    has accepted is answered.
    """
    from tsgb.serve.proxy import BlockStyle, FaultClass, ProxyMode, ProxyOptions
    from tsgb.serve.server import address_of, bind, check_exposure, run_server
    from tsgb.serve.upstream import Upstream
    from tsgb.settings import load_settings

    settings = load_settings()
    token = settings.serve_token
    check_exposure(host, has_token=token is not None)
    for name, seconds in (("--deadline", deadline), ("--upstream-timeout", upstream_timeout)):
        if not 0 < seconds <= 3600:
            raise UsageError(f"{name} {seconds:g}: name seconds above 0, up to 3600")
    proxy = ProxyOptions(
        mode=_choice(ProxyMode, "--mode", mode),
        on_block=_choice(BlockStyle, "--on-block", on_block),
        fail_open=frozenset(_choice(FaultClass, "--fail-open", name) for name in fail_open or ()),
        input_only=input_only,
        check_seconds=deadline,
    )
    service_behind = None
    if upstream is not None:
        service_behind = Upstream(
            upstream,
            key=settings.upstream_key,
            timeout_seconds=upstream_timeout,
            most_connections=queue,
        )
    listener = bind(host, port)
    from transformers.utils.logging import disable_progress_bar

    from tsgb import load_guard
    from tsgb.logging import get_logger
    from tsgb.serve.app import GuardService, ServiceLimits, guard_name
    from tsgb.serve.audit import AuditLog
    from tsgb.serve.feedback import FeedbackFile

    disable_progress_bar()  # stderr is for ours
    with listener:
        guard = load_guard(directory, base=base, preset=preset, device=device, dtype=dtype)
        limits = ServiceLimits(queue=queue, deadline_seconds=deadline, max_body_bytes=max_body)
        name = guard_name(guard.about)
        log_of_verdicts = audit and AuditLog(audit, guard=name, threshold=guard.threshold)
        service = GuardService(
            guard,
            limits=limits,
            token=token,
            upstream=service_behind,
            proxy=proxy,
            audit=log_of_verdicts,
            feedback=feedback and FeedbackFile(feedback),
        )
        log, url = get_logger(), address_of(*listener.getsockname()[:2])
        if service.not_ready:
            log.warning("not ready: nothing is judged", reason=service.not_ready)
        run_server(
            service.app(),
            listener,
            grace_seconds=deadline if upstream is None else max(deadline, upstream_timeout),
            on_start=lambda: log.info(
                "serving", url=url, guard=service.name, ready=not service.not_ready
            ),
        )
        log.info("ended", begun=service.begun, answered=service.answered)


def _choice(kind: type[E], option: str, value: str) -> E:
    """Return the member of an option's value."""
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{option} {value!r}: choose of {', '.join(kind)}") from None
