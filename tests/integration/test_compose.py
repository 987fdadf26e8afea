"""`infra/compose.yaml`: by the schema of its specification, and its commands run by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from tests.fakes.compose import COMPOSE, ROOT, ByHand, filled, missing_programs
from tests.fakes.control_plane import wait_for
from tests.fakes.sentinels import sentinel

pytestmark = pytest.mark.integration
TEXT = COMPOSE.read_text()
SERVICES = yaml.safe_load(TEXT)["services"]


def test_it_is_what_the_specification_says() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(yaml.safe_load(TEXT), schema)
    wrong = yaml.safe_load(TEXT)
    wrong["services"]["server"]["port"] = ["4200"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_one_file_holds_all_secrets_and_this_one_none() -> None:
    named = set(re.findall(r"\$\{(\w+)", TEXT)) - {"TSGB_CONTROL_IMAGE", "TSGB_GUARD_DIR"}
    example = re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    assert named - {"POSTGRES_PASSWORD"} <= set(example)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASS|KEY|TOKEN", name) or value == "" or value.startswith("${")
    with pytest.raises(ValueError, match=r"set POSTGRES_PASSWORD in \.env"):
        filled(SERVICES["database"]["environment"]["POSTGRES_PASSWORD"], {})


def test_nothing_is_published_beyond_this_host() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:4200:4200", "127.0.0.1:8100:8100"]
    assert list(SERVICES["guard"]["environment"]) == ["TSGB_SERVE_TOKEN"], "and no key"


def test_who_stays_has_a_health_check_and_comes_back() -> None:
    once = {name for name, service in SERVICES.items() if "healthcheck" not in service}
    assert once == {"deploy"}
    assert {SERVICES[name]["restart"] for name in SERVICES if name not in once} == {
        "unless-stopped"
    }
    order = list(ByHand(Path("/nowhere")).in_order())
    assert order.index("database") < order.index("server") < order.index("deploy")
    assert {*order[order.index("deploy") + 1 :]} == {"worker", "reaper"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}")
def test_its_commands_by_hand(tmp_path: Path) -> None:
    """A smoke run on PostgreSQL and rclone: exactly one stage 2, and a look of the reaper."""
    (tmp_path / ".env").write_text(
        f"POSTGRES_PASSWORD={sentinel('database')}\n"
        f"RCLONE_WEBDAV_USER=lab\nRCLONE_WEBDAV_PASS={sentinel('webdav')}\n"
    )
    with ByHand(tmp_path) as services:
        url = f"http://127.0.0.1:{services.ports['server']}/api"
        words = ["prefect", "deployment", "run", "tsgb/stage1", "-p", "profile=smoke", "--watch"]
        done = services.command("worker", [*words, "-p", "run=boxed"])
        assert done.returncode == 0, done.stdout + done.stderr

        def runs(prefix: str) -> list[dict[str, object]]:
            answer = httpx.post(f"{url}/flow_runs/filter", json={}, timeout=30)
            return [run for run in answer.json() if str(run["name"]).startswith(prefix)]

        finals = {"COMPLETED", "CRASHED", "FAILED", "CANCELLED"}
        wait_for(
            "stage 2", lambda: any(run["state_type"] in finals for run in runs("stage2-")), 400
        )
        assert [run["state_type"] for run in runs("stage2-")] == ["COMPLETED"]
        assert [run["work_queue_name"] for run in runs("stage1-")] == ["default"]

        done = services.command("reaper", ["prefect", "deployment", "run", "tsgb-reaper/reaper"])
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for("the reaper", lambda: any(r["state_type"] in finals for r in runs("reaper")), 200)
        looked = [run for run in runs("reaper") if run["state_type"] in finals]
        assert {run["state_type"] for run in looked} == {"COMPLETED"}
        assert {run["work_queue_name"] for run in looked} == {"reaper"}

        again = services.command("worker", ["tsgb", "deploy", "--json"])
        assert {one["action"] for one in json.loads(again.stdout)["objects"]} == {"unchanged"}
        reports = list((tmp_path / "store").glob("boxed/reports/*/report.html"))
        assert len(reports) == 1
        for log in tmp_path.glob("*.log"):
            assert sentinel("database") not in log.read_text()
            assert sentinel("webdav") not in log.read_text()
