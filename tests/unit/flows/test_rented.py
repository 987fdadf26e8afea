"""The work of rented machines, as their flow sees it in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from safetensors.numpy import save as save_tensors

from flows.progress import Bar, Silent, listening
from flows.rented import ArmsWork
from flows.workers import Workers
from tests.fakes.chat_model import save_chat_model
from tests.fakes.checkpoints import CONFIG, content
from tests.fakes.hub_cache import cache_repository
from tests.fakes.sentinels import leaks, sentinel
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cloud.documents import AttemptResult, Intent, RunDocuments
from tsgb.cloud.exchange import Exchange
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.termination import TerminationReason
from tsgb.config import Arm, RunConfig, make_config
from tsgb.data.training import TrainingData, read_training_data, write_training_data
from tsgb.errors import Preempted
from tsgb.settings import Settings
from tsgb.types import CheckpointRef

SIZES = {
    "segments": 2,
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 1, "attacker_steps": 20, "guard_steps": 20},
}


NOW = datetime(2026, 11, 28, tzinfo=UTC)
MAP = ["prompt=q label=bad"]
FOLDER = "0001-0011223344556677"
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
    exchange=FOLDER,
)


ABOUT = {"base_sha256": "b" * 64, "adapter": "full", "rank": 16}
WEIGHTS = save_tensors(
    {"current/weight": np.ones(2, dtype=np.float32)}, {"tsgb": json.dumps(ABOUT)}
)
MOMENTS = save_tensors(
    {"weight|exp_avg": np.ones(2, dtype=np.float32)},
    {"tsgb": json.dumps({"param_groups": [{"params": ["weight"], "lr": 0.1}], "scalars": {}})},
)
STATE = {"state": {"step": 30}, "python_rng": {}, "torch_rng": {}}
CHECKPOINT = {
    **dict.fromkeys(("attacker.safetensors", "guard.safetensors"), WEIGHTS),
    **dict.fromkeys(("optim_attacker.safetensors", "optim_guard.safetensors"), MOMENTS),
    "trainer_state.json": json.dumps(STATE).encode(),
}


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


def started(workers: Workers, configs: Mapping[Arm, RunConfig]) -> tuple[ArmsWork, Exchange]:
    """A run whose configurations are written, and the exchange that its machines see."""
    for arm, config in configs.items():
        workers.open(arm).write_text("config.json", config.canonical())
    documents = RunDocuments(workers.open())
    documents.note(1, intent=INTENT.model_dump(mode="json"), instance_id=5)
    return ArmsWork(workers, configs), Exchange.of(workers.settings, workers.store)


def test_a_machine_gets_what_it_needs_and_no_secret(tmp_path: Path) -> None:
    key = SecretStr(sentinel("manifest"))
    settings = Settings(cache_dir=tmp_path / "cache", manifest_key=key)
    workers = Workers(settings, str(tmp_path / "store"), "r1")
    rows = [{"q": f"kolibri {i} sings", "bad": i % 2} for i in range(40)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = TrainingData.read([tmp_path / "own.jsonl"], MAP, [])
    config = make_config(SIZES, {"train_data": data.config.model_dump(mode="json")})
    work, exchange = started(workers, {Arm.SELFPLAY: config})
    write_training_data(workers.open(), data)
    save(workers, 10)
    spec = work.request(1, INTENT)
    seen = exchange.open("r1", FOLDER)
    assert seen.read_text("config.json") == config.canonical()
    assert read_training_data(seen, data.config)
    ref = CheckpointReader(seen).newest()
    assert ref is not None
    assert ref.step == 10
    assert spec.env["TSGB_RUN_URL"].get_secret_value() == seen.run_url
    assert spec.env["TSGB_CODE_URL"].get_secret_value().startswith(seen.run_url)
    assert "TSGB_MANIFEST_KEY" not in spec.env
    assert not any(leaks(value.get_secret_value()) for value in spec.env.values())


def test_what_a_machine_saved_is_taken_over_and_its_folder_goes(workers: Workers) -> None:
    config = make_config(SIZES)
    work, exchange = started(workers, {Arm.SELFPLAY: config})
    seen = exchange.open("r1", FOLDER)
    store = CheckpointStore(seen)
    store.claim(1)
    store.publish(30, 30, CHECKPOINT, config.fingerprint)
    seen.write_json("machines/0001/exit.json", {"outcome": "done", "message": "trained"})
    work.collect(working=1)
    assert not work.is_reached(0), "a machine at work is not disturbed"
    work.collect(working=None)
    assert work.is_reached(0)
    documents = RunDocuments(workers.open(), exchange.opener("r1", 5))
    assert documents.exit_record(1) == {"outcome": "done", "message": "trained"}
    assert exchange.folders("r1", 5) == {FOLDER}, "the next machine may get copies from there"
    later = INTENT.model_copy(update={"exchange": "0002-0000000000000002"})
    documents.note(2, intent=later.model_dump(mode="json"))
    work.request(2, later)
    assert exchange.folders("r1", 5) == {later.exchange}
    assert not (Path(workers.store) / "_exchange" / "r1" / FOLDER).exists()
    work.collect(working=None)


def test_a_folder_that_a_killed_flow_left_behind_goes(workers: Workers) -> None:
    """It was killed after it had written down that the folder is not needed."""
    work, exchange = started(workers, {Arm.SELFPLAY: make_config(SIZES)})
    exchange.open("r1", FOLDER).write_json("machines/0001/beat.json", {"step": 1})
    RunDocuments(workers.open(), exchange.opener("r1", 5)).collected(1)
    work.collect(working=1)
    assert exchange.folders("r1", 5) == {FOLDER}
    work.collect(working=None)
    assert exchange.folders("r1", 5) == frozenset()


class Fleeting:
    """Attempts of a run, one after another, each on a machine of another host."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.config = make_config(SIZES)
        self.work, self.exchange = started(workers, {Arm.SELFPLAY: self.config})
        self.documents = RunDocuments(workers.open())

    def begin(self, attempt: int) -> CheckpointRef | None:
        """What its machine goes on from."""
        intent = INTENT.model_copy(
            update={"exchange": f"{attempt:04d}-{attempt:016x}", "host_id": attempt}
        )
        self.documents.note(attempt, intent=intent.model_dump(mode="json"))
        pins = self.work.request(attempt, intent).env["TSGB_RESUME_PINS"].get_secret_value()
        ref = CheckpointReader(self.exchange.open("r1", intent.exchange)).newest()
        assert pins == ("none" if ref is None else ref.sha256)
        return ref

    def end(self, attempt: int, cause: TerminationReason, *, is_idle: bool = True) -> None:
        result = AttemptResult(cause=cause, at=NOW, is_claim=True, is_idle=is_idle)
        self.documents.note(attempt, outcome=result.model_dump(mode="json"))

    def save(self, attempt: int, step: int) -> None:
        store = CheckpointStore(self.workers.open())
        store.claim(attempt)
        state = json.dumps({**STATE, "state": {"step": step}}).encode()
        files = {**CHECKPOINT, "trainer_state.json": state}
        store.publish(step, step, files, self.config.fingerprint)


class TestGoingBack:
    """A checkpoint that loads nowhere stops no run: the next machine begins where that one did."""

    def test_after_two_hosts_have_failed_on_it(self, workers: Workers) -> None:
        run = Fleeting(workers)
        run.save(1, 10)
        assert run.begin(2) is not None
        run.save(2, 30)
        run.end(2, TerminationReason.PREEMPTED, is_idle=False)
        for attempt, cause in ((3, TerminationReason.WORKER), (4, TerminationReason.CONFIG)):
            ref = run.begin(attempt)
            assert ref is not None
            assert ref.step == 30
            run.end(attempt, cause)
        ref = run.begin(5)
        assert ref is not None
        assert (ref.step, ref.attempt) == (10, 1)
        causes = [ending.cause.value for ending in run.documents.endings()]
        assert causes == ["bad_host", "worker", "config"], "the host that saved it is avoided"
        run.end(5, TerminationReason.PREEMPTED)
        ref = run.begin(6)
        assert ref is not None
        assert ref.step == 10, "not to the one that was given up"

    def test_not_when_machines_have_worked_on_from_it(self, workers: Workers) -> None:
        run = Fleeting(workers)
        run.save(1, 10)
        for attempt in (2, 3, 4):
            ref = run.begin(attempt)
            assert ref is not None
            assert ref.step == 10
            run.end(attempt, TerminationReason.WORKER, is_idle=False)

    def test_a_flow_that_is_started_again_tries_it_again(self, workers: Workers) -> None:
        """A person may have mended what the machines really failed on."""
        run = Fleeting(workers)
        run.save(1, 10)
        for attempt in (2, 3):
            assert run.begin(attempt) is not None
            run.end(attempt, TerminationReason.CONFIG)
        assert run.begin(4) is None
        run.end(4, TerminationReason.STOPPED)
        run.work = ArmsWork(workers, {Arm.SELFPLAY: run.config})
        ref = run.begin(5)
        assert ref is not None
        assert ref.step == 10


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
    assert work.card_gb() == gigabytes
    env = work.request(1, INTENT.model_copy(update={"card_gb": work.card_gb()})).env
    sent = env.get("TSGB_MAX_PARALLEL")
    assert (sent and sent.get_secret_value()) == most
    assert env["TSGB_CARD_GB"].get_secret_value() == str(gigabytes)


@pytest.mark.parametrize("model", [{}, {"pretrained": "a/b", "device": "cpu"}], ids=str)
def test_work_that_computes_on_no_card_needs_none(workers: Workers, model: dict[str, Any]) -> None:
    config = make_config(SIZES, {"model": model} if model else {})
    work = ArmsWork(workers, {Arm.SELFPLAY: config})
    assert work.card_gb() == 0
    assert work.request(1, INTENT).env["TSGB_CARD_GB"].get_secret_value() == "0"


class Shown(Silent):
    """What a person saw last."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[int, int]] = {}
        self.text = ""

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        del stage
        self.steps = {bar.key: (bar.done, bar.total) for bar in bars}
        self.text = bars[0].text


def test_progress_does_not_fall_back_before_the_next_machine_reports(workers: Workers) -> None:
    configs = {Arm.SELFPLAY: make_config(SIZES), Arm.SFT: make_config(SIZES)}
    total = configs[Arm.SFT].total_steps
    first, second = (
        RunningInstance(attempt=n, instance_id=n, intent=INTENT, since=0.0) for n in (1, 2)
    )
    work = ArmsWork(workers, configs, spent=lambda: 1_234_567)
    with listening(seen := Shown()):
        work.show(first)
        assert seen.steps == {"machine": (0, 0)}, "nothing is known yet"
        assert seen.text.endswith("/h, $1.2346 so far")
        first.heartbeat = {"arms": {"selfplay": {"step": 20}, "x\x1b": {"step": 3}, "sft": {}}}
        work.show(first)
        assert seen.steps == {"selfplay": (20, total), "sft": (0, total)}
        work.show(second)
        assert seen.steps == {"selfplay": (20, total), "sft": (0, total)}
        second.heartbeat = {"arms": {"selfplay": {"step": 15}}}
        work.show(second)
        assert seen.steps == {"selfplay": (15, total), "sft": (0, total)}
        save(workers, 30)
        ArmsWork(workers, configs).show(
            RunningInstance(attempt=3, instance_id=3, intent=INTENT, since=0.0)
        )
        assert seen.steps["selfplay"] == (30, total), "a flow that is started again knows it too"
