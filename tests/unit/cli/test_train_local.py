"""`tsgb train-local`: its schedule, and what it refuses; no training happens here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fakes.command_line import Run
from tsgb.checkpoint.run import RunLock, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cli import train_local
from tsgb.config import RunConfig, make_config
from tsgb.envs import make_environment

SMOKE = make_environment("glyph", world_seed=0).profile("smoke")
FILES = {"guard.safetensors": b"weights", "trainer_state.json": b"{}"}


def local_config(episodes: int, interval: int = 10) -> RunConfig:
    mine: dict[str, Any] = {"profile": "smoke", "checkpoint_interval": interval, "segments": 1}
    layers = (mine, train_local.schedule(episodes), train_local.larger(make_config(SMOKE)))
    return make_config(SMOKE, *layers)


@given(st.integers(1, 5000))
@example(5)
def test_a_schedule_has_as_many_updates_as_were_asked_for(episodes: int) -> None:
    config = make_config(SMOKE, train_local.schedule(episodes))
    assert config.total_steps == episodes
    assert config.guard.sft_steps > 0
    if config.selfplay.rounds:  # each round restarts the attacker from what came before
        assert config.attacker.warmup_steps > 0
        assert config.attacker.sft_steps > 0
        assert config.selfplay.attacker_steps > 0
        assert config.selfplay.guard_steps > 0
    assert bool(config.selfplay.rounds) == (episodes >= 5)


def test_most_updates_are_self_play() -> None:
    selfplay = local_config(100).selfplay
    assert selfplay.rounds * (selfplay.attacker_steps + selfplay.guard_steps) == 60


class TestTrainLocal:
    @pytest.fixture
    def finished(self, tsgb: Run) -> Path:
        """A run of twelve updates in `./checkpoints/local` that is done."""
        run = open_run("checkpoints/local")
        run.write_text("config.json", local_config(12, 6).canonical())
        store = CheckpointStore(run)
        store.claim()
        for step in (6, 12):
            store.publish(step, step * 10, FILES, config_sha256="0" * 64)
        lines = [
            {"step": step, "phase": "guard", "round": 0, "fpr": step / 100} for step in range(1, 13)
        ]
        run.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return Path(run.run_url)

    def test_a_finished_run_is_told_and_not_trained(self, tsgb: Run, finished: Path) -> None:
        ended = tsgb("train-local", "--episodes", "12", "--checkpoint-interval", "6")
        assert ended.code == 0
        assert "was done already: 12 of 12 updates, 2 checkpoints in" in ended.out
        assert "next: tsgb eval-local --checkpoint-path" in ended.out
        assert ended.err == ""

    def test_its_json(self, tsgb: Run, finished: Path) -> None:
        ended = tsgb("train-local", "--episodes=12", "--checkpoint-interval=6", "--json")
        document = json.loads(ended.out)
        assert document["step"] == document["total_steps"] == 12
        assert document["run"] == str(finished)
        assert [row["step"] for row in document["checkpoints"]] == [6, 12]
        assert [row["fpr"] for row in document["checkpoints"]] == pytest.approx([0.035, 0.095])
        assert Path(document["checkpoint"]).is_dir()

    def test_a_link_to_nowhere_beside_the_checkpoints_hides_nothing(
        self, tsgb: Run, finished: Path
    ) -> None:
        (finished / "checkpoints" / ".#manifest.json").symlink_to("nowhere")
        ended = tsgb("train-local", "--episodes", "12", "--checkpoint-interval", "6")
        assert ended.code == 0
        assert "was done already: 12 of 12 updates, 2 checkpoints in" in ended.out
        assert len(list((finished / "claims").iterdir())) == 1

    def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(
        self, tsgb: Run, finished: Path
    ) -> None:
        (finished / "checkpoints").rename(finished / "aside")
        ended = tsgb("train-local", "--episodes", "12", "--checkpoint-interval", "6")
        assert ended.code == 2
        assert re.search(r"is not new, since metrics\.jsonl has 12 updates, .*restore", ended.err)
        assert ended.err.count("\n") == 1
        assert not (finished / "checkpoints").exists()

    def test_other_episodes_are_refused(self, tsgb: Run, finished: Path) -> None:
        ended = tsgb("train-local", "--episodes", "50")
        assert ended.code == 2
        assert re.search("started with --episodes 12, now it is 50: .* --run-id", ended.err)

    def test_another_seed_is_refused(self, tsgb: Run, finished: Path) -> None:
        ended = tsgb("train-local", "--episodes=12", "--checkpoint-interval=6", "--seed=1")
        assert ended.code == 2
        assert re.search("another configuration .*seed is 0 there, 1 here", ended.err)

    def test_a_config_of_another_version(self, tsgb: Run, finished: Path) -> None:
        config = finished / "config.json"
        config.write_text(config.read_text().replace('"schema_version":1', '"schema_version":99'))
        for words in (["train-local", "--episodes=12"], ["eval-local"]):
            ended = tsgb(*words)
            assert ended.code == 2
            assert re.search("schema_version 99, this tsgb reads 1: .*another", ended.err)

    def test_a_second_process_is_sent_away(self, tsgb: Run, finished: Path) -> None:
        config = local_config(20, 6)
        (finished / "config.json").write_text(config.canonical())
        with RunLock(str(finished)):
            ended = tsgb("train-local", "--episodes=20", "--checkpoint-interval=6")
        assert ended.code == 2
        assert re.search(r"is in use by process \d+: stop that process, or", ended.err)
