"""One attempt: where it stops, what it leaves behind, and what the next one makes of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.contexts import worker_context
from tests.fakes.miniature import TRUST, MiniatureEnvironment, miniature_config
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.data.training import TrainingData, write_training_data
from tsgb.errors import CheckpointError, Interrupted, LeaseLost, TrainingFailed, UsageError
from tsgb.trainer.batches import clean_prompts
from tsgb.types import CheckpointRef
from tsgb.worker.build import setup_torch
from tsgb.worker.context import StopSignals, WorkerContext, find_run
from tsgb.worker.train import TrainingAttempt, train

CONFIG = miniature_config({"checkpoint_interval": 4})
LAST = CONFIG.total_steps


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    setup_torch()
    return worker_context(tmp_path_factory.mktemp("cache"), trust=TRUST)


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    made = open_run(str(tmp_path / "store" / "r1"))
    made.write_text("config.json", CONFIG.canonical())
    return made


def attempt(
    run: RunStore, context: WorkerContext, signals: StopSignals | None = None, **options: Any
) -> TrainingAttempt:
    ticks = count()  # each look at the clock is a second later, so that each heartbeat is due
    given = {"attempt": None, "clock": lambda: float(next(ticks)), **options}
    return TrainingAttempt(run, CONFIG, context, signals or StopSignals(), **given)


def steps(run: RunStore) -> list[int]:
    return [json.loads(line)["step"] for line in run.read_text("metrics.jsonl").splitlines()]


def content(run: RunStore, ref: CheckpointRef) -> dict[str, bytes]:
    files = run.list(f"checkpoints/{ref.name}")
    return {
        name: run.read_bytes(f"checkpoints/{ref.name}/{name}")
        for name in files
        if name.endswith(".safetensors")
    }


@pytest.mark.parametrize("until", [0, 1, 6, None])
def test_it_stops_where_it_is_told_to(
    run: RunStore, context: WorkerContext, until: int | None
) -> None:
    ref = attempt(run, context).train(until)
    wanted = LAST if until is None else until
    assert ref.step == wanted
    assert steps(run) == [*range(1, wanted + 1)] if wanted else run.read_text("metrics.jsonl") == ""
    assert attempt(run, context).train(until) == ref, "nothing is left to do"


def test_each_update_says_how_long_it_took(run: RunStore, context: WorkerContext) -> None:
    """Of every kind: `tsgb plan` expects the rest of a run from these."""
    attempt(run, context).train(None)
    lines = [json.loads(line) for line in run.read_text("metrics.jsonl").splitlines()]
    assert {line["phase"] for line in lines} == {phase.kind for phase in CONFIG.phases()}
    for line in lines:
        assert line["seconds"] >= 1, "a look at the clock before it, and one after it"
        assert line["tokens_per_second"] == round(line["tokens"] / line["seconds"], 1) > 0


def test_a_signal_saves_and_the_next_attempt_goes_on(run: RunStore, context: WorkerContext) -> None:
    signals, stopped = StopSignals(), 6

    def interrupt(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == stopped:
            signals.received = signal.SIGTERM

    first = attempt(run, context, signals, on_update=interrupt)
    with pytest.raises(Interrupted, match="stopped by SIGTERM; the same command goes on"):
        first.train(None)
    first.write_exit_record("interrupted", "SIGTERM")
    record = run.read_json("exits/0001.json")
    assert (record["outcome"], record["step"]) == ("interrupted", stopped)
    assert record["checkpoint"]["step"] == stopped
    assert 50e6 < record["peak_memory_bytes"] < 50e9

    second = attempt(run, context)
    ref = second.train(None)
    assert (second.number, ref.step) == (2, LAST)
    assert steps(run) == [*range(1, LAST + 1)]


def test_work_after_the_last_checkpoint_is_done_again_and_told_once(
    run: RunStore, context: WorkerContext, tmp_path: Path
) -> None:
    def fall(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == 7:
            first.checkpointer.flush()
            raise MemoryError

    first = attempt(run, context, on_update=fall)
    with pytest.raises(MemoryError):
        first.train(None)
    # What a dying process may leave: lines of updates that no checkpoint has, and a torn one.
    text = run.read_text("metrics.jsonl")
    run.write_text("metrics.jsonl", text + '{"step": 5}\n{"step": 6}\n{"st')
    seen: list[int] = []
    second = attempt(run, context, on_update=lambda metrics: seen.append(metrics["step"]))
    ref = second.train(None)
    assert seen == [*range(5, LAST + 1)]
    assert steps(run) == [*range(1, LAST + 1)]

    other = open_run(str(tmp_path / "store" / "r2"))
    undisturbed = attempt(other, context).train(None)
    assert content(run, ref) == content(other, undisturbed)


def test_a_calibration_is_told_of_while_it_goes_on(
    run: RunStore, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reports nothing for ten minutes is killed; large models take longer."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def watched(name: str) -> None:
        method = getattr(MiniatureEnvironment, name)

        def call(*given: Any) -> Any:
            with suppress(FileNotFoundError):
                seen.append((name, run.read_json("heartbeats/0001.json")))
            return method(*given)

        monkeypatch.setattr(MiniatureEnvironment, name, call)

    watched("stream")  # draws prompts of a calibration
    watched("read")  # reads what the attacker wrote after it
    attempt(run, context).train(None)
    told = [
        (before["updated_at"], after["updated_at"])
        for (name, before), (following, after) in pairwise(seen)
        if (name, following) == ("stream", "read") and before["step"] == after["step"]
    ]
    assert told
    assert all(before != after for before, after in told)


def test_heartbeats_say_what_would_survive(run: RunStore, context: WorkerContext) -> None:
    beats: list[dict[str, Any]] = []

    def look(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] > 1:  # the heartbeat of the update before
            beats.append(run.read_json("heartbeats/0001.json"))

    attempt(run, context, on_update=look).train(None)
    beats.append(run.read_json("heartbeats/0001.json"))
    assert [beat["step"] for beat in beats] == [*range(1, LAST + 1)]
    durable = [beat["durable_step"] for beat in beats]
    assert durable == sorted(durable)
    assert set(durable) <= {*range(0, LAST, 4), LAST}
    assert beats[-1]["durable_step"] == LAST
    assert {beat["total_steps"] for beat in beats} == {LAST}
    assert beats[-1]["phase"] == "guard"


def test_an_older_attempt_is_fenced_off(run: RunStore, context: WorkerContext) -> None:
    older = attempt(run, context)
    attempt(run, context)
    with pytest.raises(LeaseLost):
        older.train(None)


def test_a_run_is_found_by_its_own_or_its_stores_address(
    run: RunStore, context: WorkerContext
) -> None:
    store = run.run_url.rpartition("/")[0]
    assert find_run(context, run.run_url).run_url == run.run_url
    assert find_run(context, store).run_url == run.run_url
    open_run(f"{store}/r2").write_text("config.json", CONFIG.canonical())
    with pytest.raises(UsageError, match=r"has 2 runs \(r1, r2\): name one"):
        find_run(context, store)
    with pytest.raises(UsageError, match="no run at"):
        find_run(context, f"{store}/r3")


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(
    context: WorkerContext, tmp_path: Path
) -> None:
    config = miniature_config({"checkpoint_interval": 1, "guard": {"sft_lr": 1e30}})
    made = open_run(str(tmp_path / "store" / "r1"))
    made.write_text("config.json", config.canonical())
    with pytest.raises(TrainingFailed, match=r"update 6 \(sft_guard\): the guard's loss is nan"):
        train(context, made.run_url)
    record = made.read_json("exits/0001.json")
    assert (record["outcome"], record["step"], record["checkpoint"]["step"]) == ("config", 5, 5)
    assert record["message"].startswith("TrainingFailed: update 6 (sft_guard): the guard's")
    found = CheckpointReader(made).newest_valid(pytest.fail)
    assert found is not None
    assert found[0].step == 5
    assert steps(made) == [1, 2, 3, 4, 5]
    assert TrainingFailed.exit_code == 2


def test_a_checkpoint_that_loads_nowhere_is_named_and_another_one_may_be_pinned(
    run: RunStore, context: WorkerContext, tmp_path: Path
) -> None:
    good = attempt(run, context).train(4)
    store = CheckpointStore(run)
    store.claim()
    files = {**store.read(good), "guard.safetensors": store.read(good)["optim_guard.safetensors"]}
    bad = store.publish(5, 5, files, CONFIG.fingerprint)
    with pytest.raises(CheckpointError, match=rf"{bad.name} cannot be loaded: "):
        train(context, run.run_url)
    record = run.read_json("exits/0003.json")
    assert (record["outcome"], record["not_loaded"]) == ("config", bad.name)

    pinned = worker_context(tmp_path / "cache", trust=TRUST, resume_pins=good.sha256)
    assert train(pinned, run.run_url, until_step=6).step == 6
    assert "not_loaded" not in run.read_json("exits/0004.json")
    assert steps(run) == [1, 2, 3, 4, 5, 6]


def test_the_guard_learns_from_the_prompts_in_the_store(
    context: WorkerContext, tmp_path: Path
) -> None:
    path = tmp_path / "own.csv"
    path.write_text("q,bad\n" + "".join(f"kolibri {i} sings,{i % 2}\n" for i in range(60)))
    data = TrainingData.read([path], ["prompt=q label=bad"])
    config = miniature_config(
        {"train_data": data.config.model_dump(mode="json"), "guard": {"own_share": 1.0}}
    )
    made = open_run(str(tmp_path / "store" / "r1"))
    made.write_text("config.json", config.canonical())
    with pytest.raises(CheckpointError, match=r"training_data.jsonl is missing"):
        train(context, made.run_url)
    made.write_bytes("training_data.jsonl", data.document + b"\n")
    with pytest.raises(CheckpointError, match=r"is not what the run was begun with"):
        train(context, made.run_url)
    write_training_data(made, data)
    worker = TrainingAttempt(made, config, context, StopSignals(), attempt=None)
    worker.train(1)
    assert worker.trainer is not None
    clean = clean_prompts(worker.trainer.env, Random(0), 40, 0.125)
    assert all(prompt.text.startswith("kolibri") for prompt in clean)
