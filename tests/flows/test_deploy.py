"""`tsgb deploy` on a real server: the same objects as `prefect deploy`, changed only if need be."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from flows.deploy import Action, ServerObject, deploy, read_declaration
from tsgb.cli.deploy import deploy as command
from tsgb.errors import ConfigError, UsageError

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]

ROOT = Path(__file__).parents[2]
NAMES = ["tsgb/stage1", "tsgb/stage2", "tsgb-reaper/reaper"]
DEPLOY = "deploy --prefect-file deployments/prefect.yaml --all"
TRIGGER = "tsgb-stage2-on-checkpoint"
KEYS = {"id", "created", "updated", "flow_id", "deployment_id", "work_queue_id", "anchor_date"}
"""Fields of one object, however it was made."""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """A server without any of the objects; none stays for other tests."""
    with get_client(sync_client=True) as client:
        yield client
        clear(client)
        client.delete_work_pool("tsgb-local")


def clear(client: SyncPrefectClient) -> None:
    for automation in client.read_automations():
        client.delete_automation(automation.id)
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)


def deployed(client: SyncPrefectClient, **options: Any) -> list[ServerObject]:
    return list(deploy(client, read_declaration(Path.cwd()), **options))


def actions(objects: list[ServerObject]) -> set[Action]:
    return {one.action for one in objects}


def snapshot(client: SyncPrefectClient) -> list[dict[str, Any]]:
    """All that the server says of them, timestamps too."""
    objects = [*client.read_deployments(), *client.read_automations(), *client.read_work_pools()]
    dumps = [one.model_dump(mode="json", exclude={"last_polled", "status"}) for one in objects]
    return sorted(dumps, key=lambda one: str(one["name"]))


def said(value: Any) -> Any:
    """What objects say, without what is new with every making."""
    if isinstance(value, list):
        return [said(item) for item in value]
    if isinstance(value, dict):
        return {name: said(item) for name, item in value.items() if name not in KEYS}
    return value


def test_it_makes_what_prefect_deploy_makes(client: SyncPrefectClient) -> None:
    made = deployed(client)
    assert actions(made) == {Action.CREATED}
    assert [one.name for one in made] == ["tsgb-local", *NAMES[:2], TRIGGER, NAMES[2]]
    ours = snapshot(client)
    stage1 = client.read_deployment_by_name("tsgb/stage1").id
    with pytest.raises(PrefectHTTPStatusError, match="-1 is less than the minimum of 0"):
        client.create_flow_run_from_deployment(stage1, parameters={"seed": -1})
    assert actions(deployed(client)) == {Action.UNCHANGED}
    assert snapshot(client) == ours, "a second call writes nothing"

    clear(client)
    url = str(get_current_settings().api.url)
    # From a clone that has a remote, `prefect deploy` has each worker clone that remote instead.
    without_remote = {**os.environ, "PREFECT_API_URL": url, "GIT_DIR": os.devnull}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *shlex.split(DEPLOY)],
        env=without_remote,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = snapshot(client)
    assert [said(one) for one in ours] == [said(one) for one in theirs]
    assert actions(deployed(client)) == {Action.UNCHANGED}
    assert snapshot(client) == theirs


def test_what_differs_is_updated_under_its_id(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {one.name: one.object_id for one in deployed(client)}
    [automation] = client.read_automations()
    client.pause_automation(automation.id)
    stage2 = client.read_deployment_by_name("tsgb/stage2")
    client.create_deployment(
        flow_id=stage2.flow_id,
        name="stage2",
        concurrency_limit=1,
        work_pool_name="tsgb-local",
        parameter_openapi_schema={},
    )
    there = snapshot(client)
    parts = ["version", "description", "tags", "entrypoint", "job_variables"]
    parts += ["parameter_openapi_schema", "concurrency_limit"]
    command(None, dry_run=True)
    assert capsys.readouterr().out.splitlines() == [
        "unchanged           work pool tsgb-local",
        "unchanged           deployment tsgb/stage1",
        f"would be updated    deployment tsgb/stage2 ({', '.join(parts)})",
        "would be updated    automation tsgb-stage2-on-checkpoint (enabled)",
        "unchanged           deployment tsgb-reaper/reaper",
    ]
    assert snapshot(client) == there
    command(None, as_json=True)
    rows = json.loads(capsys.readouterr().out)["objects"]
    assert {row["name"]: row["id"] for row in rows} == before
    assert [row["name"] for row in rows if row["action"] == "updated"] == ["tsgb/stage2", TRIGGER]
    [automation] = client.read_automations()
    assert automation.enabled
    assert actions(deployed(client)) == {Action.UNCHANGED}
    client.delete_resource_owned_automations(f"prefect.deployment.{before['tsgb/stage2']}")
    assert client.read_automations() == [], "`prefect deploy` still finds it"


def test_it_deletes_what_an_earlier_version_left_and_nothing_else(
    client: SyncPrefectClient,
) -> None:
    deployed(client)
    [automation] = client.read_automations()
    stage1 = client.read_deployment_by_name("tsgb/stage1")
    for name, tag, pool in [
        ("gone", "tsgb", "tsgb-local"),
        ("manager-r1", "tsgb", None),  # served by `tsgb manager loop`
        ("nightly", "mine", "tsgb-local"),
    ]:
        client.create_deployment(
            flow_id=stage1.flow_id,
            name=name,
            tags=[tag],
            work_pool_name=pool,
            parameter_openapi_schema={},
        )
    orphan = AutomationCore.model_validate(automation.model_dump())
    orphan.actions[0].deployment_id = uuid4()  # type: ignore[union-attr]
    stale = client.create_automation(orphan)
    twin = client.create_automation(AutomationCore.model_validate(automation.model_dump()))
    kept = client.create_automation(orphan.model_copy(update={"name": "mine"}))

    found = [one for one in deployed(client) if one.action is not Action.UNCHANGED]
    assert {(one.action, one.name) for one in found} == {
        (Action.DELETED, TRIGGER),
        (Action.DELETED, "tsgb/gone"),
    }
    left = {one.id for one in client.read_automations()}
    assert stale not in left
    assert kept in left
    assert len(left & {automation.id, twin}) == 1, "an event starts stage 2 once"
    names = {one.name for one in client.read_deployments()}
    assert names == {"stage1", "stage2", "reaper", "manager-r1", "nightly"}


@pytest.mark.parametrize("name", ["", " ", "a/b", "Prefect-pool"])
def test_no_name_of_a_pool(name: str) -> None:
    with pytest.raises(UsageError, match=f"--pool '{name}' is no name of a work pool"):
        read_declaration(ROOT, name)


def test_another_pool(client: SyncPrefectClient) -> None:
    deployed(client)
    command(pool="elsewhere")
    assert client.read_work_pool("elsewhere").type == "process"
    assert {one.work_pool_name for one in client.read_deployments()} == {"elsewhere"}
    client.delete_work_pool("elsewhere")


def test_an_installed_package_deploys_modules(tmp_path: Path) -> None:
    """As in a wheel, which has the file beside the flows and no checkout around it."""
    [wheel] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ].values()
    assert wheel["force-include"]["deployments/prefect.yaml"] == "flows/prefect.yaml"
    shutil.copy(ROOT / "deployments" / "prefect.yaml", tmp_path)
    found = read_declaration(Path("/work"), package=tmp_path)
    assert (found.directory, found.from_files) == (Path("/work"), False)
    modules = [one.module_path for one in found.deployments]
    assert modules == ["flows.stage1.stage1", "flows.stage2.stage2", "flows.reaper.reaper"]
    assert read_declaration(Path("/work")).directory == ROOT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "prefect.yaml is not installed with tsgb: run this in its repository"),
        ("deployments: [{name: a, retries: 1}]", "cannot be deployed: .*retries"),
        ("[", "cannot be deployed: "),
    ],
)
def test_a_declaration_that_cannot_be_deployed(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        read_declaration(tmp_path, package=tmp_path)
