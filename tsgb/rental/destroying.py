"""Destroying instances until it is seen that they are gone.

An accepted DELETE proves nothing: an instance is gone if the service does not know it by its id,
and a list that was read afterwards, in full, does not hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tsgb.errors import VastAuthError, VastError
from tsgb.vast_api.client import VastClient

PAUSES_SECONDS = (5.0, 15.0, 45.0)
"""Between two rounds; a destroyed instance may be listed for a while."""


def destroy(
    vast: VastClient,
    ids: Iterable[int],
    sleep: Callable[[float], None],
    pauses_seconds: Sequence[float] = PAUSES_SECONDS,
) -> dict[int, str]:
    """Destroy them; why those that are left are there still, by id. Empty: all are gone.

    Args:
        vast: Repeats by itself what may heal within a minute.
        ids: Of instances of ours.
        sleep: Waits for so many seconds.
        pauses_seconds: One more round after each.
    """
    left = dict.fromkeys(ids, "")
    for pause in (*pauses_seconds, None):
        try:
            left = _remaining(vast, {number: _asked(vast, number) for number in left})
        except VastAuthError as error:
            return dict.fromkeys(left, str(error))  # no other round would be answered otherwise
        if not left or pause is None:
            break
        sleep(pause)
    return left


def _asked(vast: VastClient, number: int) -> str:
    """What was wrong with the request; one error does not keep the others from their end."""
    try:
        vast.destroy(number)
    except VastAuthError:
        raise
    except VastError as error:
        return str(error)
    return ""


def _remaining(vast: VastClient, asked: Mapping[int, str]) -> dict[int, str]:
    """Those that are not known to be gone."""
    if not asked:
        return {}
    try:
        listed = {row.id for row in vast.instances()}
    except VastAuthError:
        raise
    except VastError as error:
        return {number: reason or str(error) for number, reason in asked.items()}
    left: dict[int, str] = {}
    for number, reason in asked.items():
        try:
            is_there = vast.show(number) is not None or number in listed
        except VastAuthError:
            raise
        except VastError as error:
            left[number] = reason or str(error)
        else:
            if is_there:
                left[number] = reason or f"instance {number} is there still"
    return left
