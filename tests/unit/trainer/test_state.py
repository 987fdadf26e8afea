"""A run that was stopped after any update ends as one that never was: bit for bit."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.fakes.miniature import make_trainer, miniature_config, untrained_model, world
from tsgb.config import Arm, RunConfig, arm_overrides
from tsgb.errors import CheckpointError
from tsgb.trainer.loop import Trainer

Files = dict[str, bytes]
ONE_ROUND = {"selfplay": {"rounds": 1}}
RUNS = [
    pytest.param(arm_overrides(Arm.SELFPLAY), id="selfplay"),
    pytest.param({**arm_overrides(Arm.FROZEN), **ONE_ROUND}, id="frozen"),
    pytest.param({**arm_overrides(Arm.SFT), **ONE_ROUND}, id="sft"),
    pytest.param({**arm_overrides(Arm.SAMPLED_PG), **ONE_ROUND}, id="sampled_pg"),
]
LORA = {"model": {"adapter": "lora", "rank": 2}, **ONE_ROUND}


def saved(trainer: Trainer) -> Files:
    """The five files; what is compared holds no time of its own."""
    files = trainer.files()
    content = json.loads(files["trainer_state.json"])
    del content["timestamp"]
    return {**files, "trainer_state.json": json.dumps(content, sort_keys=True).encode()}


def finish(trainer: Trainer) -> Trainer:
    while not trainer.done:
        trainer.step()
    return trainer


def uninterrupted(config: RunConfig) -> list[Files]:
    """The files at every boundary, from step 0 to the end."""
    trainer = make_trainer(config)
    boundaries = [saved(trainer)]
    while not trainer.done:
        trainer.step()
        boundaries.append(saved(trainer))
    return boundaries


@pytest.mark.parametrize("changes", RUNS)
def test_stopped_after_any_update_it_ends_the_same(changes: dict[str, Any]) -> None:
    config = miniature_config(changes)
    boundaries = uninterrupted(config)
    assert len(boundaries) == config.total_steps + 1
    for step, files in enumerate(boundaries):
        resumed = make_trainer(config)
        resumed.load(files)
        assert saved(resumed) == files, f"loaded at step {step} it is not what was saved"
        ended = saved(finish(resumed))
        differing = [name for name in ended if ended[name] != boundaries[-1][name]]
        assert not differing, f"stopped after update {step}"


@pytest.mark.parametrize("changes", [pytest.param({}, id="full"), pytest.param(LORA, id="lora")])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
def test_stopped_after_every_update_it_ends_the_same(changes: dict[str, Any]) -> None:
    config = miniature_config(changes)
    files = saved(make_trainer(config))
    for _ in range(config.total_steps):
        trainer = make_trainer(config)
        trainer.load(files)
        trainer.step()
        files = saved(trainer)
    assert files == saved(finish(make_trainer(config)))


def test_what_is_resumed_is_worth_resuming() -> None:
    """The run above has pools, payoffs, buffers, moments and prices in it."""
    trainer = finish(make_trainer(miniature_config()))
    state = trainer.state
    assert [member.name for member in state.pool] == ["warm", "round-1", "round-2"]
    assert state.guards == ["sft", "round-1", "round-2"] == list(trainer.columns)
    assert [len(row) for row in state.payoff] == [3, 3, 3]
    assert any(rate for row in state.payoff for rate in row)
    assert state.buffer
    assert state.successes
    assert state.mu > 0
    assert len({*state.thresholds}) == 3
    for player in (trainer.attacker, trainer.guard):
        assert all(state["exp_avg"].any() for state in player.optimizer.state.values())


def test_equal_runs_are_equal_and_other_seeds_are_not() -> None:
    runs = [saved(finish(make_trainer(miniature_config({"seed": seed})))) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    for name in runs[0]:
        assert runs[0][name] != runs[2][name]


def test_the_files_are_five_and_say_when_they_were_made() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    files = make_trainer(miniature_config()).files(now)
    assert sorted(files) == [
        "attacker.safetensors",
        "guard.safetensors",
        "optim_attacker.safetensors",
        "optim_guard.safetensors",
        "trainer_state.json",
    ]
    assert json.loads(files["trainer_state.json"])["timestamp"] == "2026-11-24T00:00:00+00:00"


def test_a_checkpoint_of_another_base_is_refused() -> None:
    config = miniature_config()
    files = make_trainer(config).files()
    surrogate = make_trainer(config).surrogate
    other = Trainer(config, world(), untrained_model(seed=1), surrogate)
    with pytest.raises(CheckpointError, match=r"base untrained 000000000000, .* 000000000000"):
        other.load(files)


def test_a_checkpoint_may_name_the_base_by_the_hash_of_its_one_file() -> None:
    config = miniature_config()
    before = make_trainer(config)
    engine = untrained_model()
    engine.sha256 = "f" * 64  # now the hash of all its files
    after = Trainer(config, world(), engine, before.surrogate)
    after.load(before.files())
    engine.weights_sha256 = ""  # as of shards
    with pytest.raises(CheckpointError, match="this machine has ffffffffffff"):
        after.load(before.files())


def test_a_checkpoint_of_another_version_is_refused() -> None:
    trainer = make_trainer(miniature_config())
    files = trainer.files()
    content: dict[str, Any] = json.loads(files["trainer_state.json"])
    files["trainer_state.json"] = json.dumps({**content, "state_version": 0}).encode()
    with pytest.raises(CheckpointError, match="state_version 0, this tsgb reads"):
        trainer.load(files)


@pytest.mark.parametrize("data", [b"{", b"[]", b"[" * 200_000, b"{}", b'{"state": 5}'])
def test_a_state_that_another_host_damaged_is_one_line(data: bytes) -> None:
    trainer = make_trainer(miniature_config())
    with pytest.raises(CheckpointError, match=r"trainer_state.json cannot be read: it "):
        trainer.load({**trainer.files(), "trainer_state.json": data})
