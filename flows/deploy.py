"""`tsgb deploy`: the objects of this project on a Prefect server, made as they are declared.

`deployments/prefect.yaml` declares them, for `prefect deploy` too. This knows how a declared object
differs from the one on the server, and changes what differs: an automation keeps its id, and what
is as declared is left alone. The tag `tsgb` and names that begin with `tsgb-` mark what it looks
after: of these it deletes what an earlier version left.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentTriggerTypes
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tsgb.errors import ConfigError, UsageError

TAG = "tsgb"
"""Tag of every deployment that this looks after."""
PREFIX = "tsgb-"
"""Beginning of the name of every automation that this looks after."""
_HERE = Path(__file__).parent
_PAGE = 200
_POOL = re.compile(r"(?!\s*prefect)\s*[^\s/%&<>][^/%&<>]*", re.IGNORECASE)
T = TypeVar("T")
_Trigger: TypeAdapter[DeploymentTriggerTypes] = TypeAdapter(DeploymentTriggerTypes)


# -- the declaration -----------------------------------------------------------------------------


class _Declared(BaseModel):
    """A part of the file: what this module does not know is refused, not passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DeclaredPool(_Declared):
    """The work pool of a deployment, with what it changes in the pool's jobs."""

    name: str
    """Its name on the server."""
    work_queue_name: str = "default"
    """Queue of the pool, which a worker may take alone; made if missing."""
    job_variables: dict[str, Any] = {}
    """Values in place of those of its job template."""


class DeclaredLimit(_Declared):
    """How many runs of a deployment there may be at once, and what becomes of one more."""

    limit: int
    """Most runs at once."""
    collision_strategy: str
    """`ENQUEUE` or `CANCEL_NEW`."""


class DeclaredSchedule(_Declared):
    """A schedule of a deployment, known by its slug."""

    slug: str
    """Its name within the deployment."""
    interval: float | None = None
    """Seconds between two runs."""
    cron: str | None = None
    """Times of runs as cron writes them, in place of an interval."""
    active: bool = True
    """Whether runs are made by it."""

    def timing(self) -> IntervalSchedule | CronSchedule:
        """Return it in Prefect's form; an interval counts from now on."""
        if self.cron is not None:
            return CronSchedule(cron=self.cron)
        return IntervalSchedule(interval=timedelta(seconds=self.interval or 0))

    def same_as(self, other: Any) -> bool:
        """Whether the schedule of the server is this one, from whatever moment it counts."""
        mine, found = self.timing(), other.schedule
        moment = {"anchor_date"}
        return (self.slug, self.active, type(mine)) == (other.slug, other.active, type(found)) and (
            mine.model_dump(exclude=moment) == found.model_dump(exclude=moment)
        )


class DeclaredDeployment(_Declared):
    """A deployment, as in the list `deployments` of the file."""

    name: str
    """Its name, after that of the flow: `stage1` of `tsgb/stage1`."""
    description: str
    """Its text in Prefect's UI."""
    tags: list[str]
    """Its tags, `tsgb` among them."""
    entrypoint: str
    """Place of the flow from the root of the repository: `flows/FILE.py:FUNCTION`."""
    work_pool: DeclaredPool
    """The pool whose workers run it."""
    parameters: dict[str, Any] = {}
    """Parameters in place of the flow's defaults."""
    concurrency_limit: DeclaredLimit | None = None
    """How many of its runs there may be at once; None for no limit."""
    schedules: list[DeclaredSchedule] = []
    """Schedules that make runs of it."""
    triggers: list[dict[str, Any]] = []
    """Automations that make runs of it, in Prefect's words; each has a `name`."""

    @property
    def module_path(self) -> str:
        """The entry point as a module's attribute, as in `flows.stage1.stage1`."""
        return self.entrypoint.removesuffix(".py").replace(".py:", ".").replace("/", ".")

    def flow(self) -> Flow[..., Any]:
        """Import the flow."""
        module, _, attribute = self.module_path.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True, slots=True)
class Declaration:
    """The deployments, and the place where their flow runs work.

    Example: `read_declaration(Path.cwd())`
    """

    deployments: tuple[DeclaredDeployment, ...]
    """All of them, in the order of the file."""
    directory: Path
    """Working directory of the flow runs."""
    from_files: bool
    """Whether a run reads its flow from a file below that directory, or from the package."""


def read_declaration(
    working: Path, pool: str | None = None, *, package: Path = _HERE
) -> Declaration:
    """Read the file of the checkout, or the copy in an installed package.

    Args:
        working: Working directory of the flow runs where there is no checkout. A checkout's root is
            theirs in any case, as with `prefect deploy`.
        pool: Work pool in place of the file's.
        package: Directory of the flows.

    Raises:
        ConfigError: There is no file, or it has parts that this module does not know.
        UsageError: A server takes no pool of this name.
    """
    if pool is not None and not _POOL.fullmatch(pool):
        raise UsageError(
            f"--pool {pool!r} is no name of a work pool: it has none of / % & < >, and does not "
            "begin with 'prefect'"
        )
    root = package.parent
    checkout = root / "deployments" / "prefect.yaml"
    path = next((p for p in (checkout, package / "prefect.yaml") if p.is_file()), None)
    if path is None:
        raise ConfigError("prefect.yaml is not installed with tsgb: run this in its repository")
    try:
        document = yaml.safe_load(path.read_text())
        deployments = [DeclaredDeployment(**entry) for entry in document["deployments"]]
    except (yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be deployed: {error}") from error
    if pool is not None:
        pools = [entry.work_pool.model_copy(update={"name": pool}) for entry in deployments]
        deployments = [
            entry.model_copy(update={"work_pool": new})
            for entry, new in zip(deployments, pools, strict=True)
        ]
    from_files = path == checkout
    return Declaration(tuple(deployments), root if from_files else working, from_files)


# -- the server ----------------------------------------------------------------------------------


class Action(StrEnum):
    """The fate of an object on the server."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class ServerObject:
    """An object on the server, and what became of it.

    Example: `ServerObject("deployment", "tsgb/stage1", Action.UPDATED, "27337f13-...", ("tags",))`
    """

    kind: str
    """`work pool`, `deployment` or `automation`."""
    name: str
    """Its name there."""
    action: Action
    """The change that was made; with a dry run, the one that would be."""
    object_id: str | None = None
    """Its id there; None for one that a dry run did not make."""
    changed: tuple[str, ...] = ()
    """Parts of an updated one that differed."""


def deploy(
    client: SyncPrefectClient, declaration: Declaration, *, dry_run: bool = False
) -> Iterator[ServerObject]:
    """Make the objects on the server what they are declared to be; yield each when it is.

    Args:
        client: The server.
        declaration: What shall be there.
        dry_run: Only say what would happen.
    """
    for name in sorted({entry.work_pool.name for entry in declaration.deployments}):
        yield _make_pool(client, name, dry_run=dry_run)
    automations = list(_pages(lambda offset: client.read_automations(limit=_PAGE, offset=offset)))
    kept: set[UUID] = set()
    made: set[UUID] = set()
    for entry in declaration.deployments:
        outcome = _make_deployment(client, entry, declaration, dry_run=dry_run)
        yield outcome
        deployment_id = UUID(outcome.object_id) if outcome.object_id else None
        made |= {deployment_id} if deployment_id else set()
        for spec in entry.triggers:
            found = _automation_of(automations, spec["name"], deployment_id)
            kept |= {found.id} if found else set()
            yield _make_automation(client, spec, deployment_id, found, dry_run=dry_run)
    yield from _delete_stale(client, declaration, automations, kept, made, dry_run=dry_run)


def _pages(read: Callable[[int], list[T]]) -> Iterator[T]:
    """Yield the items of all pages."""
    offset = 0
    while page := read(offset):
        yield from page
        offset += len(page)


def _make_pool(client: SyncPrefectClient, name: str, *, dry_run: bool) -> ServerObject:
    """Create a pool of processes where there is none of that name; one of any type stays."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        if dry_run:
            return ServerObject("work pool", name, Action.CREATED)
        template = ProcessWorker.get_default_base_job_template()
        wanted = WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template)
        pool = client.create_work_pool(wanted)
        return ServerObject("work pool", name, Action.CREATED, str(pool.id))
    return ServerObject("work pool", name, Action.UNCHANGED, str(pool.id))


def _make_deployment(
    client: SyncPrefectClient,
    entry: DeclaredDeployment,
    declaration: Declaration,
    *,
    dry_run: bool,
) -> ServerObject:
    flow = entry.flow()
    name = f"{flow.name}/{entry.name}"
    try:
        found = client.read_deployment_by_name(name)
    except ObjectNotFound:
        found = None
    wanted = _wanted(entry, flow, declaration)
    changed = () if found is None else tuple(_differences(wanted, entry, found))
    action = Action.CREATED if found is None else Action.UPDATED if changed else Action.UNCHANGED
    known = ServerObject("deployment", name, action, str(found.id) if found else None, changed)
    if dry_run or action is Action.UNCHANGED:
        return known
    limit = entry.concurrency_limit
    number = client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=entry.name,
        schedules=[
            DeploymentScheduleCreate(schedule=one.timing(), active=one.active, slug=one.slug)
            for one in entry.schedules
        ],
        concurrency_limit=limit.limit if limit else None,
        concurrency_options=(
            ConcurrencyOptions.model_validate({"collision_strategy": limit.collision_strategy})
            if limit
            else None
        ),
        **wanted,
    )
    return replace(known, object_id=str(number))


def _wanted(
    entry: DeclaredDeployment, flow: Flow[..., Any], declaration: Declaration
) -> dict[str, Any]:
    """Return the plain fields of a deployment, as `prefect deploy` sets them."""
    step = "prefect.deployments.steps.set_working_directory"
    return {
        "version": flow.version,
        "description": entry.description,
        "tags": entry.tags,
        "entrypoint": entry.entrypoint if declaration.from_files else entry.module_path,
        "path": None,
        "pull_steps": [{step: {"directory": str(declaration.directory)}}],
        "work_pool_name": entry.work_pool.name,
        "work_queue_name": entry.work_pool.work_queue_name,
        "job_variables": entry.work_pool.job_variables,
        "parameters": entry.parameters,
        "parameter_openapi_schema": parameter_schema(flow).model_dump(
            mode="json", exclude_unset=True
        ),
        "enforce_parameter_schema": True,
    }


def _differences(
    wanted: Mapping[str, Any], entry: DeclaredDeployment, found: DeploymentResponse
) -> Iterator[str]:
    """Yield the names of the fields that are not as wanted."""
    for name, value in wanted.items():
        there: Any = getattr(found, name)
        if there != value and (name != "tags" or sorted(there) != sorted(value)):
            yield name
    schedules = {one.slug: one for one in found.schedules}
    if len(found.schedules) != len(entry.schedules) or not all(
        one.slug in schedules and one.same_as(schedules[one.slug]) for one in entry.schedules
    ):
        yield "schedules"
    limit, options = found.global_concurrency_limit, found.concurrency_options
    strategy = options.collision_strategy.value if options else None
    there = DeclaredLimit(limit=limit.limit, collision_strategy=strategy or "") if limit else None
    if there != entry.concurrency_limit:
        yield "concurrency_limit"


# -- automations ---------------------------------------------------------------------------------


def _targets(automation: AutomationCore) -> set[UUID] | None:
    """Return the deployments that an automation runs; None if it does anything else."""
    numbers = [
        action.deployment_id if isinstance(action, RunDeployment) else None
        for action in automation.actions
    ]
    known = {number for number in numbers if number is not None}
    return known if known and len(known) == len(set(numbers)) else None


def _automation_of(
    automations: Iterable[Automation], name: str, deployment_id: UUID | None
) -> Automation | None:
    """Return the automation of that name which runs the deployment."""
    same = (one for one in automations if one.name == name)
    return next((one for one in same if _targets(one) == {deployment_id}), None)


def _make_automation(
    client: SyncPrefectClient,
    spec: Mapping[str, Any],
    deployment_id: UUID | None,
    found: Automation | None,
    *,
    dry_run: bool,
) -> ServerObject:
    name = str(spec["name"])
    if deployment_id is None:
        return ServerObject("automation", name, Action.CREATED)
    trigger = _Trigger.validate_python(spec)
    trigger.set_deployment_id(deployment_id)
    wanted = trigger.as_automation()
    if found is None:
        number = None if dry_run else client.create_automation(wanted)
        return ServerObject(
            "automation", name, Action.CREATED, None if number is None else str(number)
        )
    before, after = _comparable(found), _comparable(wanted)
    changed = tuple(part for part in after if before[part] != after[part])
    if changed and not dry_run:
        # The client sends the fields that were set: all of them, but the owner, who never changes.
        fields = wanted.model_dump(exclude={"owner_resource"})
        client.update_automation(found.id, AutomationCore.model_validate(fields))
    action = Action.UPDATED if changed else Action.UNCHANGED
    return ServerObject("automation", name, action, str(found.id), changed)


def _comparable(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation says, without what the server adds."""
    dumped = AutomationCore.model_validate(automation.model_dump()).model_dump(
        mode="json", exclude={"owner_resource"}
    )
    dumped["trigger"].pop("id", None)
    return dumped


# -- what an earlier version left ----------------------------------------------------------------


def _delete_stale(
    client: SyncPrefectClient,
    declaration: Declaration,
    automations: Iterable[Automation],
    kept: set[UUID],
    made: set[UUID],
    *,
    dry_run: bool,
) -> Iterator[ServerObject]:
    """Delete what is marked as ours and is not declared; yield each.

    A deployment without a work pool is served by a process, as by `tsgb manager loop`: it stays.
    An automation goes if its deployments are ours or gone.
    """
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    deployments = list(
        _pages(
            lambda offset: client.read_deployments(
                deployment_filter=tagged, limit=_PAGE, offset=offset
            )
        )
    )
    declared = {(entry.flow().name, entry.name) for entry in declaration.deployments}
    flows = {flow for flow, _ in declared}
    names = {number: client.read_flow(number).name for number in {d.flow_id for d in deployments}}
    stale = [
        one
        for one in deployments
        if one.work_pool_name is not None
        and names[one.flow_id] in flows
        and (names[one.flow_id], one.name) not in declared
    ]
    ours = made | {one.id for one in stale}
    for automation in automations:
        targets = _targets(automation)
        if automation.id in kept or not automation.name.startswith(PREFIX) or targets is None:
            continue
        if all(number in ours or not _exists(client, number) for number in targets):
            if not dry_run:
                client.delete_automation(automation.id)
            yield ServerObject("automation", automation.name, Action.DELETED, str(automation.id))
    for one in stale:
        if not dry_run:
            client.delete_deployment(one.id)
        name = f"{names[one.flow_id]}/{one.name}"
        yield ServerObject("deployment", name, Action.DELETED, str(one.id))


def _exists(client: SyncPrefectClient, deployment_id: UUID) -> bool:
    try:
        client.read_deployment(deployment_id)
    except ObjectNotFound:
        return False
    return True
