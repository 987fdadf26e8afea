"""`tsgb plan` and `tsgb doctor` against the simulated service, in this process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.command_line import Ended, Run
from tests.fakes.dav_server import (
    MACHINES_PASSWORD,
    MACHINES_USER,
    PASSWORD,
    USER,
    dav_app,
    serve,
)
from tests.fakes.operator_scene import COMMANDS, HOUR, held, one_line
from tests.fakes.sentinels import sentinel
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.cloud.budget import Ledger
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.termination import TerminationReason

pytestmark = pytest.mark.integration


# -- plan ----------------------------------------------------------------------------------


def test_a_plan_costs_one_search_and_two_looks_at_the_account(
    run: Callable[[str], Ended], vast: Driver
) -> None:
    ended = run("plan --hours 8")
    assert (ended.code, ended.err) == (0, "")
    for text in ("8.00 useful hours, as given", "bid $", "prior alone", "Young", "p90", "100% of"):
        assert text in ended.out
    seen = [(one["method"], one["path"]) for one in vast.sim("requests")["requests"]]
    assert seen == [
        ("POST", "/api/v0/bundles/"),
        ("GET", "/api/v0/users/current"),
        ("GET", "/api/v0/secrets/"),
    ]
    document = json.loads(run("plan --hours 8 --json").out)
    assert document["offers_seen"] > document["offers_fitting"] > 0
    removed = document["offers_removed"]
    assert removed["over the cap"] <= document["offers_seen"] - document["offers_fitting"]
    assert document["offers_cut"] is False
    assert document["preemption_gb"] == pytest.approx(3.0 + 0.131), "the image, and its packages"
    assert document["hours"]["p10"] <= document["hours"]["p50"] <= document["hours"]["p90"]
    assert document["best"]["min_bid"] <= document["best"]["bid"] <= document["max_price"]


def test_a_plan_says_what_its_evaluation_can_show(run: Callable[[str], Ended]) -> None:
    plain = run("plan --set evaluation.prompts=553")
    assert "553 adaptive attempts an arm and target tell 50% from" in plain.out
    more = json.loads(run("plan --profile paper --set evaluation.prompts=553 --json").out)
    assert more["adaptive_attempts"] == 5 * 553
    assert (more["seeds"], more["machines_at_once"]) == (5, 1)
    faster = json.loads(run("plan --profile paper --machines 3 --json").out)
    assert faster["dollars"] == more["dollars"]
    assert faster["hours"]["p50"] < 0.5 * more["hours"]["p50"]
    assert faster["within_budget"] == more["within_budget"]
    ended = run("plan --seeds 3 --machines 2 --hours 1")
    assert "1.00 useful hours for each of 3 seeds, as given" in ended.out
    assert "all 3 seeds, 2 machines at once" in ended.out
    assert "of the budget of all seeds" in ended.out
    one_line(run("plan --run-id r1 --seeds 2"), 2, "leave --seeds away, and plan .* as r1-s0")
    canary = json.loads(run("plan --env canary --set evaluation.prompts=240 --json").out)
    assert (canary["adaptive_attempts"], canary["design_effect"]) == (240, 1.05)
    one_line(run("plan --env nowhere"), 2, "unknown environment 'nowhere'")


def test_a_plan_counts_the_machines_of_arms_that_have_their_own(
    run: Callable[[str], Ended], runs: DeploymentRuns
) -> None:
    """As many runs as `manager run` would train: an arm of each seed, where there are more machines
    than seeds."""
    from tsgb.config import Arm, arm_run_id, make_config

    ended = run("plan --seeds 2 --machines 3 --hours 1")
    assert "1.00 useful hours for the longest of 3 arms of each of 2 seeds, as given" in ended.out
    assert "all 3 arms of all 2 seeds, 3 machines at once" in ended.out
    apart = json.loads(run("plan --seeds 2 --machines 3 --hours 1 --state-gb 3 --json").out)
    whole = json.loads(run("plan --seeds 2 --machines 2 --hours 1 --state-gb 3 --json").out)
    assert (apart["arms_apart"], whole["arms_apart"]) == (3, 1)
    assert (apart["machines_at_once"], whole["machines_at_once"]) == (3, 2)
    assert (apart["machines"]["p10"], whole["machines"]["p10"]) == (6, 2)
    assert (apart["save_gb"], whole["save_gb"]) == (1.0, 3.0)
    assert whole["dollars"]["p50"] < apart["dollars"]["p50"] < 4 * whole["dollars"]["p50"]

    for arm, left in ((Arm.SELFPLAY, 20), (Arm.SFT, 10)):
        documents = runs.documents(arm_run_id("r1", arm))
        phases = {"rounds": 1, "attacker_steps": left // 2, "guard_steps": left // 2}
        config = make_config({**CONFIG, "guard": {"sft_steps": 0}, "selfplay": phases})
        documents.run.write_text("config.json", config.canonical())
        line = {"tokens": 100, "phase": "guard", "tokens_per_second": 10}
        documents.run.write_text("metrics.jsonl", json.dumps(line))
        held(documents, 1, TerminationReason.DONE, 1.0)
    spent = Ledger.open(runs.documents("r1").run, 0).held
    ended = run("plan --run-id r1 --machines 2 --json")
    found = json.loads(ended.out)
    assert (found["arms_apart"], found["machines_at_once"]) == (2, 2)
    assert found["budget_left"] == pytest.approx(5 - 2 * spent / 1e6), "both homes have spent"


def test_a_plan_learns_from_the_machines_of_the_store(
    run: Callable[[str], Ended], runs: DeploymentRuns
) -> None:
    before = json.loads(run("plan --json").out)
    for attempt in range(1, 9):
        held(runs.documents("r1"), attempt, TerminationReason.PREEMPTED, 0.2)
    after = json.loads(run("plan --json").out)
    assert after["hazard_per_hour"]["mean"] > 2 * before["hazard_per_hour"]["mean"]
    assert "8 in 1.6 h of all 8 machines of 1 run" in after["hazard_per_hour"]["source"]
    assert (after["boot_seconds"], after["boot_source"]) == (100.0, "of 8 starts")
    assert after["dollars"]["p50"] > before["dollars"]["p50"]


def test_holds_are_told_as_what_they_were(
    run: Callable[[str], Ended], runs: DeploymentRuns
) -> None:
    documents = runs.documents("r1")
    held(documents, 1, TerminationReason.PREEMPTED, 0.0123)
    document = json.loads(run("plan --json").out)
    assert document["hazard_per_hour"]["source"] == (
        "1 preemption in 0.012 h of RTX 3090 x1 bid; 1 in 0.012 h of all 1 machine of 1 run"
    )
    assert document["boot_source"] == "of 1 start"
    held(documents, 2, TerminationReason.DONE, 123.4)
    source = json.loads(run("plan --json").out)["hazard_per_hour"]["source"]
    assert source.endswith("1 in 120 h of all 2 machines of 1 run")


def test_traffic_is_paid_for_and_said(run: Callable[[str], Ended]) -> None:
    ended = run("plan --hours 2")
    assert "without traffic: give --state-gb or --run-id" in ended.out
    without = json.loads(run("plan --hours 2 --json").out)
    assert (without["save_gb"], without["traffic_source"]) == (0.0, None)
    document = json.loads(run("plan --hours 2 --state-gb 0.7 --json").out)
    assert (document["save_gb"], document["restore_gb"]) == (0.7, 0.7)
    assert document["dollars"]["p50"] > without["dollars"]["p50"]
    assert re.search(
        r"traffic  0.7 GB up for each save at \$0\.\d{4}/GB, 0.7 GB down for each start at "
        r"\$0\.\d{4}/GB, as given",
        run("plan --hours 2 --state-gb 0.7").out,
    )
    one_line(run("plan --state-gb=-1"), 2, "state-gb")


CONFIG: dict[str, Any] = {
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 2, "attacker_steps": 20, "guard_steps": 20},
}


def test_a_plan_of_a_run_goes_by_its_own_updates(
    run: Callable[[str], Ended], runs: DeploymentRuns
) -> None:
    from tsgb.config import make_config

    documents = runs.documents("r1")
    documents.run.write_text("config.json", make_config(CONFIG).canonical())
    one_line(run("plan --run-id r1"), 2, "no update that was measured yet: give --hours")
    line = {"tokens": 100, "phase": "sft_guard", "tokens_per_second": 10}
    guard = {**line, "phase": "guard", "tokens_per_second": 5}
    text = "\n".join(map(json.dumps, [line, guard, {"phase": "sft_attacker", "step": 1}]))
    documents.run.write_text("metrics.jsonl", text + "\n{")
    document = json.loads(run("plan --run-id r1 --json").out)
    # 10 of 10 s, 40 of 20 s, and 50 of kinds that were not measured, 15 s each
    assert document["useful_hours"] == pytest.approx((100 + 800 + 750) / HOUR)
    assert document["useful_hours_source"].startswith("100 of 100 updates of run r1")

    config = make_config(CONFIG, {"checkpoint_interval": 7})
    documents.run.write_text("config.json", config.canonical())
    fixed = json.loads(run("plan --run-id r1 --json").out)
    assert fixed["checkpoint_interval_seconds"] == pytest.approx(7 * 16.5)
    out = run("plan --run-id r1").out
    assert "every 116 s (7 updates, fixed by the run's configuration)" in out

    held(documents, 1, TerminationReason.PREEMPTED, 1.0)
    spent = Ledger.open(documents.run, 0).held
    document = json.loads(run("plan --run-id r1 --json").out)
    assert document["budget_left"] == pytest.approx(5 - spent / 1e6)
    one_line(run("plan --run-id r1 --budget 0.01"), 8, r"run r1 has cost \$0.1333: raise --budget")
    one_line(run("plan --run-id r9"), 2, "'r9' is not in .*: give --hours")
    one_line(run("plan --run-id r1 --hours 2"), 2, "give one of them")


def test_no_offer_and_no_budget(run: Callable[[str], Ended], vast: Driver) -> None:
    ended = run("plan --max-price 0.01")
    one_line(ended, 9, r"no offer under the cap of \$0.010/h: nearest is offer")
    assert "53 offers of one GPU, 0 fit; removed by over the cap $0.010/h: 53" in ended.out
    one_line(run("plan --budget 0"), 8, r"a budget of \$0.0000 rents nothing: raise --budget")
    one_line(run("plan --budget=-1"), 2, "budget")
    vast.sim("options", {"searches_per_day": 1})
    run("plan")
    one_line(run("plan"), 1, "the search for offers: search_quota_exceeded")


# -- doctor --------------------------------------------------------------------------------


def checks(ended: Ended) -> dict[str, Any]:
    return {check["name"]: check for check in json.loads(ended.out)["checks"]}


def test_a_healthy_place(run: Callable[[str], Ended], runs: DeploymentRuns) -> None:
    ended = run("doctor")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert len(lines) == 12
    assert re.search(
        r"search +of 53 offers of one GPU, \d+ fit; removed by over the cap", ended.out
    )
    assert all(line.startswith("    ok  ") for line in lines)
    assert runs.ids() == ["other"]
    assert [path.name for path in Path(runs.url).iterdir()] == ["other"]
    assert json.loads(run("doctor --json").out)["ok"] is True


def test_a_revoked_key(run: Callable[[str], Ended], vast: Driver) -> None:
    preset = {"path": "/api/", "act": "answer", "preset": "auth_error", "times": None}
    vast.sim("faults", preset)
    ended = run("doctor --json")
    assert ended.code == 1
    found = checks(ended)
    assert found["key"]["ok"] is False
    assert "auth_error" in found["key"]["found"]
    assert "search" not in found, "what a key is not good for says nothing new"
    assert found["store"]["ok"]
    for command in COMMANDS:
        one_line(run(command), 2, "auth_error .*; set VAST_API_KEY to a key with the permissions")


@pytest.mark.parametrize(
    ("scopes", "bad"),
    [
        ("user_read misc instance_read", []),
        ("misc instance_read", ["key"]),
        ("user_read instance_read", ["search"]),
        ("user_read misc", ["list"]),
    ],
)
def test_a_missing_scope(
    run: Callable[[str], Ended],
    vast: Driver,
    monkeypatch: pytest.MonkeyPatch,
    scopes: str,
    bad: list[str],
) -> None:
    permissions = {"api": {scope: {} for scope in scopes.split()}}
    body = {"name": "limited", "permissions": permissions}
    monkeypatch.setenv(
        "VAST_API_KEY", vast.http.post("/api/v0/auth/apikeys/", json=body).json()["key"]
    )
    ended = run("doctor --json")
    assert [name for name, check in checks(ended).items() if check["ok"] is False] == bad
    assert ended.code == bool(bad)
    if bad == ["search"]:
        one_line(run("plan"), 2, "forbidden .*lacks the permission misc.*set VAST_API_KEY")
    if bad == ["list"]:
        one_line(run("reap"), 2, "lacks the permission instance_read.*set VAST_API_KEY")


def test_what_an_account_does_unasked(
    tsgb: Run, runs: DeploymentRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sentinel("hub")
    options = Options(account_env={"HF_TOKEN": token, "A\x1b": "1"}, autobill=Decimal(5))
    with VastSimulator(options, age_seconds=HOUR) as simulator:
        monkeypatch.setenv("VAST_API_KEY", simulator.key)
        address = ("--vast-url", simulator.url, "--store", runs.url)
        told = checks(tsgb("doctor", "--json", *address))["account"]["found"]
        plan = tsgb("plan", *address).out
        with Driver(simulator) as account:
            account.sim("credit", {"deposit": -25})
            assert Decimal(account.sim("ledger")["credit"]) == 5
    for text in (told, plan):
        assert "the account's own variables (A?, HF_TOKEN): delete" in text
        assert "auto-billing is on" in text
        assert token not in text


def test_an_account_that_does_nothing_unasked(run: Callable[[str], Ended]) -> None:
    told = checks(run("doctor --json"))["account"]["found"]
    assert told == "it has no variables that every machine gets; auto-billing is off"


def test_too_little_credit(run: Callable[[str], Ended], vast: Driver) -> None:
    vast.sim("credit", {"deposit": -23})
    found = checks(run("doctor --json"))["credit"]
    assert (found["ok"], found["way_out"]) == (False, "add credit, or set TSGB_BUDGET to less")
    assert found["found"] == "$2.00; the budget of a run is $5.00"
    vast.sim("credit", {"deposit": -2})
    assert run("doctor").code == 1


def test_a_budget_of_zero(
    run: Callable[[str], Ended], vast: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSGB_BUDGET", "0")
    ended = run("doctor")
    assert ended.code == 1
    assert "NOT OK  budget   $0.00 for a run" in ended.out
    one_line(run("plan"), 8, "rents nothing")


@pytest.mark.parametrize(
    ("minutes", "ok", "words"),
    [
        (0, True, r"as that of|\d+ s ahead of .*, within"),  # as long as the command takes to ask
        (-5, True, "300 s ahead of .*, within TSGB_SKEW_SECONDS"),
        (11, False, "660 s behind .*; TSGB_SKEW_SECONDS allows 600 s: set this machine's clock"),
        (-10.1, False, "606 s ahead of"),
    ],
)
def test_clocks(
    run: Callable[[str], Ended], vast: Driver, minutes: float, ok: bool, words: str
) -> None:
    """The service's `Date`, that is minutes ahead."""
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    fault = {"path": "^/$", "act": "answer", "status": 200, "headers": {"Date": date}}
    vast.sim("faults", fault)
    ended = run("doctor")
    assert ended.code == (not ok)
    [line] = [line for line in ended.out.splitlines() if " clock " in line]
    numbers = [int(number) for number in re.findall(r"(\d+) s (?:ahead|behind)", line)]
    pattern = re.sub(r"^\d+ s", r"\\d+ s", words)
    assert re.search(pattern, line), line
    assert all(abs(number - abs(minutes) * 60) <= 30 for number in numbers)


def test_a_search_quota(run: Callable[[str], Ended], vast: Driver) -> None:
    vast.sim("options", {"searches_per_day": 0})
    found = checks(run("doctor --json"))
    assert found["search"]["ok"] is False
    assert found["list"]["ok"]


def test_a_store_that_cannot_be_written(
    tsgb: Run, vast: Driver, run: Callable[[str], Ended]
) -> None:
    del run  # sets the key
    words = ("doctor", "--json", "--vast-url", vast.vast.url, "--store")
    ended = tsgb(*words, "/proc/nowhere")
    assert ended.code == 1
    assert "choose another store" in checks(ended)["store"]["found"]
    one_line(tsgb(*words, "https://me:hunter2@dav.example/x"), 2, "holds a password")


def test_a_prefect_server_that_is_away(
    run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        ended = run("doctor")
    assert ended.code == 1
    assert "NOT OK  prefect  http://127.0.0.1:9/api does not answer" in ended.out


def test_a_wrong_image_and_a_key_that_is_none(
    run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSGB_IMAGE", "My Image")
    monkeypatch.setenv("VAST_API_KEY", "with space")
    found = checks(run("doctor --json"))
    assert [name for name, check in found.items() if check["ok"] is False] == ["key", "image"]
    monkeypatch.setenv("TSGB_IMAGE", "ghcr.io/me/worker:1.2@sha256:" + "a" * 64)
    assert checks(run("doctor --json"))["image"]["ok"]


def test_settings_of_prefect_that_cannot_be_read(tmp_path: Path) -> None:
    """In a process of its own, since Prefect reads them when it is imported."""
    (tmp_path / "prefect.toml").write_text("x = = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "tsgb.cli", "doctor", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["prefect"]
    assert "its settings cannot be read: Failed to load Prefect settings" in found["found"]


def test_it_says_what_machines_can_do_with_what_they_get(
    run: Callable[[str], Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dav" / "runs").mkdir(parents=True)
    (tmp_path / "machines").mkdir()
    with serve(dav_app(tmp_path / "dav", machines=tmp_path / "machines")) as url:
        monkeypatch.setenv("RCLONE_WEBDAV_USER", USER)
        monkeypatch.setenv("RCLONE_WEBDAV_PASS", PASSWORD)
        doctor = f"doctor --json --store {url}/runs"
        found = checks(run(doctor))["machines"]
        assert (found["ok"], "exchange" in checks(run(doctor))) == (False, False)
        assert found["found"].startswith("machines get the whole store's password, and checkpoints")
        assert "TSGB_EXCHANGE_URL" in found["way_out"]
        monkeypatch.setenv("TSGB_MANIFEST_KEY", sentinel("manifest"))
        assert checks(run(doctor))["machines"]["ok"]
        monkeypatch.setenv("TSGB_EXCHANGE_URL", f"{url}/machines")
        monkeypatch.setenv("TSGB_EXCHANGE_USER", MACHINES_USER)
        assert "HTTP 401" in checks(run(doctor))["exchange"]["found"]
        monkeypatch.setenv("TSGB_EXCHANGE_PASS", MACHINES_PASSWORD)
        found = checks(run(doctor))
        assert found["exchange"]["ok"]
        assert found["machines"]["found"].startswith(f"machines see {url}/machines, those of other")
