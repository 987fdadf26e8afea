"""What a run is, before anything starts. No Prefect in here."""

from __future__ import annotations

import csv
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows.prepare import (
    arm_configs,
    check_targets,
    evaluation_id,
    new_run_id,
    trained_arms,
    training_data_of,
    valid_summary,
    write_configs,
)
from flows.workers import Workers
from tests.fakes.deformations import DEFORMED
from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.store import CheckpointStore
from tsgb.checkpoint.urls import is_run_id
from tsgb.cli.options import parse_overrides
from tsgb.config import Arm, Profile, RunConfig
from tsgb.data.training import TrainingData, read_training_data
from tsgb.envs import make_environment
from tsgb.errors import ConfigError, UsageError
from tsgb.eval.streams import evaluated_prompts
from tsgb.run_options import RunOptions
from tsgb.settings import Settings
from tsgb.types import CheckpointRef


def configs(**chosen: Any) -> dict[Arm, RunConfig]:
    return arm_configs(
        RunOptions(**{"profile": Profile.SMOKE, "arms": [Arm.SELFPLAY, Arm.SFT], **chosen})
    )


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")


def test_a_new_run_id_is_one() -> None:
    assert is_run_id(new_run_id(datetime(2026, 11, 24, 8, 0, 0)))  # noqa: DTZ001


@pytest.mark.parametrize("what", DEFORMED)
def test_whatever_stands_in_the_place_of_a_summary_is_made_again(what: str) -> None:
    """Without a key nobody can tell who wrote it; but it ends no flow."""
    files = MemoryFiles()
    run = RunStore(files, files.url, sleep=lambda _: None)
    run.write_bytes("reports/e1/summary.json", DEFORMED[what])
    assert valid_summary(run, "reports/e1") is None


def test_layers_of_a_configuration() -> None:
    asked = configs(seed=3, overrides={"guard": {"batch": 7}, "seed": 9})
    assert {config.seed for config in asked.values()} == {3}
    assert {config.guard.batch for config in asked.values()} == {7}
    assert [config.arm for config in asked.values()] == [Arm.SELFPLAY, Arm.SFT]


def test_an_unknown_target_is_refused() -> None:
    check_targets(RunOptions())
    with pytest.raises(UsageError, match=r"'GPT-9' is not in the world 'glyph': choose of T_s"):
        check_targets(RunOptions(targets=["GPT-9"]))
    usual = {"evaluation": {"targets": ["GPT-9"]}}
    with pytest.raises(UsageError, match=r"'GPT-9' is not in the world 'glyph': choose of T_s"):
        check_targets(RunOptions(overrides=usual))
    check_targets(RunOptions(overrides=usual, targets=["B_mid"]))


def test_configs_are_written_once_and_not_changed(workers: Workers, tmp_path: Path) -> None:
    key = write_configs(workers, configs())
    assert workers.config(Arm.SFT) == configs()[Arm.SFT]
    assert (tmp_path / "store" / "r1.sft" / "config.json").exists()
    assert write_configs(workers, configs()) == key
    with pytest.raises(
        ConfigError, match=r"'r1' .*guard\.batch is \d+ there, 7 here.*another --run-id"
    ):
        write_configs(workers, configs(overrides={"guard": {"batch": 7}}))


EARLIER = {
    "segments": 3,
    "attacker": {"sft_steps": 7},
    "guard": {"batch": 9, "loss": "sampled_pg"},
    "checkpoint_interval": 4,
}


def test_a_run_of_an_earlier_profile_is_resumed_by_what_the_message_says(workers: Workers) -> None:
    """The sizes of a profile change between versions; the command that began a run does not."""
    write_configs(workers, configs(overrides=EARLIER))
    with pytest.raises(ConfigError) as refused:
        write_configs(workers, configs())
    message = str(refused.value)
    assert "guard.batch is 9 there, 64 here" in message
    assert "by a version of tsgb whose profile 'smoke' had other values" in message
    found = re.search(r"To resume it add (.*), or choose another --run-id", message)
    assert found
    words = shlex.split(found[1])
    assert set(words[::2]) == {"--set"}
    write_configs(workers, configs(overrides=parse_overrides(words[1::2])))


@pytest.mark.parametrize(
    ("began", "now", "way"),
    [
        ({"seed": 1}, {}, "give --seed 1"),
        ({"seed": 0}, {"seed": 1}, "give --seed 0"),
        ({}, {"profile": Profile.DEMO}, "give --profile smoke"),
        ({}, {"model": "a/b"}, "leave --model away"),
        ({"black_boxes": ["a b", "c"]}, {}, "give --black-box 'a b' --black-box c"),
    ],
)
def test_another_option_is_named_with_the_value_that_it_had(
    workers: Workers, began: dict[str, Any], now: dict[str, Any], way: str
) -> None:
    write_configs(workers, configs(**began))
    with pytest.raises(ConfigError, match=f"To resume it {way}, or choose another --run-id"):
        write_configs(workers, configs(**now))


def file_of(path: Path, num: int = 120) -> Path:
    """Labelled prompts that nobody else has."""
    path.write_text("q,bad\n" + "".join(f"kolibri {i} sings,{i % 2}\n" for i in range(num)))
    return path


def with_data(*paths: Path, **chosen: Any) -> tuple[dict[Arm, RunConfig], TrainingData | None]:
    given = {"train_data": [str(path) for path in paths], "train_map": ["prompt=q label=bad"]}
    options = RunOptions(
        **{
            "profile": Profile.SMOKE,
            "env": "canary",
            "arms": [Arm.SELFPLAY, Arm.SFT],
            **(given if paths else {}),
            **chosen,
        }
    )
    data = training_data_of(options)
    return arm_configs(options, data), data


def test_prompts_of_ones_own_are_in_the_store_of_every_arm(
    workers: Workers, tmp_path: Path
) -> None:
    asked, data = with_data(file_of(tmp_path / "own.csv"))
    key = write_configs(workers, asked, data)
    for arm in asked:
        stored = workers.config(arm).train_data
        assert stored is not None
        prompts = read_training_data(workers.open(arm), stored)
        assert len(prompts) == stored.harmful + stored.benign
        workers.open(arm).write_bytes("training_data.jsonl", b"torn")
    assert write_configs(workers, asked, data) == key
    for arm, config in asked.items():
        assert config.train_data is not None
        assert read_training_data(workers.open(arm), config.train_data), "it is healed"
    assert "train_data" not in with_data()[0][Arm.SFT].canonical()


@pytest.mark.parametrize(
    ("began", "now", "message"),
    [
        (["a.csv"], ["b.csv"], r"with a.csv \(sha256 \w{12}\) as .*, and b.csv \(.* are given now"),
        (["a.csv"], [], "and none are given now.*: give --train-data as at its start, or choose"),
        ([], ["a.csv"], "was begun without any as training data, and a.csv .* leave --train-data"),
        (["a.csv"], ["c.csv"], "give the same files in the same order, with the same names"),
    ],
)
def test_a_run_goes_on_with_the_prompts_that_it_began_with(
    workers: Workers, tmp_path: Path, began: list[str], now: list[str], message: str
) -> None:
    files = {name: file_of(tmp_path / name) for name in ("a.csv", "c.csv")}
    files["b.csv"] = file_of(tmp_path / "b.csv", 200)
    write_configs(workers, *with_data(*(files[name] for name in began)))
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.json*")}
    with pytest.raises(ConfigError, match=message) as refused:
        write_configs(workers, *with_data(*(files[name] for name in now)))
    assert str(refused.value).endswith("or choose another --run-id")
    assert {path: path.read_bytes() for path in before} == before


def test_prompts_that_the_evaluation_asks_do_not_train(tmp_path: Path) -> None:
    env = make_environment("canary", world_seed=0)
    config = arm_configs(RunOptions(profile=Profile.SMOKE, env="canary"))[Arm.SELFPLAY]
    asked = list(dict.fromkeys(evaluated_prompts(env, config)))
    path = file_of(tmp_path / "own.csv")
    with path.open("a") as file:
        csv.writer(file).writerows((text, 1) for text in asked)
    _, data = with_data(path)
    _, alone = with_data(file_of(tmp_path / "alone.csv"))
    assert data is not None
    assert alone is not None
    assert data.left_out.asked > len(asked) / 10
    assert data.document == alone.document


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"env": "glyph"}, "--train-data: guards of the world 'glyph' know"),
        ({"overrides": {"train_data": {}}}, "--set train_data: use the option --train-data"),
        ({"train_data": None}, "--map names columns of files: add --train-data FILE"),
        ({"train_map": None}, "has the columns q, bad, which no known format has"),
    ],
)
def test_prompts_that_no_guard_can_learn_from(
    tmp_path: Path, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        with_data(file_of(tmp_path / "own.csv"), **chosen)


def test_the_key_changes_with_the_run(workers: Workers, tmp_path: Path) -> None:
    key = write_configs(workers, configs())
    (tmp_path / "store" / "r1" / "flow.json").unlink()
    anew = write_configs(workers, configs())
    assert anew != key, "a run begun anew has nothing finished"
    workers.open(Arm.SFT).write_json("rejected/step-00000030-a0002-00012345.json", {})
    assert write_configs(workers, configs()) != anew, "nor has one that lost a checkpoint"
    assert write_configs(workers, configs()) == write_configs(workers, configs())


def test_only_finished_arms_are_evaluated(workers: Workers) -> None:
    asked = configs()
    write_configs(workers, asked)
    for arm, share in ((Arm.SELFPLAY, 1.0), (Arm.SFT, 0.5)):
        store = CheckpointStore(workers.open(arm))
        store.claim()
        step = int(asked[arm].total_steps * share)
        store.publish(step, step, {"guard.safetensors": b"w"}, asked[arm].fingerprint)
    assert list(trained_arms(workers)) == [Arm.SELFPLAY]


def test_one_question_has_one_id() -> None:
    ref = CheckpointRef(
        run_url="/r1", step=1, episode=1, attempt=1, writer="0", name="n", sha256="ab"
    )
    guards, asked = {"r1": {Arm.SELFPLAY: ref}}, {"r1": configs()[Arm.SELFPLAY]}
    first = evaluation_id(guards, asked, ["a", "b"])
    assert evaluation_id(guards, asked, ["b", "a"]) == first
    assert evaluation_id(guards, asked, None) != first
    assert evaluation_id(guards, {"r1": configs(seed=1)[Arm.SELFPLAY]}, ["a", "b"]) != first
