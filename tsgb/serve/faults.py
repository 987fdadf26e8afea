"""Faults of requests as the JSON that clients get. They name places and rules, never any text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

RETRY_SECONDS = 1
"""Seconds after which a request that was refused for want of room may be sent again."""


class RequestFault(Exception):  # noqa: N818 - it may be the client's fault or ours
    """A request that gets an error in place of an answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the fault.

        Args:
            status: HTTP status.
            code: Name of the fault, for programs.
            message: One line for people, without anything of the request's text.
            kind: Class of the fault, as the interface of OpenAI names it.
            param: Place in the request.
            retry: Whether the same request may succeed later; None leaves that to the status.
            headers: Further headers of the answer.
        """
        super().__init__(message)
        self.status, self.code, self.kind, self.param = status, code, kind, param
        self.message = message
        self.headers = dict(headers or {})
        if retry is not None:
            self.headers["x-should-retry"] = "true" if retry else "false"
        if retry:
            self.headers["retry-after"] = str(RETRY_SECONDS)

    @property
    def document(self) -> dict[str, Any]:
        """The answer's body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.document, self.status, headers=self.headers)


def invalid(param: str, rule: str) -> RequestFault:
    """Return the fault of a document that has something else in a place than it must have."""
    return RequestFault(400, "invalid_request", f"{param} must be {rule}", param=param)


def unsupported(param: str, what: str) -> RequestFault:
    """Return the fault of a content that the guard cannot judge, which is never passed over."""
    return RequestFault(
        422,
        "unsupported_request",
        f"{param} holds {what}, which the guard cannot judge: send texts only",
        param=param,
        retry=False,
    )


def too_large(rule: str) -> RequestFault:
    """Return the fault of a request that is larger than this service takes."""
    return RequestFault(413, "request_too_large", rule, retry=False)


def overloaded(code: str, message: str) -> RequestFault:
    """Return the fault of a request that came at a bad moment."""
    return RequestFault(503, code, message, kind="overloaded_error", retry=True)


def deadline_passed(seconds: float) -> RequestFault:
    """Return the fault of a request that was not answered in time."""
    return RequestFault(
        504,
        "deadline_exceeded",
        f"not judged within {seconds:g} seconds",
        kind="timeout_error",
    )


def guard_failed() -> RequestFault:
    """Return the fault of a text that the guard could not score, and will not score later."""
    return RequestFault(
        500, "guard_error", "the guard could not judge this", kind="server_error", retry=False
    )
