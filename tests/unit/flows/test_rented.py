"""The work of rented machines, as their flow sees it in the store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.rented import ArmsWork
from flows.workers import Workers
from tests.fakes.chat_model import save_chat_model
from tests.fakes.checkpoints import CONFIG, content
from tests.fakes.hub_cache import cache_repository
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cloud.documents import Intent
from tsgb.config import Arm, make_config
from tsgb.errors import Preempted
from tsgb.settings import Settings

SIZES = {
    "segments": 2,
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 1, "attacker_steps": 20, "guard_steps": 20},
}


INTENT = Intent(
    label="tsgb/home/r1/1",
    ask_id=7,
    machine_id=8,
    host_id=9,
    gpu_name="RTX 3090",
    price=0.1,
    hourly=0.1,
    disk_gb=20,
    intended_at=datetime(2026, 11, 28, tzinfo=UTC),
)


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")


@pytest.fixture
def work(workers: Workers) -> ArmsWork:
    return ArmsWork(workers, {Arm.SELFPLAY: make_config(SIZES)})


def save(workers: Workers, step: int) -> Path:
    run = workers.open()
    store = CheckpointStore(run)
    store.claim(None)
    ref = store.publish(step, step, content(step), CONFIG)
    return Path(run.run_url) / "checkpoints" / ref.name


def test_a_segment_is_reached_by_its_checkpoint(workers: Workers, work: ArmsWork) -> None:
    assert not work.is_reached(0)
    with pytest.raises(Preempted, match="no checkpoint of selfplay at step 30"):
        work.verify(0)
    save(workers, 30)
    assert work.is_reached(0)
    assert work.verify(0)[Arm.SELFPLAY].step == 30
    assert not work.is_reached(1)


def test_a_last_checkpoint_that_rotted_is_trained_again(workers: Workers, work: ArmsWork) -> None:
    save(workers, 30)
    newest = save(workers, 60)
    assert work.is_reached(1)
    (newest / "guard.safetensors").write_bytes(b"rotten")
    assert not work.is_reached(1), "or it would be verified, in vain, for ever"
    with pytest.raises(Preempted):
        work.verify(1)


@pytest.mark.parametrize(("gigabytes", "most"), [(2, "1"), (4, "2"), (24, None), (0, None)])
def test_no_more_arms_train_on_a_card_at_a_time_than_it_has_memory_for(
    tmp_path: Path, gigabytes: float, most: str | None
) -> None:
    commit = cache_repository(tmp_path / "hub", "acme/tiny", save_chat_model(tmp_path / "tiny"))
    settings = Settings(
        cache_dir=tmp_path / "cache",
        gpu_ram_gb=gigabytes,
        HF_HUB_CACHE=tmp_path / "hub",  # pyright: ignore[reportCallIssue] - its alias
        HF_HUB_OFFLINE=True,  # pyright: ignore[reportCallIssue]
    )
    config = make_config(
        {"profile": "smoke", "env": "canary", "model": {"pretrained": f"acme/tiny@{commit}"}}
    )
    workers = Workers(settings, (tmp_path / "store").as_uri(), "r1")
    work = ArmsWork(workers, dict.fromkeys((Arm.SELFPLAY, Arm.SFT, Arm.FROZEN), config))
    sent = work.request(1, INTENT).env.get("TSGB_MAX_PARALLEL")
    assert (sent and sent.get_secret_value()) == most
