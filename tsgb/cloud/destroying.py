"""Destroying instances until it is seen that they are gone.

An accepted DELETE proves nothing: an instance is gone if the service does not know it by its id,
and a list that was read afterwards, in full, does not hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tsgb.cloud.provider import Provider
from tsgb.errors import ProviderAuthError, ProviderError

PAUSES_SECONDS = (5.0, 15.0, 45.0)
"""Between two rounds; a destroyed instance may be listed for a while."""


@dataclass(frozen=True, slots=True)
class Left:
    """Why an instance is not known to be gone.

    Example: `Left("instance 7 is there still", is_gone_by_id=True)`
    """

    why: str
    is_gone_by_id: bool = False
    """The service does not know its id any more, so it costs nothing now; a list shows it still, or
    none could be read."""


def destroy(
    provider: Provider,
    ids: Iterable[int],
    sleep: Callable[[float], None],
    pauses_seconds: Sequence[float] = PAUSES_SECONDS,
) -> dict[int, str]:
    """Destroy them; why those that are left are there still, by id. Empty: all are gone.

    Args:
        provider: Repeats by itself what may heal within a minute.
        ids: Of instances of ours.
        sleep: Waits for so many seconds.
        pauses_seconds: One more round after each.
    """
    left = dict.fromkeys(ids, "")
    for pause in (*pauses_seconds, None):
        try:
            left = {number: one.why for number, one in destroy_once(provider, left).items()}
        except ProviderAuthError as error:
            return dict.fromkeys(left, str(error))  # no other round would be answered otherwise
        if not left or pause is None:
            break
        sleep(pause)
    return left


def destroy_once(provider: Provider, ids: Iterable[int]) -> dict[int, Left]:
    """One round: ask for the end of each, then look; those that are not known to be gone.

    Raises:
        ProviderAuthError: The key is refused, so nothing can be known of any.
    """
    return _remaining(provider, {number: _asked(provider, number) for number in ids})


def _asked(provider: Provider, number: int) -> str:
    """What was wrong with the request; one error does not keep the others from their end."""
    try:
        provider.destroy(number)
    except ProviderAuthError:
        raise
    except ProviderError as error:
        return str(error)
    return ""


def _remaining(provider: Provider, asked: Mapping[int, str]) -> dict[int, Left]:
    if not asked:
        return {}
    listed, unread = _listed(provider)
    left: dict[int, Left] = {}
    for number, reason in asked.items():
        try:
            is_known = provider.show(number) is not None
        except ProviderAuthError:
            raise
        except ProviderError as error:
            left[number] = Left(reason or unread or str(error))
        else:
            if is_known or unread or number in listed:
                why = reason or unread or f"instance {number} is there still"
                left[number] = Left(why, is_gone_by_id=not is_known)
    return left


def _listed(provider: Provider) -> tuple[set[int], str]:
    """What a whole list holds; why it could not be read."""
    try:
        return {row.id for row in provider.list()}, ""
    except ProviderAuthError:
        raise
    except ProviderError as error:
        return set(), str(error)
