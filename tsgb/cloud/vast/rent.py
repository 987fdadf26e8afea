"""Renting: the one request that is no good twice.

There is no key by which the service would know a second request for the first. So it is sent once,
and every outcome but a clear yes or a clear no is `ProviderAmbiguous`.
"""

from __future__ import annotations

import httpx

from tsgb.cloud.vast.answers import Answer, Call, Subject, contract
from tsgb.cloud.vast.caller import Caller, reason
from tsgb.cloud.vast.records import Rental
from tsgb.cloud.vast.throttle import Endpoint
from tsgb.errors import ProviderAmbiguous, ProviderError, ProviderUnreachable

_SECONDS = 60.0
_SECRET_CHARACTERS = 6


def rent(caller: Caller, ask_id: int, rental: Rental) -> int:
    """Send it once; the id of the new instance.

    Raises:
        ProviderAmbiguous: It may exist.
        ProviderError: It was not sent, or refused.
    """
    hidden = [v for v in rental.env.values() if len(v.get_secret_value()) >= _SECRET_CHARACTERS]
    where = f"renting offer {ask_id} as {rental.label}"
    call = caller.call(Endpoint.CREATE, where, Subject.OFFER, hidden)
    with caller.limiter.turn(Endpoint.CREATE):
        try:
            answer = caller.wire.send(
                "PUT", f"/api/v0/asks/{ask_id}/", seconds=_SECONDS, body=rental.body()
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ProviderUnreachable(
                f"Vast.ai, {where}: not sent, {reason(error, call)}"
            ) from error
        except Exception as error:
            raise _ambiguous(call, reason(error, call)) from error
    return _read(answer, call, caller.judge(answer, call))


def _read(answer: Answer, call: Call, error: ProviderError | None) -> int:
    payload = answer.payload()
    instance_id = contract(payload)
    if isinstance(error, ProviderUnreachable) or answer.status >= 500:
        raise _ambiguous(call, f"HTTP {answer.status}", instance_id)
    if error is not None:
        if instance_id is None and "queued" in answer.text:
            raise _ambiguous(call, f"{error.code or 'refused'}, but queued") from error
        raise error
    if payload.get("success") is not True or instance_id is None:
        raise _ambiguous(call, "an answer that is neither yes nor no", instance_id)
    return instance_id


def _ambiguous(call: Call, what: str, contract_id: int | None = None) -> ProviderAmbiguous:
    known = "" if contract_id is None else f" as instance {contract_id}"
    return ProviderAmbiguous(
        f"Vast.ai, {call.where}: {what}; it may exist{known}: look for its label before you try "
        "again",
        instance_id=contract_id,
    )
