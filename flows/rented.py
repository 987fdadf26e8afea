"""A run on rented machines: the work that they do, and all that renting for it needs.

It joins the settings, the workers' traces in the store and the account. It decides nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from secrets import token_hex

from flows.interrupts import check_interrupt, pause
from flows.progress import Bar, listener, rates_in
from flows.seeds import shared_budget
from flows.workers import Checkpoints, Workers, segment_targets
from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.documents import count_in
from tsgb.checkpoint.promote import Expected, Handover, TrustedStore, hand_out, promote
from tsgb.checkpoint.run import RunLock, RunStore, open_run
from tsgb.checkpoint.store import NONE
from tsgb.cloud.bill import RentalBill, make_bill
from tsgb.cloud.budget import SharedBudget, journal_path
from tsgb.cloud.bundle import BootSpec, Code, boot, pack_code, publish_code
from tsgb.cloud.connect import connect
from tsgb.cloud.documents import (
    Intent,
    RunDocuments,
    arms,
    basis_of,
    durable_step,
    ending_of,
)
from tsgb.cloud.exchange import Exchange, check_reach
from tsgb.cloud.forecast import StartDownloads, workload
from tsgb.cloud.history import state_size
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.policy import LaunchPolicy, MachineNeeds, MonitorPolicy
from tsgb.cloud.preemption import Workload
from tsgb.cloud.pricing import in_dollars
from tsgb.cloud.provider import LaunchSpec, Provider
from tsgb.cloud.rented_machine import RentedMachine
from tsgb.cloud.retry_policy import is_blamed
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.termination import TerminationReason
from tsgb.config import Arm, RunConfig, arm_run_id
from tsgb.data.training import copy_training_data
from tsgb.errors import BudgetReached, Preempted, ProviderNoCredit, StoreError
from tsgb.models.planner import DeviceMemory
from tsgb.models.pushed import parse_pushed
from tsgb.models.requirements import machine_of_run, workers_at_a_time
from tsgb.plugins import Trust
from tsgb.setting_groups import CloudSettings
from tsgb.settings import Settings
from tsgb.types import CheckpointRef

_STORE_SECONDS = 30.0
"""A store that does not answer must not keep the flow from looking at the machine."""
_GUESSED_HOURS = 2.0
"""Hours of work for the choice of an offer; they hardly matter beyond the time to start."""


class ArmsWork:
    """All arms of a run, trained by one machine at a time."""

    def __init__(
        self,
        workers: Workers,
        configs: Mapping[Arm, RunConfig],
        documents: RunDocuments | None = None,
        needs: MachineNeeds | None = None,
        spent: Callable[[], int] | None = None,
    ) -> None:
        """Describe the work; reads nothing yet.

        Args:
            workers: Workers of the run.
            configs: Configurations of the arms to train.
            documents: The run's documents as the flow holds them; without them, opened here.
            needs: What the run's models ask of a machine; without it those of a run without any.
            spent: Returns the micro-dollars that the run has cost so far, to show them.
        """
        self._workers = workers
        self._spent = spent
        self._configs = configs
        self._needs = needs or MachineNeeds.of(workers.settings)
        self._exchange = Exchange.of(workers.settings, workers.store)
        self._opened = documents
        self._code: Code | None = None
        self._steps: dict[Arm, int] | None = None
        """Newest known step of each arm, for people; None before the first look."""
        self._first: int | None = None
        """First attempt that this flow began; None before it."""
        self._left = ""
        """Folder in the exchange of the last machine that is gone, until the next one has what it
        goes on from: the server may copy it from there."""
        self._doubted: dict[Arm, set[int]] = {}
        """Attempts by arm whose checkpoints nobody could go on from. A flow that is started again
        forgets them, since a person may have mended what the machines really failed on."""

    def pack(self) -> Code:
        """Return the code that machines run, packed once for all of them.

        Raises:
            UsageError: A rented machine could not have it.
        """
        if self._code is None:
            config = next(iter(self._configs.values()))
            self._code = pack_code(
                config.env,
                trust=Trust.of(self._workers.env),
                model=config.model,
                profile=config.profile.value,
            )
        return self._code

    def begun(self) -> int:
        """Return the highest attempt on any arm."""
        return max(map(self._workers.highest, self._configs))

    def is_reached(self, segment: int) -> bool:
        """Tell from the newest checkpoints: the last ones read in full, others by name.

        Else a last checkpoint that rotted would be verified, in vain, for ever.
        """
        find = self._reached if self._is_last(segment) else self._newest
        return find(segment).keys() == self._configs.keys()

    def has_saved(self, segment: int, running: RunningInstance) -> bool:
        """Tell from the heartbeat; the last segment ends with the machine's own exit record."""
        told = arms(running.heartbeat)
        return not self._is_last(segment) and all(
            durable_step(told.get(arm.value, {})) >= target
            for arm, target in segment_targets(self._configs, segment).items()
        )

    def updates(self) -> int:
        """Return the updates of all arms together, in their newest checkpoints."""
        return self._workers.total_updates(self._configs)

    def verify(self, segment: int) -> Checkpoints:
        """Return the checkpoints at the end of a segment; the last ones are read in full.

        Others are taken by name: while they were read, nobody would renew the machine's lease.

        Raises:
            Preempted: One of them is not there after all.
        """
        if self._is_last(segment):
            return self._workers.verified(segment_targets(self._configs, segment))
        found = self._newest(segment)
        for arm, target in segment_targets(self._configs, segment).items():
            if arm not in found:
                raise Preempted(f"segment {segment}: no checkpoint of {arm} at step {target}")
        return found

    def promote(self, attempt: int, tick: Callable[[], object] = lambda: None) -> None:
        """Copy what a machine has saved into the run, as far as it is sound.

        Raises:
            StoreError: The run or the exchange cannot be read, or the run not be written.
        """
        found = self._documents().attempt(attempt)
        if found is None or found.intent is None or not found.intent.exchange:
            return
        for arm, config in self._configs.items():
            expected = Expected(
                attempt=attempt,
                config_sha256=config.fingerprint,
                last_step=config.total_steps,
                max_bytes=int(found.intent.disk_gb * 1e9),
                adapter=(config.model.adapter, config.model.rank),
                doubted=frozenset(self._doubted.get(arm, ())),
            )
            seen = self._seen(found.intent.exchange, arm)
            promote(seen, self._open_cached(arm), expected, note=listener().note, tick=tick)

    def collect(self, working: int | None) -> None:
        """Copy what machines that are gone have saved, and delete all folders but the last one.

        Raises:
            StoreError: See `promote`.
        """
        documents = self._documents()
        home = self._workers.home
        listed = self._exchange.folders(home, _STORE_SECONDS)
        for found in list(documents.attempts()):
            folder = "" if found.intent is None else found.intent.exchange
            if not folder or found.attempt == working:
                continue
            if found.is_collected:
                # The flow was killed before it could delete it.
                if folder in listed and folder != self._left:
                    self._exchange.delete(home, folder, _STORE_SECONDS)
                continue
            if found.first_beat_at is not None and folder not in listed:
                listener().note(
                    f"{self._exchange.url} has no folder of attempt {found.attempt}, whose machine "
                    "has worked: if TSGB_EXCHANGE_URL has changed, set it back and start again, or "
                    "what that machine saved last is lost"
                )
                continue
            self.promote(found.attempt)
            documents.collected(found.attempt)
            self.clear()
            self._left = folder

    def clear(self) -> None:
        """Delete the last machine's folder too.

        Raises:
            StoreError: The exchange does not take it; the next flow deletes it.
        """
        if self._left:
            self._exchange.delete(self._workers.home, self._left, _STORE_SECONDS)
            self._left = ""

    def load(self) -> Workload:
        """Return the load, with the traffic of the newest checkpoints (0 before the first one)."""
        size = state_size(self._workers.open(arm, _STORE_SECONDS) for arm in self._configs)
        policy = LaunchPolicy.of(self._workers.settings, self._needs)
        return workload(
            _GUESSED_HOURS,
            disk_gb=policy.disk_gb,
            restore_gb=size.restore_gb,
            save_gb=size.save_gb,
            start=StartDownloads.of(policy),
        )

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        """Return a machine that trains the arms, after all that it reads is in the exchange."""
        settings = self._workers.settings
        self._first = self._first or attempt
        self._go_back()
        handed: dict[Arm, Handover] = {}
        for arm, config in self._configs.items():
            seen = self._seen(intent.exchange, arm)
            seen.write_text("config.json", config.canonical())
            if config.train_data is not None:
                copy_training_data(self._workers.open(arm), seen, config.train_data)
            earlier = self._seen(self._left, arm) if self._left else None
            found = hand_out(self._open_cached(arm), seen, self._doubted.get(arm, ()), earlier)
            if found is not None:
                handed[arm] = found
        with suppress(StoreError):  # then after the next machine
            self.clear()
        names = {arm.value: found.kept.name for arm, found in handed.items()}
        trained = [arm.value for arm in self._configs]
        self._documents().note(attempt, resumed_from=names, arms=trained)
        main = self._seen(intent.exchange, self._workers.alone or Arm.SELFPLAY)
        made: BootSpec = boot(
            run_url=main.run_url,
            attempt=attempt,
            arms=trained,
            code=publish_code(main, self.pack()),
            vast_url=settings.vast_url,
            webdav_user=self._exchange.user,
            webdav_pass=self._exchange.password,
            boot_seconds=settings.provision_seconds + settings.lease_seconds,
            worker_env={
                **self._at_a_time(),
                "TSGB_CARD_GB": f"{intent.card_gb:g}",
                **self._models(),
                "TSGB_SKEW_SECONDS": f"{settings.skew_seconds:g}",
                "TSGB_GRACE_SECONDS": f"{settings.grace_seconds:g}",
                "TSGB_RESUME_PINS": ",".join(one.seen.sha256 for one in handed.values()) or NONE,
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

    def card_gb(self) -> float:
        """Return the memory that a machine's card must have, GB; 0 for worlds of small models."""
        config = next(iter(self._configs.values()))
        if not config.model.device.startswith(("auto", "cuda")):
            return 0.0
        recipes = self._workers.world(config).recipes(config.profile.value)
        base = config.model.pretrained or recipes["base"].pretrained
        return self._needs.gpu_ram_gb if base else 0.0

    def _at_a_time(self) -> dict[str, str]:
        """Return the variables that let no more arms train at a time than a card has memory for.

        The smallest card that may be rented decides, so that all machines of a run do the same.
        """
        config, settings = next(iter(self._configs.values())), self._workers.settings
        card_gb = self.card_gb()
        if not card_gb:
            return {}
        num = workers_at_a_time(
            config,
            self._workers.world(config),
            settings,
            settings.cache_dir / "models",
            most=len(self._configs),
            evaluates=False,
            device=DeviceMemory("cuda", int(card_gb * 1e9), has_bfloat16_units=True),
        )
        return {"TSGB_MAX_PARALLEL": str(num)} if num < len(self._configs) else {}

    def _models(self) -> dict[str, str]:
        """Return the variable that says where pushed models are, if the run has one."""
        models = [config.model for config in self._configs.values()]
        names = [name for model in models for name in (model.pretrained, model.target)]
        pushed = any(parse_pushed(name) for name in names)
        return {"TSGB_MODELS_URL": self._exchange.models_url} if pushed else {}

    def show(self, running: RunningInstance) -> None:
        """Show bars of the arms, or the state of the machine before anything is known of them.

        A machine that has not reported yet stands where the one before it was seen last.
        """
        check_interrupt()
        state = "?" if running.instance is None else running.instance.status
        text = f"instance {running.instance_id} {state}, ${running.intent.hourly:.3f}/h"
        if self._spent is not None:
            text += f", {in_dollars(self._spent())} so far"
        if self._steps is None:
            self._steps = self._saved_steps()
        told = arms(running.heartbeat)
        for arm in self._configs:
            if arm.value in told:
                self._steps[arm] = count_in(told[arm.value], "step")
        bars = [
            Bar(
                arm.value,
                self._steps.get(arm, 0),
                config.total_steps,
                text,
                rates_in(told.get(arm.value, {})),
            )
            for arm, config in self._configs.items()
            if self._steps
        ]
        listener().bars(f"attempt {running.attempt}", bars or [Bar("machine", 0, 0, text)])

    def _go_back(self) -> None:
        """Doubt the newest checkpoints if machines of several hosts could not go on from them.

        The attempt that saved the newest of them answers for it: its host is avoided from now on.
        """
        newest = {arm: ref for arm in self._configs if (ref := self._newest_trusted(arm))}
        basis = basis_of({arm.value: ref.name for arm, ref in newest.items()})
        attempts = {one.attempt: one for one in self._documents().attempts()}
        recent = [
            ending_of(one)
            for one in attempts.values()
            if one.result is not None and one.attempt >= (self._first or 0)
        ]
        if not is_blamed(recent, basis):
            return
        suspect = max(ref.attempt for ref in newest.values())
        for arm, ref in newest.items():
            if ref.attempt == suspect:
                self._doubted.setdefault(arm, set()).add(suspect)
        listener().note(
            f"machines of several hosts failed on the checkpoints of attempt {suspect} before any "
            "update: going on from those before them"
        )
        wrote = attempts.get(suspect)
        if wrote is not None and wrote.result is not None:
            message = f"nobody could go on from what it saved; {wrote.result.message}"
            result = wrote.result.model_copy(
                update={"cause": TerminationReason.BAD_HOST, "message": message[:300]}
            )
            self._documents().note(suspect, outcome=result.model_dump(mode="json"))

    def _newest_trusted(self, arm: Arm) -> CheckpointRef | None:
        return TrustedStore(self._workers.open(arm), self._doubted.get(arm, ())).newest()

    def _saved_steps(self) -> dict[Arm, int]:
        """Return the steps of the newest checkpoints; nothing where the store cannot say."""
        try:
            found = self._workers.newest(self._configs, _STORE_SECONDS)
        except StoreError:
            return {}
        return {arm: ref.step for arm, ref in found.items()}

    def _documents(self) -> RunDocuments:
        if self._opened is not None:
            return self._opened
        run = self._workers.open_home(_STORE_SECONDS)
        return RunDocuments(run, self._exchange.opener(self._workers.home, _STORE_SECONDS))

    def _seen(self, folder: str, arm: Arm) -> RunStore:
        """Return an arm's run as a machine sees it."""
        workers = self._workers
        return self._exchange.open(workers.home, folder, arm_run_id(workers.run, arm))

    def _open_cached(self, arm: Arm) -> RunStore:
        cache = FileCache(self._workers.settings.cache_dir / "files")
        return self._workers.open(arm, cache=cache)

    def _is_last(self, segment: int) -> bool:
        return all(segment + 1 >= config.segments for config in self._configs.values())

    def _reached(self, segment: int) -> Checkpoints:
        return self._workers.reached(segment_targets(self._configs, segment))

    def _newest(self, segment: int) -> Checkpoints:
        """Return the newest checkpoints of the arms that reached the end of a segment, by name."""
        targets = segment_targets(self._configs, segment)
        found = self._workers.newest(self._configs)
        return {arm: ref for arm, ref in found.items() if ref.step >= targets[arm]}


@contextmanager
def renting(
    workers: Workers, configs: Mapping[Arm, RunConfig], on_bill: Callable[[RentalBill], None]
) -> Generator[RentedMachine[Checkpoints]]:
    """Yield the rented machine of a run; afterwards none is left, and the bill is in the store.

    Args:
        workers: Workers of the run.
        configs: Configurations of the arms to train.
        on_bill: Called with the bill at the end.

    Raises:
        ProviderAuthError: There is no key.
        UsageError: Another process rents for this run, or machines could not reach the store.
    """
    needs = needs_of(workers, configs)
    with rental_session(workers, needs=needs) as session:
        ledger = session.ledger
        work = ArmsWork(workers, configs, session.documents, needs, lambda: ledger.spent)
        work.pack()  # a refusal comes before a machine costs anything
        machine = RentedMachine(session, work)
        try:
            yield machine
        except BaseException as error:
            _close(machine, work, f"{type(error).__name__}: {error}", on_bill)
            raise
        _close(machine, work, "done", on_bill)


def _close(
    machine: RentedMachine[Checkpoints],
    work: ArmsWork,
    reason: str,
    on_bill: Callable[[RentalBill], None],
) -> None:
    """End the lease, and write down the cost of the run; neither may hide how it ended.

    The bill is that of the service and of this computer: it needs nothing that a machine said.
    """
    session = machine.session

    def close() -> None:
        machine.close(reason)
        work.collect(None)
        work.clear()

    def write_bill() -> None:
        bill = make_bill(session.documents, session.ledger, work.updates())
        if bill.machines:
            run = session.documents.run
            run.write_json("summary.json", bill.as_json())
            session.note(f"{bill}; by machine in {run.run_url}/summary.json")
            on_bill(bill)

    for what, step in (("not all is closed", close), ("no summary", write_bill)):
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the reason of the flow's end counts
            session.note(f"{what}: {type(error).__name__}: {error}")


def needs_of(workers: Workers, configs: Mapping[Arm, RunConfig]) -> MachineNeeds:
    """Return what the models of a run ask of its machines.

    Raises:
        UsageError: Machines as the settings name them are too small.
    """
    config, settings = next(iter(configs.values())), workers.settings
    env, models = workers.world(config), settings.cache_dir / "models"
    return machine_of_run(config, env, settings, settings, models, arms=len(configs))


@contextmanager
def rental_session(
    workers: Workers,
    note: Callable[[str], None] | None = None,
    needs: MachineNeeds | None = None,
) -> Generator[Session]:
    """Yield all that renting for a run needs; one flow of this computer at a time.

    Args:
        workers: Workers of the run; their settings name the account.
        note: Tells a person one line; the listener's by default.
        needs: What the run's models ask of a machine, for who rents one.

    Raises:
        ProviderAuthError: There is no key.
        UsageError: Another process rents for this run, or machines could not reach the store.
    """
    settings = workers.settings
    provider, run = provider_of(settings), workers.open_home(_STORE_SECONDS)
    exchange = Exchange.of(settings, workers.store)
    check_reach(exchange, settings.vast_url)
    tell = note or listener().note
    if not exchange.is_own and exchange.password is not None:
        tell(f"{exchange.what_machines_can_do}: give them an exchange, see `tsgb doctor`")
    # The kernel frees the lock however the process dies, so the next start goes on at once.
    here = lock_of(settings, run.run_url)
    with RunLock(here), provider:
        yield Session(
            documents=RunDocuments(run, exchange.opener(workers.home, _STORE_SECONDS)),
            provider=provider,
            launch_policy=LaunchPolicy.of(settings, needs),
            monitor_policy=MonitorPolicy.of(settings, settings),
            owner=owner_of(settings),
            journal=open_run(here),
            shared_budget=shared_budget(),
            sleep=pause,
            note=tell,
        )


def budget_of(settings: Settings, store: str, names: Sequence[str]) -> SharedBudget:
    """Return one budget for several runs, with what they have spent already.

    Args:
        settings: Settings of this process.
        store: URL of the store that holds the runs.
        names: Their ids.

    Raises:
        StoreError: What one of them has spent is unknown.
    """
    runs = DeploymentRuns.of(settings, store, settings.cache_dir)
    runs = replace(runs, deadline_seconds=_STORE_SECONDS)
    return SharedBudget({name: runs.ledger(runs.documents(name)).held for name in names})


def provider_of(settings: CloudSettings) -> Provider:
    """Return the account that the settings name.

    Raises:
        ProviderAuthError: There is no key.
    """
    return connect(settings.vast_api_key, settings.vast_url)


def preflight(settings: Settings, store: str) -> None:
    """Say at once what would end a run before its first machine; one request.

    Raises:
        ProviderAuthError: There is no key, or it is refused.
        ProviderNoCredit: The account has no credit.
        BudgetReached: The budget is nothing.
        UsageError: A rented machine could not reach the store.
    """
    if settings.budget <= 0:
        raise BudgetReached("a budget of $0 rents nothing: give --budget or TSGB_BUDGET")
    check_reach(Exchange.of(settings, store), settings.vast_url)
    with provider_of(settings) as provider:
        credit = provider.credit()
    if credit <= 0:
        raise ProviderNoCredit(
            f"the account has ${credit:.2f} of credit: add some, then start again"
        )


def lock_of(settings: Settings, run_url: str) -> str:
    """Return the directory whose lock a flow holds that rents for this run.

    This computer also writes down there what the run costs, where no machine can change it.
    """
    return str(journal_path(settings.cache_dir, run_url))


def owner_of(settings: Settings) -> str:
    """Return the nonce of this computer and user; the lock tells its flows apart."""
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
