"""Logs of a process on stderr: lines for people, JSON for log collectors."""

from __future__ import annotations

import sys

import structlog
from structlog.typing import FilteringBoundLogger, Processor


def get_logger() -> FilteringBoundLogger:
    """A logger to stderr; JSON lines unless a person watches.

    Example: `get_logger().warning("heartbeat not written", reason=str(error))`
    """
    person = sys.stderr.isatty()
    last: Processor = (
        structlog.dev.ConsoleRenderer() if person else structlog.processors.JSONRenderer()
    )
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            last,
        ],
    )
