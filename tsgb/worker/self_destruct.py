"""Destroys the rented machine on which it runs.

The module knows the provider and processes, and neither a store nor a run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from tsgb.cloud.provider import Provider
from tsgb.errors import ProviderError
from tsgb.logging import get_logger


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroySchedule:
    """Pauses between requests to destroy this machine, and the time until the fallback.

    Example: `DestroySchedule.of(30.0)` pauses 3 to 60 s, and stops the machine after 10 minutes.
    """

    min_pause_seconds: float
    """Seconds between the first two requests."""
    max_pause_seconds: float
    """Seconds up to which the pause is doubled."""
    fallback_seconds: float
    """Seconds after which the machine also stops itself and ends its first process."""

    @classmethod
    def of(cls, lease_poll_seconds: float) -> DestroySchedule:
        """Return the schedule that fits the interval at which the lease is read."""
        return cls(
            min_pause_seconds=lease_poll_seconds / 10,
            max_pause_seconds=2 * lease_poll_seconds,
            fallback_seconds=20 * lease_poll_seconds,
        )


class SelfDestruct:
    """The rented instance that this process runs in, and the key that destroys it."""

    def __init__(self, instance_id: int, key: SecretStr, provider: Provider) -> None:
        """Send nothing yet.

        Args:
            instance_id: The provider's number of the instance.
            key: Key of this instance, which is not the account's.
            provider: The provider, with this key and without retries.
        """
        self.instance_id = instance_id
        self._key = key
        self._provider = provider

    def destroy(
        self,
        schedule: DestroySchedule,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Send requests until the provider accepts one; usually the last act of this process."""
        fallback_at = clock() + schedule.fallback_seconds
        pause = schedule.min_pause_seconds
        container_ended = False
        while not self._try("destroy", self._provider.destroy):
            if clock() >= fallback_at:
                self._try("stop", self._provider.stop)
                if not container_ended:
                    container_ended = True
                    end_container(self._key, sleep)
            sleep(pause)
            pause = min(2 * pause, schedule.max_pause_seconds)

    def _try(self, what: str, call: Callable[[int], None]) -> bool:
        try:
            call(self.instance_id)
        except ProviderError as error:
            get_logger().error(f"cannot {what} this instance", reason=str(error))
            return False
        get_logger().info(f"{what}: done", instance=self.instance_id)
        return True


def end_container(
    key: SecretStr,
    sleep: Callable[[float], None],
    *,
    proc: Path = Path("/proc"),
    kill: Callable[[int, int], None] = os.kill,
) -> None:
    """End the first process if it belongs to the rented container.

    It does if its environment has this instance's key. Otherwise this machine was not rented.

    Args:
        key: Key of this instance.
        sleep: Waits so many seconds.
        proc: Directory of the processes.
        kill: Sends a signal to a process id.
    """
    marker = f"CONTAINER_API_KEY={key.get_secret_value()}".encode()
    with suppress(OSError):
        if marker in (proc / "1" / "environ").read_bytes().split(b"\0"):
            kill(1, signal.SIGTERM)
            sleep(10.0)
            kill(1, signal.SIGKILL)
