"""The fault plan: which request goes wrong, before or after its effect, and how.

    {"method": "PUT", "path": "/asks/", "when": "after", "act": "close"}         a lost answer
    {"path": "/instances/", "act": "answer", "preset": "auth_error"}             a revoked key
    {"method": "GET", "path": "/v1/instances", "act": "partial", "rows": 1}      a short page

The first fault of the plan that matches takes the request; one that is used up no longer matches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tests.fakes.vast.limits import too_frequent
from tests.fakes.vast.messages import Answer, Request, refused

GATEWAY_HTML = "<html>bad gateway</html>"

PRESETS: Mapping[str, Answer] = {
    "auth_error": refused(404, "auth_error", "Invalid user key"),
    "auth_error_401": refused(401, "auth_error", "Invalid user key"),
    "forbidden": refused(403, "forbidden", "This key lacks a permission."),
    "too_frequent_text": too_frequent("text", 4.5),
    "too_frequent_detail": too_frequent("detail", 4.5),
    "too_frequent_retry_after": too_frequent("retry_after", 1),
    "search_quota": refused(429, "search_quota_exceeded", "Daily search quota exceeded"),
    "internal": refused(500, "internal", "boom"),
    "bad_gateway": Answer(status=502, body=GATEWAY_HTML, content_type="text/html"),
    "unavailable": Answer(status=503, body=GATEWAY_HTML, content_type="text/html"),
    "gateway_timeout": Answer(status=504, body=GATEWAY_HTML, content_type="text/html"),
    "no_such_ask_400": refused(400, "no_such_ask", "no_such_ask"),
    "no_such_ask_404": refused(404, "no_such_ask", "no_such_ask"),
    "no_such_ask": refused(410, "no_such_ask", "no_such_ask"),
    "no_such_instance": refused(404, "no_such_instance", "Instance not found."),
    "resources_unavailable": refused(
        200, "resources_unavailable", "resources unavailable, state change queued"
    ),
    "insufficient_credit": refused(400, "insufficient_credit", "Your account lacks credit."),
    "spend_rate_limit": refused(400, "spend_rate_limit", "New accounts may not spend that fast."),
    "invalid_price": refused(400, "invalid_price", "bid too low"),
    "success_false": refused(200, "error", "it did not work"),
    "message_only": Answer(status=400, body={"message": "it did not work"}),
    "deprecated": refused(410, "deprecated_endpoint", "This endpoint is retired."),
    "instances_null": Answer(status=200, body={"instances": None}),
    "not_json": Answer(status=200, body="<html>maintenance</html>", content_type="text/html"),
    "empty": Answer(status=200, body=""),
    "odd_list": Answer(status=200, body=[]),
}


class Fault(BaseModel):
    """One way for some requests to go wrong."""

    model_config = ConfigDict(extra="forbid")

    method: str | None = None
    """None: any."""
    path: str = ""
    """Found anywhere in the path; a regular expression."""
    times: int | None = 1
    """How many requests it takes; None: all."""
    skip: int = 0
    """How many it lets pass first."""
    when: Literal["before", "after"] = "before"
    """The effect: whether the service has done what it was asked for."""
    act: Literal[
        "answer", "close", "hang", "late", "delay", "truncate", "patch", "partial", "duplicate"
    ]
    """answer: another one, by `preset` or from the fields below. close: none, the connection ends.
    hang: none for `seconds`, then the connection ends. late: as close, and the effect comes when
    the simulator's clock is `seconds` on. delay: the real one, `seconds` later.
    truncate: half of it. patch: its JSON with `set` over it. partial: a list page with only `rows`
    rows and no next token. duplicate: the request takes effect twice."""
    preset: str | None = None
    status: int = 500
    body: Any = None
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    seconds: float = Field(0.0, ge=0, le=3600)
    set: dict[str, Any] = {}
    rows: int = 0
    taken: int = 0
    """How many requests it has taken so far."""

    @model_validator(mode="after")
    def _can_happen(self) -> Fault:
        re.compile(self.path)
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        return self

    def matches(self, request: Request) -> bool:
        """Whether it is about this request and not used up; it then may still let it pass."""
        left = self.times is None or self.taken < self.times
        return (
            left
            and self.method in {None, request.method}
            and re.search(self.path, request.path) is not None
        )

    @property
    def is_silent(self) -> bool:
        """Whether no answer comes."""
        return self.act in {"close", "hang", "late"}

    @property
    def prevents(self) -> bool:
        """Whether the service does nothing, or not yet."""
        return self.when == "before" and self.act in {"answer", "close", "hang", "late"}

    def answer(self) -> Answer:
        """In place of the real one."""
        if self.preset is not None:
            return PRESETS[self.preset]
        return Answer(
            status=self.status,
            body=self.body,
            content_type=self.content_type,
            headers=dict(self.headers),
        )

    def spoil(self, answer: Answer) -> Answer:
        """What becomes of the real one."""
        if self.act == "answer":
            return self.answer()
        body = answer.body
        if self.act == "patch" and isinstance(body, dict):
            content = self.content_type if "content_type" in self.model_fields_set else None
            answer.body = {**body, **self.set}
            answer.content_type = content or answer.content_type
            answer.headers |= self.headers
        elif self.act == "partial" and isinstance(body, dict) and "instances" in body:
            answer.body = {**body, "instances": body["instances"][: self.rows], "next_token": None}
        return answer


class FaultPlan:
    """Faults in the order in which they were planned."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def take(self, request: Request) -> Fault | None:
        """The fault of this request, counted."""
        for fault in self.faults:
            if fault.matches(request):
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.taken += 1
                return fault
        return None
