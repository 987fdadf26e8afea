"""The operator's commands against the simulated service, in this process.

Each way in which the account does not work has one line and an exit code; the key is in no output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.command_line import Ended, Run
from tests.fakes.operator_scene import COMMANDS, HOUR, NOW, lease, live, one_line
from tests.fakes.vast.driver import Driver
from tsgb.cloud.budget import Ledger
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.lease import SKEW, TTL, end, grant
from tsgb.cloud.pricing import Rates, microdollars

pytestmark = pytest.mark.integration


# -- machines ls ---------------------------------------------------------------------------


def test_all_instances_are_listed_with_what_covers_them(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    leased = vast.rent(label="tsgb/home/r1/2")
    orphan = vast.rent(label="tsgb/home/r2/1")
    foreign = vast.rent(label="mytool/1")
    vast.advance(HOUR)
    lease(runs.documents("r1"), 2, datetime.now(UTC))
    runs.documents("r2").run.write_text("lease.json", "{")
    ended = run("machines ls --json")
    assert (ended.code, ended.err) == (0, "")
    rows = {row["id"]: row for row in json.loads(ended.out)["instances"]}
    assert {number: row["standing"] for number, row in rows.items()} == {
        leased: "covered",
        orphan: "unknown",
        foreign: "foreign",
    }
    row = rows[leased]
    assert (row["run"], row["attempt"], row["state"]) == ("r1", 2, "running")
    assert row["dollars_per_hour"] == pytest.approx(vast.show(leased)["dph_total"])
    assert HOUR - 5 <= row["age_seconds"] <= HOUR + 600
    assert row["why"].startswith("leased until")
    assert "not a JSON object" in rows[orphan]["why"]

    table = run("machines ls").out
    for text in ("tsgb/home/r1/2", "mytool/1", "1:00 h", "of another tool"):
        assert text in table
    assert table.splitlines()[-1].startswith("2 of ours at $")


def test_a_lease_that_has_run_out_is_not_called_one(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    number = vast.rent(label="tsgb/home/r1/2")
    other = vast.rent(label="tsgb/home/r2/1")
    vast.advance(HOUR)
    young = vast.rent(label="tsgb/home/r1/1")
    documents = runs.documents("r1")
    now = datetime.now(UTC)
    lease(documents, 2, now - TTL - timedelta(seconds=9))
    lease(runs.documents("r2"), 1, now - timedelta(minutes=1))
    ended = now - timedelta(seconds=9)
    rows = {row["id"]: row for row in json.loads(run("machines ls --json").out)["instances"]}
    assert {row["standing"] for row in rows.values()} == {"covered"}
    assert rows[number]["why"] == (
        f"its lease ran out at {ended:%H:%M:%S} UTC; tolerated until {ended + SKEW:%H:%M:%S}, "
        "since clocks may differ"
    )
    assert rows[other]["why"].startswith("leased until")
    assert rows[young]["why"] == "the lease is that of attempt 2, but it is too young to tell"
    document = json.loads(run("reap --json").out)
    assert [row["why"] for row in document["instances"]] == [rows[n]["why"] for n in sorted(rows)]
    assert (document["destroyed"], live(vast)) == (0, {number, other, young})


def test_words_of_others_are_shown_and_not_obeyed(
    run: Callable[[str], Ended], vast: Driver
) -> None:
    vast.rent(label="[/red]\x1b[2J[bold]x")
    ended = run("machines ls")
    assert ended.code == 0
    assert "[/red]?[2J[bold]x" in ended.out


def test_no_instance_is_no_table(run: Callable[[str], Ended]) -> None:
    assert run("machines ls").out == "0 of ours at $0.000/h, 0 of others\n"


# -- machines destroy ----------------------------------------------------------------------


def test_a_leased_machine_needs_force_and_is_asked_to_save(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    number = vast.rent(label="tsgb/home/r1/1")
    vast.advance(HOUR)
    documents = runs.documents("r1")
    lease(documents, 1, datetime.now(UTC))
    documents.run.write_json("machines/0001/beat.json", {"updated_at": NOW.isoformat()})
    one_line(run(f"machines destroy {number}"), 2, f"{number} .* in use, leased until .* --force")
    assert live(vast) == {number}

    ended = run(f"machines destroy {number} --force")
    assert ended.code == 0
    assert f"asking instance {number} to save first" in ended.err
    revoked = documents.lease()
    assert revoked is not None
    assert revoked.stop == "destroyed by hand"
    assert live(vast) == set()
    said = re.search(r"it cost \$([\d.]+), by its price and age, without traffic\n", ended.out)
    assert said is not None
    assert float(vast.bill(number)["dollars"]) <= float(said[1]) + 1e-4
    assert documents.attempt(1) is None, "a live flow is the one writer"


def test_an_account_that_stays_open_is_said(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    """A machine of a flow that lives, and one whose run has lost its lease."""
    leased, lost = vast.rent(label="tsgb/home/r1/1"), vast.rent(label="tsgb/home/r2/1")
    vast.advance(HOUR)
    lease(runs.documents("r1"), 1, datetime.now(UTC))
    for name in ("r1", "r2"):
        Ledger.open(runs.documents(name).run, microdollars(5)).reserve(
            1, Rates(gpu_per_hour=200_000), datetime.now(UTC) - timedelta(hours=1)
        )
    open_still = "its account stays open until its flow, or the next one of its run, closes it"
    ended = run(f"machines destroy {leased} --force")
    assert ended.code == 0
    assert f"by its price and age, without traffic; {open_still}\n" in ended.out
    [row] = json.loads(run(f"machines destroy {lost} --json").out)["instances"]
    assert (row["gone"], row["problem"]) == (True, open_still)
    assert row["dollars_by"] == "its price and age, without traffic"
    for name in ("r1", "r2"):
        assert Ledger.open(runs.documents(name).run, 0).accounts[1].is_open


def test_an_orphan_is_destroyed_and_paid(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    number, other = vast.rent(label="tsgb/home/r1/1"), vast.rent(label="tsgb/home/r1/2")
    vast.advance(HOUR)
    documents = runs.documents("r1")
    documents.put_lease(end(grant(None, run="r1", attempt=1, owner="f", now=NOW), "done"))
    ledger = Ledger.open(documents.run, microdollars(5))
    began = datetime.now(UTC) - timedelta(hours=1)
    ledger.reserve(1, Rates(gpu_per_hour=200_000), began)
    ended = run(f"machines destroy {number} --json")
    assert ended.code == 0
    [row] = json.loads(ended.out)["instances"]
    assert (row["gone"], row["dollars_by"]) == (True, "its run's ledger")
    assert row["dollars"] == pytest.approx(0.2, abs=0.001)
    assert live(vast) == {other}
    page = documents.attempt(1)
    assert page is not None
    assert page.result is not None
    assert page.result.message == "its flow was dead: destroyed by hand"


@pytest.mark.parametrize("force", ["", " --force"])
@pytest.mark.parametrize("label", ["mytool/1", "tsgb/work/r1/1", None])
def test_what_is_not_ours_is_never_destroyed(
    run: Callable[[str], Ended], vast: Driver, label: str | None, force: str
) -> None:
    number = vast.rent(label=label)
    mine = vast.rent(label="tsgb/home/r1/1")
    vast.advance(HOUR)
    one_line(run(f"machines destroy {mine} {number}{force}"), 2, f"{number} is .*which is not ours")
    assert live(vast) == {number, mine}, "not even the one before it"


def test_wrong_ids(run: Callable[[str], Ended], vast: Driver) -> None:
    one_line(run("machines destroy 7"), 2, "there is no instance 7: `tsgb machines ls`")
    one_line(run("machines destroy seven"), 2, "integer")
    assert vast.sim("requests")["requests"][-1]["method"] == "GET"


def test_what_cannot_be_destroyed_is_exit_code_1(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    number = vast.rent(label="tsgb/home/r1/1")
    vast.advance(HOUR)
    fault = {"path": f"/v0/instances/{number}/", "act": "answer", "preset": "forbidden"}
    vast.sim("faults", {**fault, "method": "DELETE", "times": None})
    one_line(run(f"machines destroy {number}"), 1, "NOT destroyed: .*with the permissions")
    assert live(vast) == {number}


# -- reap ----------------------------------------------------------------------------------


def test_reap_ends_orphans_and_exits_1_if_something_is_left(
    run: Callable[[str], Ended], vast: Driver, runs: DeploymentRuns
) -> None:
    orphan, unknown = vast.rent(label="tsgb/home/r1/1"), vast.rent(label="tsgb/home/r2/1")
    vast.advance(HOUR)
    runs.documents("r2").run.write_text("lease.json", "{")
    ended = run("reap --dry-run")
    assert ended.code == 1
    assert f"would destroy instance {orphan}" in ended.out
    assert live(vast) == {orphan, unknown}

    ended = run("reap")
    one_line(ended, 1, f"something is left to look after: left alone, .* {unknown} ")
    assert f"destroyed instance {orphan}" in ended.out
    assert live(vast) == {unknown}

    runs.documents("r2").run.delete("lease.json")
    ended = run("reap --json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert (document["destroyed"], document["dry_run"]) == (1, False)
    assert live(vast) == set()


# -- without -------------------------------------------------------------------------------


def test_without_a_key(run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAST_API_KEY")
    for command in COMMANDS:
        one_line(run(command), 2, "VAST_API_KEY is not set: create a key")
    ended = run("doctor")
    assert ended.code == 1
    assert "NOT OK  key      VAST_API_KEY is not set" in ended.out
    assert "    ok  store" in ended.out


def test_an_address_that_would_leak_the_key(tsgb: Run, run: Callable[[str], Ended]) -> None:
    del run  # sets the key
    for command in (*COMMANDS, "doctor"):
        ended = tsgb(*command.split(), "--vast-url", "http://vast.example")
        one_line(ended, 2, "would send the key where others can read it")
