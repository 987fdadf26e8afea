"""`tsgb checkpoint replay`: training again comes to the same, and to nothing else."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.command_line import Run
from tests.fakes.contexts import worker_context
from tests.fakes.miniature import MINIATURE, TRUST, miniature_config
from tsgb.checkpoint.codec import decode_tensors, encode_tensors
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.replays import read_replays
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.worker.build import setup_torch
from tsgb.worker.context import StopSignals
from tsgb.worker.replay import Deviation, deviation
from tsgb.worker.train import TrainingAttempt

CONFIG = miniature_config({"checkpoint_interval": 4})
ENV = ("--env", MINIATURE["env"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all of its checkpoints, and the models that it was trained with."""
    root = tmp_path_factory.mktemp("trained")
    run = open_run(str(root / "r1"))
    run.write_text("config.json", CONFIG.canonical())
    setup_torch()
    context = worker_context(root / "cache", trust=TRUST)
    TrainingAttempt(run, CONFIG, context, StopSignals(), attempt=None, keep=None).train(None)
    return root


@pytest.fixture
def run(tsgb: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("TSGB_CACHE_DIR", str(trained / "cache"))
    shutil.copytree(trained / "r1", "r1")
    return open_run("r1")


def checkpoints(run: RunStore) -> dict[str, bytes]:
    root = Path("r1")
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def change_last(run: RunStore, change: Callable[[dict[str, bytes]], None]) -> None:
    """Publish the newest checkpoint again with other content, as a host could."""
    found = CheckpointReader(run).newest_valid(print)
    assert found is not None
    ref, files = found
    change(files)
    store = CheckpointStore(run)
    store.claim()
    store.publish(ref.step, ref.episode, files, CONFIG.fingerprint)


def test_an_honest_run(tsgb: Run, run: RunStore) -> None:
    before = checkpoints(run)
    steps = sorted(int(name[5:13]) for name in run.list("checkpoints"))
    ended = tsgb("checkpoint", "replay", "r1", "--updates", "3", *ENV, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["first_step"], found["last_step"]) == (steps[-3], steps[-2])
    assert (found["deviation"], found["agrees"], found["where"]) == (0.0, True, "")
    assert 0 < found["moved"] < 1
    assert "in float32: another kind of processor" in ended.err
    after = checkpoints(run)
    assert before == {name: after[name] for name in before}
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"replays"}
    # From the named one to the end; both stretches together are told.
    [start] = [name for name in run.list("checkpoints") if int(name[5:13]) == steps[-2]]
    ended = tsgb("checkpoint", "replay", f"r1/checkpoints/{start}", "--updates", "99", *ENV)
    assert ended.code == 0, ended.err
    assert len(read_replays(run)) == 2
    share = (steps[-1] - steps[-3]) / CONFIG.total_steps
    assert f"replays agree with {share:.1%} of the run's updates" in ended.out
    assert "greatest deviation 0 (tolerance 0.0001; the weights moved by up to" in ended.out


def test_weights_that_no_training_gave(tsgb: Run, run: RunStore) -> None:
    def poison(files: dict[str, bytes]) -> None:
        tensors, about = decode_tensors(files["guard.safetensors"])
        name = next(iter(tensors))
        tensors[name].view(-1)[0] += 0.25
        files["guard.safetensors"] = encode_tensors(tensors, about)

    change_last(run, poison)
    words = ("checkpoint", "replay", "r1", "--updates", "1", *ENV)
    ended = tsgb(*words)
    assert ended.code == 1
    assert re.search(
        r"^greatest deviation 0.25 .*, in guard.safetensors/current/", ended.out, re.MULTILINE
    )
    assert "replays agree with 0.0% of" in ended.out
    assert re.search("tsgb: what step-.* holds is not what training from step-", ended.err)
    assert tsgb(*words, "--tolerance", "0.3").code == 0


def test_a_state_that_no_training_gave(tsgb: Run, run: RunStore) -> None:
    def forget(files: dict[str, bytes]) -> None:
        content: dict[str, Any] = json.loads(files["trainer_state.json"])
        content["state"]["buffer"].pop()
        files["trainer_state.json"] = json.dumps(content).encode()

    change_last(run, forget)
    ended = tsgb("checkpoint", "replay", "r1", "--updates", "1", *ENV, "--tolerance", "9")
    assert ended.code == 1
    assert "more than numbers differ, first in trainer_state.json/state/buffer" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    {
        "no updates": (["r1"], "Missing option '--updates'"),
        "none": (["r1", "--updates", "0"], "'--updates'.*0"),
        "no run": (["r9", "--updates", "1"], "there is nothing at .*/r9"),
        "consent": (["r1", "--updates", "1"], "--env tests.fakes.miniature:.*--trust-config"),
        "the newest": (["r1/latest", "--updates", "1"], "is a checkpoint, not a run: give"),
        "half a number": (["r1", "--updates", "1", "--tolerance", "nan", *ENV], "tolerance"),
    }.values(),
)
def test_wrong_input(tsgb: Run, run: RunStore, words: list[str], message: str) -> None:
    ended = tsgb("checkpoint", "replay", *words)
    assert ended.code == 2, ended.err
    assert re.search(message, ended.err)
    assert read_replays(run) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "wanted"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]}, Deviation(0.5, "a/1")),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, Deviation(math.inf, "a")),
        ({"a": torch.zeros(2)}, {"a": torch.full((2,), math.nan)}, Deviation(math.inf, "a")),
        ({"a": 1}, {"a": 2}, Deviation(math.inf, "a")),
        ({"a": 1.0}, {}, Deviation(math.inf, "a")),
        ([1.0], [1.0, 2.0], Deviation(math.inf, "")),
        ({"a": math.nan}, {"a": math.nan}, Deviation()),
        ({"a": math.nan}, {"a": 1.0}, Deviation(math.inf, "a")),
        ({"a": torch.ones(0)}, {"a": torch.ones(0)}, Deviation()),
    ],
)
def test_the_measure(theirs: object, ours: object, wanted: Deviation) -> None:
    assert deviation(theirs, ours) == wanted
