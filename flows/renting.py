"""A run on rented machines: what the tasks of flows/rented.py share, made from the settings.

It knows which settings become which terms. It knows no Prefect, and decides nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from secrets import token_hex

from flows.interrupts import check_interrupt
from flows.progress import Bar, listener
from flows.workers import Workers
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.run import RunLock, RunStore
from tsgb.checkpoint.urls import local_path
from tsgb.cloud.bundle import BootSpec, Code, boot, pack_code, publish_code
from tsgb.cloud.connect import connect
from tsgb.cloud.documents import Intent, RunDocuments, arms, number
from tsgb.cloud.forecast import workload
from tsgb.cloud.history import state_gb
from tsgb.cloud.lifecycle import Lifecycle
from tsgb.cloud.policy import LaunchPolicy, MonitorPolicy
from tsgb.cloud.preemption import Workload
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.provider import LaunchSpec, Provider, is_loopback
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.termination import Deadlines
from tsgb.config import Arm
from tsgb.errors import BudgetReached, ProviderNoCredit, UsageError
from tsgb.plugins import Trust
from tsgb.settings import Settings
from tsgb.types import CheckpointRef

_STORE_SECONDS = 30.0
"""A store that does not answer must not keep the flow from looking at the machine."""
_GUESSED_HOURS = 2.0
"""Of work, for the choice of an offer; it hardly matters beyond the time to start."""


class ArmsWork:
    """All arms of a run, trained by one machine at a time."""

    def __init__(self, workers: Workers, arms: Sequence[Arm], terms: LaunchPolicy) -> None:
        """Describe the work; reads nothing yet."""
        self._workers = workers
        self._arms = tuple(arms)
        self._terms = terms
        self._code: Code | None = None

    def pack(self) -> Code:
        """The code that machines run, once for all of them.

        Raises:
            UsageError: A rented machine could not have it.
        """
        if self._code is None:
            config = self._workers.config()
            pretrained, profile = config.model.pretrained, config.profile.value
            self._code = pack_code(
                config.env,
                trust=Trust.of(self._workers.env),
                pretrained=pretrained,
                profile=profile,
            )
        return self._code

    def begun(self) -> int:
        """The highest attempt on any arm."""
        return max(self._workers.highest(arm) for arm in self._arms)

    def is_finished(self) -> bool:
        """Tell from the names of the newest checkpoints."""
        return self._workers.are_finished(self._arms)

    def updates(self) -> int:
        """Return the updates of all arms together, in their newest checkpoints."""
        return self._workers.total_updates(self._arms)

    def verify(self) -> dict[str, CheckpointRef]:
        """The last checkpoint of every arm."""
        return self._workers.finished(self._arms)

    def load(self) -> Workload:
        """Return the load, with the traffic of the newest checkpoints (0 before the first one)."""
        size = state_gb(self._workers.open(arm, _STORE_SECONDS) for arm in self._arms)
        return workload(_GUESSED_HOURS, disk_gb=self._terms.disk_gb, restore_gb=size, save_gb=size)

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        """A machine that trains the arms; the run's code comes to it through the store."""
        settings, run = self._workers.settings, self._workers.open()
        made: BootSpec = boot(
            run_url=run.run_url,
            attempt=attempt,
            arms=[arm.value for arm in self._arms],
            code=publish_code(run, self.pack()),
            vast_url=settings.vast_url,
            webdav_user=settings.webdav_user,
            webdav_pass=settings.webdav_pass,
            manifest_key=settings.manifest_key,
            boot_seconds=settings.provision_seconds + settings.lease_seconds,
            worker_env={
                "TSGB_SKEW_SECONDS": f"{settings.skew_seconds:g}",
                "TSGB_GRACE_SECONDS": f"{settings.grace_seconds:g}",
            },
        )
        return LaunchSpec(
            image=self._terms.image,
            label=intent.label,
            price=intent.price,
            disk_gb=intent.disk_gb,
            onstart=made.onstart,
            env=made.env,
        )

    def show(self, running: RunningInstance) -> None:
        """Bars of the arms, or what the machine is doing instead."""
        check_interrupt()
        state = "?" if running.instance is None else running.instance.status
        text = f"instance {running.instance_id} {state}, ${running.intent.hourly:.3f}/h"
        bars = [
            Bar(name, number(arm, "step"), number(arm, "total_steps"), text)
            for name, arm in arms(running.heartbeat).items()
        ]
        listener().bars(f"attempt {running.attempt}", bars or [Bar("machine", 0, 0, text)])


def terms_of(settings: Settings, budget: float | None, max_price: float | None) -> LaunchPolicy:
    """Return the terms of a rental; the arguments win over the settings."""
    return LaunchPolicy(
        budget=microdollars(settings.budget if budget is None else budget),
        cap=settings.max_price if max_price is None else max_price,
        deployment=settings.deployment,
        image=settings.image,
        image_gb=settings.image_gb,
        disk_gb=settings.disk_gb,
        gpus=settings.gpus,
        gpu_ram_gb=settings.gpu_ram_gb,
        reliability=settings.reliability,
    )


def patience_of(settings: Settings) -> MonitorPolicy:
    """How machines are watched: the shorter a lease is, the more often."""
    lease = settings.lease_seconds
    return MonitorPolicy(
        look_seconds=settings.look_seconds,
        search_seconds=settings.look_seconds,
        list_seconds=min(300.0, lease / 4),
        lag_seconds=min(180.0, 9 * settings.look_seconds),
        grace_seconds=settings.grace_seconds + settings.look_seconds,
        release_seconds=min(15.0, settings.grace_seconds),
        destroy_seconds=min(600.0, lease / 2),
        offer_seconds=settings.offer_seconds,
        ttl=timedelta(seconds=lease),
        skew=timedelta(seconds=settings.skew_seconds),
        window=timedelta(seconds=lease),
        deadlines=Deadlines(
            provision=settings.provision_seconds,
            heartbeat=settings.silence_seconds,
            step=6 * settings.silence_seconds,
        ),
    )


@contextmanager
def renting(
    workers: Workers,
    arms: Sequence[Arm],
    *,
    budget: float | None = None,
    max_price: float | None = None,
    vast_url: str | None = None,
    tell: Callable[[str], None],
) -> Generator[tuple[Lifecycle[dict[str, CheckpointRef]], ArmsWork]]:
    """Everything that renting for a run needs; one flow of this machine at a time.

    Raises:
        ProviderAuthError: There is no key.
        UsageError: Another process rents for this run, or machines could not reach the store.
    """
    settings = settings_at(workers.settings, vast_url)
    workers = replace(workers, settings=settings)  # keeps all else that it knows of the run
    provider, run = provider_of(settings), workers.open(deadline_seconds=_STORE_SECONDS)
    _check_reach(run.run_url, settings)
    with _only_flow(settings, run), provider:
        terms = terms_of(settings, budget, max_price)
        session = Session(
            documents=RunDocuments(run),
            provider=provider,
            terms=terms,
            patience=patience_of(settings),
            owner=owner_of(settings),
            note=tell,
        )
        work = ArmsWork(workers, arms, terms)
        yield Lifecycle(session, work), work


def settings_at(settings: Settings, vast_url: str | None) -> Settings:
    """The settings, for another service where one was named."""
    return settings if vast_url is None else settings.model_copy(update={"vast_url": vast_url})


def provider_of(settings: Settings) -> Provider:
    """Return the account that the settings name.

    Raises:
        ProviderAuthError: There is no key.
    """
    return connect(settings.vast_api_key, settings.vast_url)


def preflight(
    settings: Settings, store: str, *, budget: float | None, vast_url: str | None
) -> None:
    """Say at once what would end a run before its first machine; one request.

    Raises:
        ProviderAuthError: There is no key, or it is refused.
        ProviderNoCredit: The account has no credit.
        BudgetReached: The budget is nothing.
        UsageError: A rented machine could not reach the store.
    """
    settings = settings_at(settings, vast_url)
    if (settings.budget if budget is None else budget) <= 0:
        raise BudgetReached("a budget of $0 rents nothing: give --budget or TSGB_BUDGET")
    _check_reach(store, settings)
    with provider_of(settings) as provider:
        credit = provider.credit()
    if credit <= 0:
        raise ProviderNoCredit(
            f"the account has ${credit:.2f} of credit: add some, then start again"
        )


def _check_reach(url: str, settings: Settings) -> None:
    if local_path(url) is not None and not is_loopback(settings.vast_url):
        raise UsageError(
            f"store {url} is on this machine, where a rented one cannot reach it: give a "
            "WebDAV directory or another remote store with --store or RCLONE_WEBDAV_URL"
        )


@contextmanager
def _only_flow(settings: Settings, run: RunStore) -> Generator[None]:
    """The kernel frees it however the process dies, so the next start goes on at once."""
    with RunLock(lock_of(settings, run.run_url)):
        yield


def lock_of(settings: Settings, run_url: str) -> str:
    """The directory whose lock a flow holds that rents for this run."""
    return str(settings.cache_dir / "flows" / sha256_hex(run_url.encode())[:16])


def owner_of(settings: Settings) -> str:
    """This machine's and user's nonce: the lock above tells its flows apart, others see it."""
    path = settings.cache_dir / "flows" / "owner"
    try:
        return path.read_text()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"owner-{token_hex(4)}")
        fresh.write_text(f"{socket.gethostname()}-{token_hex(4)}")
        try:
            path.hardlink_to(fresh)  # of two that begin at once, one wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        return path.read_text()
