"""Templates of work pools in `deployments/`, read by the Prefect workers that use them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from tsgb.setting_groups import IMAGE

ROOT = Path(__file__).parents[3]
KINDS = {"docker": DockerWorkerJobConfiguration, "kubernetes": KubernetesWorkerJobConfiguration}
IMAGE_TEXT = (ROOT / "infra" / "control.Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
DATA = "/var/lib/tsgb"


def template(kind: str) -> dict[str, Any]:
    return json.loads((ROOT / "deployments" / f"{kind}-pool.json").read_text())


def job(kind: str, **variables: Any) -> BaseJobConfiguration:
    """What a worker starts for a flow run of stage 1."""
    declared = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
    own = declared["deployments"][0]["work_pool"]["job_variables"]
    unused = PrefectClient(api="http://127.0.0.1:9/api")  # it would resolve references to blocks
    values = {**own, **variables}
    made = asyncio.run(KINDS[kind].from_template_and_values(template(kind), values, client=unused))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), name="stage1-first", flow_id=uuid4()))
    return made


def test_a_container_of_docker() -> None:
    made = job("docker", mem_limit="8g", env={"A": "b"})
    assert isinstance(made, DockerWorkerJobConfiguration)
    assert made.image == "tsgb-control"
    assert made.mem_limit == "8g"
    assert made.env["A"] == "b"
    assert made.volumes == [f"tsgb_flows:{DATA}"]
    assert job("docker").env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"


def test_a_job_of_kubernetes() -> None:
    made = job("kubernetes", memory_limit="16Gi")
    assert isinstance(made, KubernetesWorkerJobConfiguration)
    pod = made.job_manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == "tsgb-control"
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"]["limits"] == {"memory": "16Gi"}
    names = {one["name"]: one.get("value") for one in container["env"]}
    assert names["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    [volume], [mount] = pod["volumes"], container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": DATA}
    assert made.job_manifest["spec"]["backoffLimit"] == 0, "the reaper starts it again"


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_is_described_and_none_is_missing(kind: str) -> None:
    read = template(kind)
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(read["job_configuration"])))
    declared = read["variables"]["properties"]
    assert used == set(declared)
    assert all(value["description"].endswith(".") for value in declared.values())


def test_pools_compose_and_image_agree() -> None:
    default = template("docker")["variables"]["properties"]
    service = COMPOSE["services"]["worker"]
    assert service["image"] == f"${{TSGB_CONTROL_IMAGE:-{default['image']['default']}}}"
    assert service["volumes"] == [f"flows:{DATA}"]
    assert default["volumes"]["default"] == [f"{COMPOSE['name']}_flows:{DATA}"]
    assert f"VOLUME {DATA}\n" in IMAGE_TEXT
    assert f"ARG BASE={IMAGE}\n" in IMAGE_TEXT


def test_the_image_copies_what_it_installs_and_no_secret() -> None:
    copied = [line.split()[1:-1] for line in IMAGE_TEXT.splitlines() if line.startswith("COPY ")]
    names = {name for line in copied for name in line}
    assert all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == names
    assert "*" in ignored
    wheel = (ROOT / "pyproject.toml").read_text()
    included = re.findall(r'^"(infra|deployments)/[^"]+" = ', wheel, flags=re.MULTILINE)
    assert set(included) <= names
