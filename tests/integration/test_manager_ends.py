"""How `tsgb manager run` can be ended, and what is left then: no machine, and what was saved."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.manager import Manager
from tests.fakes.miniature import MINIATURE
from tests.fakes.vast.driver import until
from tsgb.errors import ExitCode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

LONG = {
    **{k: v for k, v in MINIATURE.items() if k not in {"profile", "env"}},
    "selfplay": {**MINIATURE["selfplay"], "rounds": 4000},
}
PATIENCE = 240


def arguments() -> list[str]:
    options = ["--profile", "smoke", "--env", MINIATURE["env"], "--arms", "selfplay"]
    return [*options, "--no-evaluate", "--json", *set_options(LONG)]


def set_options(overrides: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`--set` of everything in there."""
    found: list[str] = []
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            found += set_options(value, f"{prefix}{name}.")
        else:
            found.append(f"--set={prefix}{name}={json.dumps(value)}")
    return found


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], manager: Manager) -> None:
    """Until it is so, or the process is over."""
    until(lambda: what() or process.poll() is not None, seconds=PATIENCE)
    assert process.poll() is None, manager.log.read_text()


def trains(manager: Manager, attempt: int) -> bool:
    arms = (manager.documents.heartbeat(attempt) or {}).get("arms") or {}
    return any((arm.get("durable_step") or 0) > 0 for arm in arms.values())


def live(manager: Manager) -> list[str]:
    bills = manager.vast.sim("ledger")["instances"]
    return [number for number, bill in bills.items() if bill["live"]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_machine_save_and_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        process = manager.start(*arguments())
        wait_for(lambda: trains(manager, 1), process, manager)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == ExitCode.INTERRUPTED, manager.log.read_text()
        assert live(manager) == []
        assert "go on with --run-id r1" in manager.log.read_text()
        exit_record = manager.documents.exit_record(1)
        assert exit_record is not None
        assert exit_record["outcome"] == "interrupted"
        lease = manager.documents.lease()
        assert lease is not None
        assert lease.ended
        assert not any(account.is_open for account in manager.ledger().accounts.values())


@pytest.mark.slow
def test_a_flow_that_was_killed_finds_its_machine_again(tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        process = manager.start(*arguments())
        wait_for(lambda: trains(manager, 1), process, manager)
        process.kill()
        process.communicate()
        [number] = live(manager)
        process = manager.start(*arguments())
        wait_for(
            lambda: f"going on with instance {number}" in manager.log.read_text(), process, manager
        )
        time.sleep(2)  # a look or more
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == ExitCode.INTERRUPTED, manager.log.read_text()
        assert live(manager) == []
        assert len(manager.vast.sim("ledger")["instances"]) == 1
        assert "go on with --run-id r1" in manager.log.read_text()
        exit_record = manager.documents.exit_record(1)
        assert exit_record is not None
        assert exit_record["outcome"] == "interrupted"
        assert not any(account.is_open for account in manager.ledger().accounts.values())


@pytest.mark.slow
def test_a_second_flow_on_the_same_run_is_refused(tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        process = manager.start(*arguments())
        wait_for(lambda: live(manager), process, manager)
        code, _ = manager.run(*arguments())
        assert code == ExitCode.USAGE
        assert "is in use by process" in manager.log.read_text()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        assert live(manager) == []
        assert len(manager.vast.sim("ledger")["instances"]) == 1


@pytest.mark.parametrize(
    ("options", "given", "code", "line"),
    [
        ({"credit": 0}, [], ExitCode.BUDGET, "credit: add some"),
        ({}, ["--budget", "0"], ExitCode.BUDGET, "a budget of $0 rents nothing"),
        ({}, ["--store", "ftp://x/y"], ExitCode.USAGE, "ftp://x/y"),
    ],
)
def test_what_rents_nothing_says_so_at_once(
    options: dict[str, object], given: list[str], code: ExitCode, line: str, tmp_path: Path
) -> None:
    with Manager(tmp_path, **options) as manager:
        ended, _ = manager.run(*arguments(), *given)
        assert ended == code, manager.log.read_text()
        [said] = manager.log.read_text().splitlines()
        assert line in said


@pytest.mark.slow
def test_no_offer_under_the_cap(tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        code, _ = manager.run(*arguments(), "--max-price", "0.01", TSGB_OFFER_SECONDS="1")
        assert code == ExitCode.NO_OFFER, manager.log.read_text()
        assert "no offer under the cap of $0.010/h: nearest is" in manager.log.read_text()
        assert manager.vast.sim("ledger")["instances"] == {}


def test_a_key_that_is_refused(tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        code, _ = manager.run(*arguments(), VAST_API_KEY="not-the-key")
        assert code == ExitCode.USAGE
        [said] = manager.log.read_text().splitlines()
        assert "auth_error" in said
