"""How a rented machine destroys itself.

It knows the client of the rental service and processes. It knows no store and no run.
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
class Patience:
    """How hard a machine tries to destroy itself.

    Example: `Patience.of(30.0)` waits from 3 to 60 s, and stops itself after 10 minutes.
    """

    least_seconds: float
    most_seconds: float
    fallback_seconds: float
    """After which it stops itself as well, and ends its first process."""

    @classmethod
    def of(cls, poll_seconds: float) -> Patience:
        """In proportion to how often the lease is read."""
        return cls(
            least_seconds=poll_seconds / 10,
            most_seconds=2 * poll_seconds,
            fallback_seconds=20 * poll_seconds,
        )


class Instance:
    """The rented instance that this process runs in."""

    def __init__(self, instance_id: int, key: SecretStr, provider: Provider) -> None:
        """Nothing is sent.

        Args:
            instance_id: Its number.
            key: Its own, not the account's.
            provider: The service, with this key, which tries once.
        """
        self.id = instance_id
        self._key = key
        self._provider = provider

    def destroy(
        self,
        patience: Patience,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask until it works; as a rule that is the last thing that this process does."""
        fallback_at = clock() + patience.fallback_seconds
        pause = patience.least_seconds
        container_ended = False
        while not self._try("destroy", self._provider.destroy):
            if clock() >= fallback_at:
                self._try("stop", self._provider.stop)
                if not container_ended:
                    container_ended = True
                    end_container(self._key, sleep)
            sleep(pause)
            pause = min(2 * pause, patience.most_seconds)

    def _try(self, what: str, call: Callable[[int], None]) -> bool:
        try:
            call(self.id)
        except ProviderError as error:
            get_logger().error(f"cannot {what} this instance", reason=str(error))
            return False
        get_logger().info(f"{what}: done", instance=self.id)
        return True


def end_container(
    key: SecretStr,
    sleep: Callable[[float], None],
    *,
    proc: Path = Path("/proc"),
    kill: Callable[[int, int], None] = os.kill,
) -> None:
    """End the first process, if it is that of the container that was rented for us.

    It is, if the service gave it our key; any other first process is somebody's machine.
    """
    marker = f"CONTAINER_API_KEY={key.get_secret_value()}".encode()
    with suppress(OSError):
        if marker in (proc / "1" / "environ").read_bytes().split(b"\0"):
            kill(1, signal.SIGTERM)
            sleep(10.0)
            kill(1, signal.SIGKILL)
