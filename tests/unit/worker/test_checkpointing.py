"""A worker before a store that is full, away, slow or somebody else's by now."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.checkpoints import flip
from tests.fakes.contexts import worker_context
from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tests.fakes.miniature import TRUST, miniature_config
from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import RunConfig
from tsgb.errors import ConfigError, Interrupted, LeaseLost, StoreFull, StoreUnreachable
from tsgb.types import CheckpointRef
from tsgb.worker.build import setup_torch
from tsgb.worker.context import StopSignals, WorkerContext
from tsgb.worker.train import TrainingAttempt

CONFIG = miniature_config({"checkpoint_interval": 2})
LAST = CONFIG.total_steps


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup_torch()
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles("memory://store/r1")


@pytest.fixture
def context(models: Path, tmp_path: Path) -> WorkerContext:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(models / "models")
    (models / "models").mkdir(exist_ok=True)
    return worker_context(cache, trust=TRUST)


def attempt(
    files: FaultyFiles | MemoryFiles,
    context: WorkerContext,
    on_update: Callable[[Mapping[str, Any]], None] = lambda _metrics: None,
    *,
    signals: StopSignals | None = None,
    config: RunConfig = CONFIG,
) -> TrainingAttempt:
    run = RunStore(files, files.url, sleep=lambda _seconds: None)
    return TrainingAttempt(
        run, config, context, signals or StopSignals(), attempt=None, on_update=on_update
    )


def tensors(files: MemoryFiles, ref: CheckpointRef) -> dict[str, bytes]:
    return {
        path.rpartition("/")[2]: data
        for path, data in files.files.items()
        if f"/{ref.name}/" in path and path.endswith(".safetensors")
    }


def undisturbed(context: WorkerContext) -> dict[str, bytes]:
    files = MemoryFiles("memory://store/r2")
    return tensors(files, attempt(files, context).train(None))


def committed(files: MemoryFiles) -> set[CheckpointName]:
    found = (
        CheckpointName.parse(p.split("/")[1]) for p in files.files if p.endswith("/manifest.json")
    )
    return {place for place in found if place}


def full(files: MemoryFiles, room_for: int) -> Callable[[str, str], None]:
    """A store with room for so many checkpoints."""

    def before(operation: str, path: str) -> None:
        if operation == "write" and path.endswith((".safetensors", "metrics.jsonl")):
            others = {place.name for place in committed(files)} - {*path.split("/")}
            if len(others) >= room_for:
                raise StoreFull("HTTP 507")

    return before


def test_old_checkpoints_make_room_for_new_ones(files: MemoryFiles, context: WorkerContext) -> None:
    ref = attempt(FaultyFiles(files, full(files, room_for=2)), context).train(None)
    assert ref.step == LAST
    assert tensors(files, ref) == undisturbed(context)
    assert not (context.worker.cache_dir / "spool").exists()


def test_training_goes_on_on_this_machine_while_the_store_is_full(
    files: MemoryFiles, context: WorkerContext
) -> None:
    faulty = FaultyFiles(files)
    beats: list[dict[str, Any]] = []

    def fill_up(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == 3:
            faulty.before = full(files, room_for=0)

    first = attempt(faulty, context, fill_up)
    with pytest.raises(StoreFull, match=r"HTTP 507; step \d+ is kept in .*spool.*r1-\w+ on this"):
        first.train(None)
    assert first.trainer is not None
    assert first.trainer.state.step == LAST, "it trained to the end"
    assert max(place.step for place in committed(files)) < LAST
    beats.append(first.checkpointer.facts())
    assert "kept in" in beats[0]["alarm"]
    assert beats[0]["durable_step"] < LAST

    faulty.before = lambda _operation, _path: None  # somebody made room
    done: list[int] = []
    second = attempt(faulty, context, lambda metrics: done.append(metrics["step"]))
    ref = second.train(None)
    assert done == [], "the state of this machine was found again"
    assert (ref.step, second.checkpointer.alarm) == (LAST, "")
    assert tensors(files, ref) == undisturbed(context)
    assert [*(context.worker.cache_dir / "spool").iterdir()] == []
    lines = files.files["metrics.jsonl"].decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, LAST + 1)], "none is lost"


def test_an_outage_costs_no_training(files: MemoryFiles, context: WorkerContext) -> None:
    faulty = FaultyFiles(files)

    def outage(operation: str, path: str) -> None:
        if operation == "write" and "step-" in path:
            raise StoreUnreachable("away")

    def come_and_go(metrics: Mapping[str, Any]) -> None:
        faulty.before = outage if 2 <= metrics["step"] < LAST - 1 else lambda _o, _p: None

    seen: list[int] = []

    def look(metrics: Mapping[str, Any]) -> None:
        come_and_go(metrics)
        seen.append(metrics["step"])

    ref = attempt(faulty, context, look).train(None)
    assert seen == [*range(1, LAST + 1)]
    assert ref.step == LAST
    assert tensors(files, ref) == undisturbed(context)


def test_a_store_that_stays_away_is_an_error_in_the_end(
    files: MemoryFiles, context: WorkerContext
) -> None:
    faulty = FaultyFiles(files)

    def outage(metrics: Mapping[str, Any]) -> None:
        def before(operation: str, path: str) -> None:
            if operation == "write" and "step-" in path:
                raise StoreUnreachable("away")

        if metrics["step"] == 3:
            faulty.before = before

    with pytest.raises(StoreUnreachable):
        attempt(faulty, context, outage).train(None)
    faulty.before = lambda _operation, _path: None
    assert tensors(files, attempt(faulty, context).train(None)) == undisturbed(context)


def test_the_older_of_two_writers_stops_and_the_newer_ones_result_stands(
    files: MemoryFiles, context: WorkerContext
) -> None:
    refs: list[CheckpointRef] = []

    def take_over(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == 5 and not refs:
            refs.append(attempt(files, context).train(None))

    with pytest.raises(LeaseLost):
        attempt(files, context, take_over).train(None)
    assert tensors(files, refs[0]) == undisturbed(context)
    assert max(committed(files)).name == refs[0].name


@pytest.mark.parametrize("grace_seconds", [60.0, 0.0])
def test_the_last_save_is_made_if_there_is_time(
    files: MemoryFiles, context: WorkerContext, grace_seconds: float
) -> None:
    signals = StopSignals()

    def interrupt(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == 5:
            signals.received = signal.SIGTERM

    short = worker_context(
        context.worker.cache_dir, trust=context.trust, grace_seconds=grace_seconds
    )
    config = miniature_config({"checkpoint_interval": 4})
    stopped = attempt(files, short, interrupt, signals=signals, config=config)
    with pytest.raises(Interrupted):
        stopped.train(None)
    assert stopped.checkpointer.saved is not None
    assert (stopped.checkpointer.saved.step == 5) is (grace_seconds > 0)
    ref = attempt(files, context, config=config).train(None)
    assert ref.step == LAST
    run = RunStore(files, files.url)
    assert CheckpointStore(run).read(ref, ["guard.safetensors"])


@pytest.mark.parametrize("key", [None, SecretStr(sentinel("manifest"))])
def test_another_configuration_is_refused_where_manifests_are_signed(
    files: MemoryFiles, context: WorkerContext, key: SecretStr | None
) -> None:
    def begin(config: RunConfig) -> TrainingAttempt:
        run = RunStore(files, files.url, manifest_key=key)
        return TrainingAttempt(run, config, context, StopSignals(), attempt=None)

    begin(CONFIG).train(3)
    changed = miniature_config({"checkpoint_interval": 2, "guard": {"reward_miss": 5.0}})
    if key is None:
        assert begin(changed).train(4).step == 4
    else:
        with pytest.raises(ConfigError, match=r"config.json is not the configuration that step-"):
            begin(changed).train(4)
        assert begin(CONFIG).train(4).step == 4


def test_a_resuming_worker_reads_each_file_of_its_checkpoint_once(
    files: MemoryFiles, context: WorkerContext
) -> None:
    ref = attempt(files, context).train(3)
    read: list[str] = []

    def note(operation: str, path: str) -> None:
        if operation == "read" and ref.name in path:
            read.append(path.rpartition("/")[2])

    again = attempt(FaultyFiles(files, note), context)
    assert again.train(3) == ref
    held = [path for path in files.files if f"/{ref.name}/" in path]
    assert sorted(read) == sorted(path.rpartition("/")[2] for path in held)


@pytest.mark.parametrize("kind", ["file", "part"])
def test_a_last_checkpoint_that_only_this_machines_cache_has_is_saved_again(
    files: MemoryFiles, context: WorkerContext, kind: str
) -> None:
    def begin() -> TrainingAttempt:
        run = RunStore(files, files.url, cache=context.file_cache)
        return TrainingAttempt(run, CONFIG, context, StopSignals(), attempt=None)

    rotten = begin().train(None)
    assert begin().train(None) == rotten, "nothing to do"
    path = f"checkpoints/{rotten.name}/guard.safetensors"
    if kind == "part":
        path = next(path for path in files.files if path.startswith("parts/"))
    files.files[path] = flip(files.files[path], 100)
    ref = begin().train(None)
    assert ref.step == LAST
    assert ref.name != rotten.name
    found = CheckpointReader(RunStore(files, files.url)).newest_valid(pytest.fail)
    assert found is not None
    assert found[0] == ref
    assert tensors(files, ref) == undisturbed(context)


def test_without_an_interval_the_clock_decides(files: MemoryFiles, context: WorkerContext) -> None:
    config = miniature_config({"checkpoint_interval": None})
    taken = attempt(files, context, config=config)
    assert taken.train(None).step == LAST
    assert {place.step for place in committed(files)} >= {LAST}
    facts = taken.checkpointer.facts()
    assert facts["save_interval_seconds"] >= 1
    assert facts["saved_bytes"] > facts["last_save_bytes"] > 0


def test_half_written_traces_of_earlier_attempts_do_not_stop_the_next_one(
    files: MemoryFiles, context: WorkerContext
) -> None:
    config = miniature_config({"checkpoint_interval": None})
    run = attempt(files, context, config=config).run
    for attempt_number, stored in enumerate(['{"created_at": 5}', "{}", "5", "{"], 2):
        claim = attempt(files, context, config=config).run.fencing_tokens()[-1]
        run.write_text(f"claims/{claim.name}", stored)
        run.write_text(f"exits/{attempt_number:04d}.json", stored)
    worker = attempt(files, context, config=config).checkpointer
    assert worker.resume(lambda _line: None) is None
    run.write_text("metrics.jsonl", '{"step": 1}\n5\n{"step": 2}\n')
    assert worker.earlier_metrics(9) == ['{"step": 1}']
