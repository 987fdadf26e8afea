"""A run that was stopped after any update ends as one that never was: bit for bit."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.miniature import make_trainer, miniature_config, untrained_model, world
from tsgb.checkpoint.codec import decode_tensors, encode_tensors
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.config import Arm, RunConfig, arm_overrides, parse_config
from tsgb.errors import CheckpointError
from tsgb.trainer.loop import Trainer
from tsgb.trainer.state import read_weights, stored_state

Files = dict[str, bytes]
GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint_v1"
ONE_ROUND = {"selfplay": {"rounds": 1}}
RUNS = [
    pytest.param(arm_overrides(Arm.SELFPLAY), id="selfplay"),
    pytest.param({**arm_overrides(Arm.FROZEN), **ONE_ROUND}, id="frozen"),
    pytest.param({**arm_overrides(Arm.SFT), **ONE_ROUND}, id="sft"),
    pytest.param({**arm_overrides(Arm.SAMPLED_PG), **ONE_ROUND}, id="sampled_pg"),
]
LORA = {"model": {"adapter": "lora", "rank": 2}, **ONE_ROUND}


def saved(trainer: Trainer) -> Files:
    """All files; what is compared holds no time of its own."""
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
    assert max(state.prices.values()) > 0
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
    assert sorted(name for name in files if "/" not in name) == [
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


def test_a_checkpoint_may_name_the_base_without_its_configuration() -> None:
    config = miniature_config()
    before = make_trainer(config)
    engine = untrained_model()
    after = Trainer(config, world(), engine, before.surrogate)
    engine.sha256, engine.weights_sha256 = "f" * 64, ""
    engine.earlier_sha256 = untrained_model().sha256
    after.load(before.files())
    engine.earlier_sha256 = "e" * 64
    with pytest.raises(CheckpointError, match="this machine has ffffffffffff"):
        after.load(before.files())


def test_a_base_in_another_dtype_goes_on_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    config = miniature_config(LORA)
    before, engine = make_trainer(config), untrained_model()
    after = Trainer(config, world(), engine, before.surrogate)
    after.load(before.files())
    assert not capsys.readouterr().err
    engine.dtype = "bfloat16"  # as on a machine with units for it
    after.load(before.files())
    assert (
        "trained on a base in float32, this machine has it in bfloat16" in capsys.readouterr().err
    )


def test_adapters_of_an_earlier_version_count_as_of_a_base_in_float32(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = open_run(str(GOLDEN))
    config = parse_config(run.read_text("config.json"), "config.json")
    found = CheckpointReader(run).newest_valid(pytest.fail)
    assert found is not None
    trainer = make_trainer(config)
    trainer.load(found[1])
    assert not capsys.readouterr().err
    trainer.engine.dtype = "bfloat16"  # as on a machine with units for it
    trainer.load(found[1])
    told = capsys.readouterr().err
    assert "float32 (by an earlier version, whose files name no dtype)" in told
    assert "this machine has it in bfloat16" in told


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


class TestParts:
    """What never changes again is apart from what each save writes anew."""

    def test_those_of_a_finished_run(self) -> None:
        files = finish(make_trainer(miniature_config())).files()
        assert sorted(name for name in files if "/" in name) == [
            "attacker.safetensors/sft",
            "attacker.safetensors/warm",
            "guard.safetensors/round-1",
            "guard.safetensors/round-2",
            "guard.safetensors/sft",
            "trainer_state.json/round-1",
            "trainer_state.json/round-2",
            "trainer_state.json/warm",
        ]
        groups = {key.partition("/")[0] for key in decode_tensors(files["guard.safetensors"])[0]}
        assert groups == {"current"}
        state = json.loads(files["trainer_state.json"])["state"]
        assert state["pool"] == ["warm", "round-1", "round-2"]

    def test_a_name_keeps_its_content_but_for_the_starts(self) -> None:
        seen: dict[str, bytes] = {}
        for files in uninterrupted(miniature_config()):
            for name in files.keys() - {"attacker.safetensors/sft", "attacker.safetensors/warm"}:
                if "/" in name:
                    assert seen.setdefault(name, bytes(files[name])) == bytes(files[name])
        assert len(seen) == 6

    @pytest.mark.parametrize("data", [b"{", b"[]", None], ids=["torn", "a list", "missing"])
    def test_a_damaged_member_of_the_pool_is_one_line(self, data: bytes | None) -> None:
        files = finish(make_trainer(miniature_config())).files()
        del files["trainer_state.json/warm"]
        damaged = {**files, **({} if data is None else {"trainer_state.json/warm": data})}
        with pytest.raises(CheckpointError, match=r"trainer_state.json/warm cannot be read: "):
            make_trainer(miniature_config()).load(damaged)


class TestVersion1:
    """Checkpoints of the version that held everything in the five files."""

    def test_one_that_it_wrote_is_read_and_goes_on(self) -> None:
        run = open_run(str(GOLDEN))
        config = parse_config(run.read_text("config.json"), "config.json")
        found = CheckpointReader(run).newest_valid(pytest.fail)
        assert found is not None
        files = found[1]
        assert len(files) == 5
        trainer = make_trainer(config)
        trainer.load(files)
        assert (trainer.state.step, trainer.state.guards) == (11, ["sft", "round-1"])
        again = trainer.files()
        assert read_weights(again, "guard.safetensors")[0].keys() == {"current", "sft", "round-1"}
        for name in ("attacker.safetensors", "guard.safetensors"):
            (groups, about), (wanted, wanted_about) = (
                read_weights(source, name) for source in (again, files)
            )
            assert about == wanted_about | {"dtype": "float32"}
            assert groups.keys() == wanted.keys()
            for group, tensors in wanted.items():
                for key, tensor in tensors.items():
                    assert torch.equal(groups[group][key], tensor), key
        for name in ("optim_attacker.safetensors", "optim_guard.safetensors"):
            assert bytes(again[name]) == files[name]
        for name in ("state", "python_rng", "torch_rng"):
            wanted = stored_state(files)[name]
            if name == "state":  # one price for all benign traffic became that of the ordinary
                wanted["prices"] = {"benign": wanted.pop("mu")}
            assert stored_state(again)[name] == wanted
        assert finish(trainer).done

    def test_resumed_from_one_a_run_ends_the_same(self) -> None:
        config = miniature_config()
        boundaries = uninterrupted(config)
        for files in boundaries[:: config.total_steps // 4]:
            resumed = make_trainer(config)
            resumed.load(as_version_1(files))
            assert saved(resumed) == files
            assert saved(finish(resumed)) == boundaries[-1]


def as_version_1(files: Files) -> Files:
    """The same state as five files without parts."""
    whole = {name: data for name, data in files.items() if "/" not in name}
    for name in ("attacker.safetensors", "guard.safetensors"):
        groups, about = read_weights(files, name)
        tensors = {f"{group}/{key}": t for group, ts in groups.items() for key, t in ts.items()}
        whole[name] = encode_tensors(tensors, about)
    content = {**stored_state(files), "state_version": 1}
    return {**whole, "trainer_state.json": json.dumps(content, sort_keys=True).encode()}
