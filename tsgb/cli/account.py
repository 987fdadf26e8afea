"""The account that rents machines and the runs of its deployment, as commands need them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from flows.rented import provider_of
from tsgb.cloud.inventory import DeploymentRuns, Inventory, take_inventory
from tsgb.cloud.provider import Provider
from tsgb.run_options import RunOptions
from tsgb.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class AccountContext:
    """Settings of the account, and the runs that it rents for.

    Example: `AccountContext.read(RunOptions()).provider()`
    """

    settings: Settings
    """Settings of this process."""
    runs: DeploymentRuns
    """Runs of this deployment in the store."""

    @classmethod
    def read(cls, options: RunOptions) -> Self:
        """Read the environment; the options of a command win over it."""
        settings = options.applied_to(load_settings())
        runs = DeploymentRuns.of(settings, options.store, settings.cache_dir)
        return cls(settings, runs)

    @property
    def skew(self) -> timedelta:
        """Span by which clocks may differ."""
        return timedelta(seconds=self.settings.skew_seconds)

    def provider(self) -> Provider:
        """Return the account of the service.

        Raises:
            ProviderAuthError: There is no key.
        """
        return provider_of(self.settings)

    def inventory(self, provider: Provider) -> Inventory:
        """Return every instance, and the lease that covers it."""
        deployment = self.settings.deployment
        return take_inventory(provider, self.runs, deployment, now=utc, skew=self.skew)


def utc() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)
