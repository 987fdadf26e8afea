"""The probe of an account: one machine is rented for about a minute, and shows that renting works.

It is a rental like any other, by the same steps (`tsgb/cloud/lifecycle.py`), in a run of its own:
`RUN`. Its machine has no arms to train. It fetches the code from the exchange, installs packages,
reads its lease, uses its card, writes a heartbeat and an exit record, and destroys itself. If this
process is killed, lease and reaper end the machine as they end that of a run, and the next probe
ends it first.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import FrameType

from flows.interrupts import check_interrupt, interruptible
from flows.rented import provider_of, rental_session
from flows.workers import Workers
from tsgb.cloud.bundle import boot, pack_code, publish_code
from tsgb.cloud.card import CardProbe, objection
from tsgb.cloud.documents import Intent, RunDocuments
from tsgb.cloud.exchange import Exchange
from tsgb.cloud.forecast import StartDownloads, workload
from tsgb.cloud.launch import hazard_of
from tsgb.cloud.lease import NAME as LEASE
from tsgb.cloud.offers import Appraisal, choose
from tsgb.cloud.policy import LaunchPolicy, MachineNeeds
from tsgb.cloud.preemption import History, Workload
from tsgb.cloud.pricing import MICRO, microdollars
from tsgb.cloud.provider import LaunchSpec
from tsgb.cloud.recover import release_all
from tsgb.cloud.rented_machine import RentedMachine
from tsgb.cloud.retry_policy import Ending, avoid
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.terminate import BUDGET
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import (
    BudgetReached,
    Interrupted,
    NoOffer,
    Preempted,
    StoreError,
    StoreUnreachable,
    TSGBError,
)
from tsgb.models.planner import CARD_CLASSES
from tsgb.models.requirements import LEAST_COMPUTE, cuda_of_torch
from tsgb.settings import Settings

RUN = "doctor-probe"
"""Id of the run that keeps what probes of this deployment write: lease, ledger and attempts."""
_START_SECONDS = 900.0
"""Seconds from the rental to the first heartbeat, at most."""
_SILENT_SECONDS = 300.0
"""Seconds from the first heartbeat to the machine's end, at most."""
_LOOK_SECONDS = 5.0
"""Seconds between two looks, at most: a probe is over in a minute, and is paid until it is seen."""
_MOST_REFUSALS = 10
"""Refused rentals in a row after which the probe has failed. Others are faster for about half of
all offers, and a refusal costs nothing."""
_WORK_HOURS = 0.01
_STORE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOffer:
    """The machine that a probe would rent now.

    Example: `str(find_machine(settings, 0.05))`
    """

    best: Appraisal
    """The offer and its bid."""
    seconds: float
    """Expected seconds from the rental to the machine's end."""
    dollars: float
    """Expected dollars, those of the image's traffic among them."""
    most_seconds: float
    """Seconds after which the machine is given up and destroyed."""
    most_dollars: float
    """Dollars that the probe may cost."""

    def __str__(self) -> str:
        offer = self.best.offer
        return (
            f"offer {offer.id} ({offer.gpu_name}, machine {offer.machine_id}) at "
            f"${self.best.hourly:.3f}/h, about {self.seconds / 60:.0f} minutes and "
            f"${self.dollars:.3f}; at most {self.most_seconds / 60:.0f} minutes and "
            f"${self.most_dollars:.2f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The end of a probe.

    Example: `ProbeResult(machine="instance 7 (RTX 3090, machine 8)", dollars=0.0078, is_gone=True)`
    """

    failure: str = ""
    """Reason why renting does not work, in one line; empty if it does."""
    machine: str = ""
    """The machine that was rented last, for people; empty if there was none."""
    hourly: float = 0.0
    """Its price with storage, $/h."""
    boot_seconds: float | None = None
    """Seconds from the rental until its first heartbeat was seen; None without one."""
    card: CardProbe | None = None
    """The use of its card; None if it told of none, or had none to use."""
    is_gone: bool = True
    """Whether it was destroyed, and then seen to be gone by its number and in the list of all."""
    dollars: float = 0.0
    """Dollars that the probe has cost."""


def needs_of_probe(settings: Settings) -> MachineNeeds:
    """Return what the machine of a probe must have: a card that the worker's torch can use.

    Args:
        settings: What a user asks of machines; with `gpu_ram_gb` 0 no card is used.
    """
    usual = MachineNeeds.of(settings)
    if settings.gpu_ram_gb == 0:
        return usual
    cuda = cuda_of_torch()
    compute_cap = max((cap for version, cap in LEAST_COMPUTE.items() if version <= cuda), default=0)
    card_gb = usual.gpu_ram_gb or min(CARD_CLASSES)
    return replace(usual, gpu_ram_gb=card_gb, cuda=cuda, compute_cap=compute_cap)


def find_machine(settings: Settings, dollars: float, endings: Iterable[Ending] = ()) -> ProbeOffer:
    """Return the machine that a probe would rent now: the cheapest one that fits. One search.

    Args:
        settings: The account, and what a user asks of machines.
        dollars: Dollars that the probe may cost.
        endings: Ends of earlier probes, whose bad hosts are avoided.

    Raises:
        NoOffer: No offer fits.
        BudgetReached: The cheapest one costs more.
        ProviderError: The service did not tell.
    """
    policy = LaunchPolicy.of(settings, needs_of_probe(settings))
    work = _load(policy)
    with provider_of(settings) as provider:
        offers = provider.search(policy.search())
    avoided = avoid(endings, datetime.now(UTC))
    needs = policy.needs(avoided, policy.disk_gb, offers)
    choice = choose(offers, needs, work, hazard_of(History()))
    if choice.best is None:
        raise NoOffer(f"{choice}: raise TSGB_MAX_PRICE, or ask for less")
    offer = choice.best.offer
    seconds = work.on(offer.inet_down).boot_seconds
    traffic = work.restore_gb * offer.inet_down_cost
    expected = traffic + choice.best.hourly * seconds / 3600
    least = traffic + choice.best.hourly * policy.least_minutes / 60
    if max(expected, least) > dollars:
        raise BudgetReached(
            f"machine {offer.machine_id}, the cheapest that fits, may cost "
            f"${max(expected, least):.3f}: give --dollars"
        )
    return ProbeOffer(
        best=choice.best,
        seconds=seconds,
        dollars=expected,
        most_seconds=min(settings.provision_seconds, _START_SECONDS) + _SILENT_SECONDS,
        most_dollars=dollars,
    )


def probe_account(
    settings: Settings, store: str, dollars: float, note: Callable[[str], None]
) -> ProbeResult:
    """Rent a machine, let it show that it works, and end it; afterwards none is left.

    Args:
        settings: Settings of this process.
        store: URL of the store of runs.
        dollars: Dollars that it may cost.
        note: Tells a person one line.

    Raises:
        Interrupted: A signal came; the machine is ended.
        TSGBError: Nothing was rented; or the machine is not known to be gone.
    """
    workers = Workers(settings, store, RUN)
    with interruptible(), rental_session(workers, note, needs_of_probe(settings)) as session:
        return run_probe(session, ProbeWork(workers, session), dollars)


def run_probe(session: Session, work: ProbeWork, dollars: float) -> ProbeResult:
    """Rent for a session; see `probe_account`.

    Args:
        session: Session of the run of probes, without a flow that works on it.
        work: The probe's work.
        dollars: Dollars that it may cost.
    """
    policy = session.monitor_policy
    session.monitor_policy = replace(
        policy,
        look_seconds=min(policy.look_seconds, _LOOK_SECONDS),
        offer_seconds=0.0,
        deadlines=replace(
            policy.deadlines,
            provision=min(policy.deadlines.provision, _START_SECONDS),
            heartbeat=min(policy.deadlines.heartbeat, _SILENT_SECONDS),
        ),
    )
    _drop_torn_lease(session)
    release_all(session, "a new probe begins")
    ledger = session.ledger
    before, ledger.budget = ledger.spent, ledger.held + microdollars(dollars)
    machine = RentedMachine(session, work)
    failure, is_stopped = "", False
    try:
        failure = _attempts(machine, work)
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        with _undisturbed(session.note):
            _end(machine, work)
    cost, running = (ledger.spent - before) / MICRO, work.running
    if is_stopped:
        raise Interrupted(f"stopped; no machine of the probe is left, and it cost ${cost:.4f}")
    if running is None:
        return ProbeResult(failure=failure, dollars=cost)
    intent = running.intent
    return ProbeResult(
        failure=failure,
        machine=f"instance {running.instance_id} ({intent.gpu_name}, machine {intent.machine_id})",
        hourly=intent.hourly,
        boot_seconds=running.boot_seconds,
        card=CardProbe.read(running.heartbeat),
        is_gone=running.finished,
        dollars=cost,
    )


def _drop_torn_lease(session: Session) -> None:
    """Delete a lease that a probe was killed while writing: nothing of its run is worth keeping."""
    try:
        session.documents.lease()
    except StoreUnreachable:
        raise
    except StoreError as error:
        session.note(f"{error}; deleted")
        session.documents.run.delete(LEASE)


def _attempts(machine: RentedMachine[None], work: ProbeWork) -> str:
    """Rent until a rental is not refused; return why it failed, or an empty text."""
    session, error = machine.session, None
    for _ in range(_MOST_REFUSALS):
        num = len(session.endings)
        try:
            machine.attempt(0)
        except Preempted as failed:
            error = failed
            if [ending.cause for ending in session.endings[num:]] != [TerminationReason.REFUSED]:
                break
        except TSGBError as failed:
            error = failed
            break
        else:
            return ""
    return _reason(error, work)


def _reason(error: TSGBError | None, work: ProbeWork) -> str:
    """Return why a probe failed, without words about a run that would go on."""
    running = work.running
    if running is not None and running.stop == BUDGET:
        return "the dollars that it may cost were used up before its machine had shown all"
    last = work.documents.attempt(work.begun()) if work.begun() > work.earlier else None
    if last is not None and last.result is not None and last.result.message:
        return f"{last.result.cause}: {last.result.message}"
    return str(error).removeprefix(f"run {RUN!r}: ").partition("; what was trained is kept")[0]


def _end(machine: RentedMachine[None], work: ProbeWork) -> None:
    """End whatever is rented, also what was asked for a moment ago and has no number yet."""
    reason = "the probe is over"
    try:
        machine.close(reason)
    finally:
        if machine.running is None or not machine.running.finished:
            release_all(machine.session, reason)
    machine.session.quietly(lambda: work.collect(None), "the probe's folder is left for the next")


@contextmanager
def _undisturbed(note: Callable[[str], None]) -> Generator[None]:
    """Answer further signals with a line while the machine is being ended."""

    def tell(_number: int, _frame: FrameType | None) -> None:
        note("ending the machine first")

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _load(policy: LaunchPolicy) -> Workload:
    return workload(_WORK_HOURS, disk_gb=policy.disk_gb, start=StartDownloads.of(policy))


class ProbeWork:
    """The work of a probe, as far as renting knows it: none, but to report."""

    def __init__(self, workers: Workers, session: Session) -> None:
        """Describe the work.

        Args:
            workers: Settings and store of the run of probes.
            session: The session that rents for it.
        """
        self.documents: RunDocuments = session.documents
        self.running: RunningInstance | None = None
        """The machine that was looked at last."""
        self._session = session
        self._settings = workers.settings
        self._home = workers.home
        self._exchange = Exchange.of(workers.settings, workers.store)
        self.earlier = self.begun()
        """The last attempt of earlier probes; 0 without any."""
        self._code = pack_code()  # a refusal comes before a machine costs anything
        self._shown = ""

    def begun(self) -> int:
        """Return the highest attempt of all probes."""
        return max(self.documents.run.attempt_documents("attempts"), default=0)

    def is_reached(self, segment: int) -> bool:  # noqa: ARG002 - there is none
        """Tell that there is always something to show."""
        return False

    def has_saved(self, segment: int, running: RunningInstance) -> bool:  # noqa: ARG002 - likewise
        """Wait for the exit record: nothing is saved before."""
        return False

    def load(self) -> Workload:
        """Return hardly any work: what the start downloads decides among offers."""
        return _load(self._session.launch_policy)

    def card_gb(self) -> float:
        """Return the memory that the card must have, GB; 0 uses none."""
        return self._session.launch_policy.gpu_ram_gb

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        """Return a machine without arms to train, after its code is in the exchange."""
        settings = self._settings
        seen = self._exchange.open(self._home, intent.exchange)
        made = boot(
            run_url=seen.run_url,
            attempt=attempt,
            arms=[],
            code=publish_code(seen, self._code),
            vast_url=settings.vast_url,
            webdav_user=self._exchange.user,
            webdav_pass=self._exchange.password,
            boot_seconds=settings.provision_seconds + settings.lease_seconds,
            worker_env={
                "TSGB_CARD_GB": f"{intent.card_gb:g}",
                "TSGB_SKEW_SECONDS": f"{settings.skew_seconds:g}",
                "TSGB_GRACE_SECONDS": f"{settings.grace_seconds:g}",
            },
        )
        return LaunchSpec(
            image=settings.image,
            label=intent.label,
            price=intent.price,
            disk_gb=intent.disk_gb,
            onstart=made.onstart,
            env=made.env,
        )

    def promote(self, attempt: int, tick: Callable[[], object]) -> None:
        """A probe saves nothing."""

    def collect(self, working: int | None) -> None:
        """Keep the last reports of machines that are gone, and delete their folders."""
        kept: set[str] = set()
        for found in list(self.documents.attempts()):
            folder = "" if found.intent is None else found.intent.exchange
            if folder and found.attempt == working:
                kept.add(folder)
            elif folder and not found.is_collected:
                self.documents.collected(found.attempt)
        for folder in self._exchange.folders(self._home, _STORE_SECONDS) - kept:
            self._exchange.delete(self._home, folder, _STORE_SECONDS)

    def updates(self) -> int:
        """Return 0: nothing is trained."""
        return 0

    def verify(self, segment: int) -> None:  # noqa: ARG002 - there is none
        """Return if the machine had the card that was promised.

        Raises:
            Preempted: It told of none, or of another one.
        """
        running = self.running
        if running is None:
            raise Preempted("nothing was rented")
        wrong = objection(
            CardProbe.read(running.heartbeat),
            gpu_name=running.intent.gpu_name,
            card_gb=running.intent.card_gb,
        )
        if wrong:
            raise Preempted(wrong)

    def show(self, running: RunningInstance) -> None:
        """Tell a person each new state of the machine."""
        check_interrupt()
        self.running = running
        state = "?" if running.instance is None else running.instance.status
        text = f"instance {running.instance_id}: {state}"
        if text != self._shown:
            self._session.note(text)
            self._shown = text
