"""Classifies an answer of Vast.ai as an error of ours, by its code first and then by its status.

The order matters: the service answers an invalid key with 404 and `auth_error`, and a status of 200
may carry `success: false`. By the status alone, a revoked key would look as if every instance were
gone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, cast

from tsgb.cloud.vast.throttle import INTERVAL_SECONDS, Endpoint
from tsgb.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderGone,
    ProviderNoCredit,
    ProviderRateLimited,
    ProviderRefused,
    ProviderSearchQuota,
    ProviderUnreachable,
)

_DAY_SECONDS = 86_400.0
_CREATE_PENALTY_SECONDS = 12.0
_TRANSIENT_STATUS = frozenset({408, 425})
_PERMANENT_SERVER_STATUS = frozenset({501, 505})


class Subject(StrEnum):
    """Kind of thing that a call is about, which may be gone."""

    ACCOUNT = "account"
    INSTANCE = "instance"
    OFFER = "offer"


_GONE = {
    Subject.ACCOUNT: frozenset[str](),
    Subject.INSTANCE: frozenset({"no_such_instance"}),
    Subject.OFFER: frozenset({"no_such_ask", "resources_unavailable"}),
}
_KINDS: Mapping[str, type[ProviderError]] = {
    "auth_error": ProviderAuthError,
    "insufficient_credit": ProviderNoCredit,
    "spend_rate_limit": ProviderNoCredit,
    "search_quota_exceeded": ProviderSearchQuota,
    "rate_limited": ProviderRateLimited,
}
_WAYS_OUT: Mapping[type[ProviderError], str] = {
    ProviderAuthError: (
        "set VAST_API_KEY to a key with the permissions misc, user_read, instance_read and "
        "instance_write"
    ),
    ProviderNoCredit: "add credit to the account, or wait until its limit allows more",
    ProviderRefused: "the same call would be refused again",
}


class Answer(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    """HTTP status."""
    headers: Mapping[str, str]
    """HTTP headers."""
    text: str
    """Body."""

    def payload(self) -> dict[str, Any]:
        """Return the JSON object in the body; empty if there is none."""
        try:
            value = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


class Call(NamedTuple):
    """A call, for classifying its answer and for messages."""

    endpoint: Endpoint
    """Kind of call."""
    subject: Subject
    """The thing that it is about."""
    where: str
    """Name of that thing, such as `instance 7835610`."""
    clean: Callable[[str], str]
    """Returns text of the service as one line without secrets, for our messages."""


def classify(answer: Answer, call: Call, now: datetime) -> ProviderError | None:
    """Return the error that an answer stands for; None if it reports success.

    Args:
        answer: The answer as it came.
        call: The call that it answers.
        now: Time of day, for a quota that ends at midnight.
    """
    payload = answer.payload()
    code = _text(payload.get("error"))
    kind = _kind(answer, payload, code, call.subject)
    if kind is None:
        return None
    status = code or f"HTTP {answer.status}"
    detail = _text(payload.get("msg")) or _text(payload.get("message"))
    if not payload and "<" not in answer.text:
        detail = answer.text
    message = f"Vast.ai, {call.where}: {call.clean(f'{status} {detail}'.strip())}"
    contract_id = contract(payload)
    if contract_id is not None:
        message += f"; it left instance {contract_id}, which costs money until it is destroyed"
    if kind in _WAYS_OUT:
        message += f"; {_WAYS_OUT[kind]}"
    error = kind(message, code=call.clean(code), status=answer.status, instance_id=contract_id)
    if isinstance(error, ProviderRateLimited):
        search = isinstance(error, ProviderSearchQuota)
        error.wait_seconds = _quota_seconds(answer, now) if search else _wait(answer, payload, call)
    return error


def contract(payload: Mapping[str, Any]) -> int | None:
    """Return the instance that an answer names; an error may name one that was left behind."""
    found = payload.get("new_contract")
    if isinstance(found, str) and found.isascii() and found.isdigit():
        found = int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _kind(
    answer: Answer, payload: Mapping[str, Any], code: str, subject: Subject
) -> type[ProviderError] | None:
    if code in _KINDS:
        return _KINDS[code]
    if code in _GONE[subject]:
        return ProviderGone
    if 200 <= answer.status < 300:
        if payload.get("success") is False or code:
            return ProviderRefused
        return None if payload else ProviderUnreachable
    # Another server in between may answer 404 too, but not in the form of this API.
    is_from_api = payload.get("success") is False or "msg" in payload or "message" in payload
    if answer.status in {404, 410} and subject != Subject.ACCOUNT and is_from_api and not code:
        return ProviderGone
    return _kind_by_status(answer.status)


def _kind_by_status(status: int) -> type[ProviderError]:
    if status in {401, 403}:
        return ProviderAuthError
    if status == 402:
        return ProviderNoCredit
    if status == 429:
        return ProviderRateLimited
    if status in _TRANSIENT_STATUS or (status >= 500 and status not in _PERMANENT_SERVER_STATUS):
        return ProviderUnreachable
    return ProviderRefused


def _wait(answer: Answer, payload: Mapping[str, Any], call: Call) -> float:
    """Return the seconds to wait, from any of the places where the service names them."""
    usual = INTERVAL_SECONDS[call.endpoint]
    if call.endpoint is Endpoint.CREATE:
        usual = _CREATE_PENALTY_SECONDS
    threshold = re.search(r"threshold=(\d+(?:\.\d+)?)", answer.text)
    requested = (
        _seconds(answer.headers.get("retry-after")),
        _seconds(payload.get("retry_after")),
        _seconds(threshold[1] if threshold else None),
    )
    return max(usual, *(seconds or 0.0 for seconds in requested))


def _quota_seconds(answer: Answer, now: datetime) -> float:
    """Return the seconds until the quota is reset: as the service says, else at midnight UTC."""
    reset = _seconds(answer.headers.get("x-ratelimit-reset"), most=math.inf)
    if reset is not None:
        return min(max(reset - now.timestamp(), 0.0), _DAY_SECONDS)
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today + timedelta(days=1) - now).total_seconds()


def _seconds(value: object, most: float = _DAY_SECONDS) -> float | None:
    try:
        seconds = float(cast("Any", value))
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), most) if math.isfinite(seconds) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
