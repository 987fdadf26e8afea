"""One call: wait for its turn, send it once, judge the answer.

It knows the wire, the limits and what answers mean. It knows no call of the service in particular,
and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from tsgb.cloud.vast.answers import Answer, Call, Subject, judge
from tsgb.cloud.vast.http import Wire
from tsgb.cloud.vast.throttle import Endpoint, RateLimiter
from tsgb.errors import ProviderError, ProviderRateLimited, ProviderSearchQuota, ProviderUnreachable

REQUEST_SECONDS = 30.0
_CLOSED_SECONDS = 60.0
_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Caller:
    """What every call needs."""

    wire: Wire
    limiter: RateLimiter
    now: Callable[[], datetime]

    def call(
        self, endpoint: Endpoint, where: str, subject: Subject, secrets: Sequence[SecretStr] = ()
    ) -> Call:
        """Name what is going to be asked; `secrets` beside the key stay out of messages."""

        def clean(text: str) -> str:
            return self.wire.clean(text, secrets)

        return Call(endpoint, subject, where, clean)

    def ask(
        self,
        call: Call,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send it and return the JSON object that answers it.

        Raises:
            ProviderError: The error that the answer is; `ProviderUnreachable` without one.
        """
        with self.limiter.turn(call.endpoint):
            try:
                answer = self.wire.send(
                    method, path, seconds=REQUEST_SECONDS, params=params, body=body
                )
            except httpx.RequestError as error:
                raise ProviderUnreachable(
                    f"Vast.ai, {call.where}: no answer, {reason(error, call)}"
                ) from error
        error = self.judge(answer, call)
        if error is not None:
            raise error
        return answer.payload()

    def change(self, call: Call, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The same for a change, which is made only if the answer says so."""
        payload = self.ask(call, method, path, body=body)
        if payload.get("success") is not True:
            raise odd(call, "no word that it was done")
        return payload

    def judge(self, answer: Answer, call: Call) -> ProviderError | None:
        """What is wrong with an answer; whoever asks next waits if it was too early."""
        error = judge(answer, call, self.now())
        if isinstance(error, ProviderRateLimited) and not isinstance(error, ProviderSearchQuota):
            self.limiter.close(call.endpoint, min(error.wait_seconds, _CLOSED_SECONDS))
        return error


def parsed(record: type[_Record], value: object, call: Call) -> _Record:
    """The record that a row is.

    Raises:
        ProviderUnreachable: It is none.
    """
    try:
        return record.model_validate(value)
    except ValidationError:
        raise odd(call, "a row without what must be in it") from None


def odd(call: Call, what: str) -> ProviderUnreachable:
    """An answer that leaves open what was asked."""
    return ProviderUnreachable(f"Vast.ai, {call.where}: an answer that makes no sense ({what})")


def reason(error: Exception, call: Call) -> str:
    """What went wrong on the way, fit for a message."""
    return call.clean(f"{type(error).__name__}: {error}")
