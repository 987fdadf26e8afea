"""Counters of the service, for Prometheus. No label holds anything of a request's text."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Type of the exposition."""
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SCORES = (-20, -15, -10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10, 15, 20)


class ServiceMetrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = self.registry
        self.requests = Counter(
            "tsgb_requests", "Answered requests", ["route", "outcome"], registry=own
        )
        self.blocks = Counter("tsgb_blocks", "Unsafe verdicts", ["route", "stage"], registry=own)
        self.guard_errors = Counter(
            "tsgb_guard_errors", "Checks that gave no verdict", ["class"], registry=own
        )
        self.fail_open = Counter(
            "tsgb_fail_open", "Chats that went on without a verdict", ["class"], registry=own
        )
        self.out_of_domain = Counter(
            "tsgb_out_of_domain", "Texts with unknown words, or in windows", registry=own
        )
        self.request_seconds = Histogram(
            "tsgb_request_seconds",
            "Seconds of a request",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.guard_seconds = Histogram(
            "tsgb_guard_seconds", "Seconds of a batch", buckets=_SECONDS, registry=own
        )
        self.batch_size = Histogram(
            "tsgb_batch_windows", "Windows of a batch", buckets=(1, 2, 4, 8, 16), registry=own
        )
        self.queue_depth = Gauge("tsgb_queue_depth", "Windows that wait", registry=own)
        self.drift = Gauge(
            "tsgb_score_drift",
            "Population stability index of recent input scores over the benign calibration",
            registry=own,
        )
        self.audit_lost = Gauge(
            "tsgb_audit_lost", "Lines of the audit log not written", registry=own
        )
        self.score = Histogram("tsgb_score", "Scores of texts", buckets=_SCORES, registry=own)

    def on_batch(self, num: int, seconds: float) -> None:
        """Count a batch of the guard."""
        self.batch_size.observe(num)
        self.guard_seconds.observe(seconds)

    def exposition(self) -> bytes:
        """Return all of it in the text format of Prometheus."""
        return generate_latest(self.registry)
