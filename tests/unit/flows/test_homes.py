"""Homes of rented machines: where arms have machines to themselves, and what that costs in all."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest

from flows.experiment import run_experiment
from flows.homes import fits, homes_of, one_budget, settle
from flows.rented import budget_of
from flows.seeds import shared_budget, sharing
from flows.workers import Workers
from tsgb.cloud.budget import Ledger, SharedBudget
from tsgb.cloud.pricing import MICRO, Rates
from tsgb.config import Arm, Profile, make_config
from tsgb.errors import UsageError
from tsgb.run_options import RunOptions
from tsgb.settings import Settings

ARMS = (Arm.SELFPLAY, Arm.SFT, Arm.FROZEN)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    """A run; nothing is rented, and whoever tries lacks a key."""
    return Workers(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")


def spend(home: Workers, dollars: int) -> None:
    ledger = Ledger.open(home.open_home(), 100 * MICRO)
    ledger.reserve(1, Rates(gpu_per_hour=dollars * MICRO, storage_per_hour=0), NOW)
    ledger.commit(1, NOW + timedelta(hours=1))


def test_an_arm_alone_is_at_home_in_its_own_run(workers: Workers) -> None:
    assert workers.home == "r1"
    for arm, home in zip(ARMS, ("r1", "r1.sft", "r1.frozen"), strict=True):
        alone = replace(workers, alone=arm)
        assert alone.home == home
        assert alone.open_home().run_url == workers.open(arm).run_url, "where it is saved, too"


def test_homes(workers: Workers) -> None:
    assert homes_of(workers, ARMS, apart=True) == ["r1", "r1.sft", "r1.frozen"]
    assert homes_of(workers, ARMS, apart=False) == ["r1"]
    spend(replace(workers, alone=Arm.FROZEN), 1)
    assert homes_of(workers, ARMS, apart=False) == ["r1", "r1.frozen"]


def test_what_arms_spent_apart_is_not_spent_again(workers: Workers) -> None:
    spend(workers, 1)
    with one_budget(workers, ARMS):
        assert shared_budget() is None, "its own ledger has it all"
    spend(replace(workers, alone=Arm.SFT), 2)
    with one_budget(workers, ARMS):
        shared = shared_budget()
        assert shared is not None
        assert shared.held == 3 * MICRO
        ledger = Ledger.open(workers.open_home(), 4 * MICRO, shared=shared)
        assert ledger.left == MICRO
    with sharing(SharedBudget({})), one_budget(workers, ARMS):
        assert shared_budget() is not None
        assert shared_budget() != shared, "that of all seeds has the arms' homes already"
    homes = homes_of(workers, ARMS, apart=True)
    assert budget_of(workers.settings, workers.store, homes).held == 3 * MICRO


@pytest.mark.parametrize("apart", [False, True])
def test_where_nothing_was_rented_nothing_is_settled(workers: Workers, *, apart: bool) -> None:
    configs = {arm: make_config({"profile": "smoke"}) for arm in ARMS}
    settle(workers, configs, apart=apart)  # without a key, it would raise


def test_a_machine_goes_on_only_with_what_is_wanted_of_it() -> None:
    sets = [set(found) for num in range(4) for found in combinations(ARMS, num)]
    for trained in filter(None, sets):
        for wanted in sets:
            assert fits(trained, wanted, apart=True) == (trained == wanted)
            together = fits(trained, wanted, apart=False)
            assert together == (bool(wanted) and wanted <= trained)


def test_more_machines_than_arms_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "cache"))
    options = RunOptions(
        run="x", seeds=2, machines=7, profile=Profile.SMOKE, store=str(tmp_path / "store")
    )
    with pytest.raises(UsageError, match=r"--machines 7: .* the seeds have 6 arms in all"):
        run_experiment(options)
    assert not (tmp_path / "store").exists()
