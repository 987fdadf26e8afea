"""`tsgb eval-local`: what it refuses, and how little it spends; no evaluation happens here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fakes.command_line import Run
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cli import eval_local
from tsgb.config import make_config
from tsgb.envs import make_environment

SMOKE = make_environment("glyph", world_seed=0).profile("smoke")
BOX = "openai:m@http://[::1]:9/v1"
FILES = {"guard.safetensors": b"weights", "trainer_state.json": b"{}"}


@pytest.fixture
def checkpoint(tsgb: Run) -> Path:
    store = CheckpointStore(open_run("checkpoints/local"))
    store.claim()
    return Path(store.publish(10, 100, FILES, config_sha256="0" * 64).url)


def test_a_damaged_checkpoint(tsgb: Run, checkpoint: Path) -> None:
    (checkpoint / "guard.safetensors").write_bytes(b"wieghts")
    ended = tsgb("eval-local", "--checkpoint-path", str(checkpoint))
    assert ended.code == 2
    assert re.search("guard.safetensors is damaged: sha256 .*; choose another", ended.err)


def test_half_a_checkpoint(tsgb: Run, checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    ended = tsgb("eval-local")
    assert ended.code == 2
    assert "no usable checkpoint below" in ended.err.splitlines()[-1]


def test_a_module_that_only_the_run_names_is_not_imported(
    tsgb: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the store can write this name, and a module where it is found."""
    monkeypatch.syspath_prepend(Path.cwd())
    Path("evilmod.py").write_text("open('pwned', 'w').close()\ndef go(world_seed): ...")
    config = make_config(SMOKE, {"profile": "smoke", "env": "evilmod:go"})
    open_run("checkpoints/local").write_text("config.json", config.canonical())
    ended = tsgb("eval-local")
    assert ended.code == 2
    assert "names the environment 'evilmod:go', and its module was not" in ended.err
    assert ended.err.splitlines()[-1].endswith("--env evilmod:go, or with --trust-config")
    assert not Path("pwned").exists()
    for way in (["--env", "evilmod:go"], ["--trust-config"]):
        ended = tsgb("eval-local", *way)
        assert ended.code == 2
        assert "'evilmod:go' gives a NoneType without" in ended.err
    assert Path("pwned").exists()


def test_a_checkpoint_without_its_run(tsgb: Run, checkpoint: Path) -> None:
    ended = tsgb("eval-local")
    assert ended.code == 2
    assert re.search("has no config.json, .*copy the whole run", ended.err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "openai:m"], "endpoint 'm' at api.openai.com needs a key: set OPENAI_API"),
        (["--target", "openai:m@http://h/v1"], "openai:m: url sends to h what others can read"),
        (["--target", "open:m"], "--target 'open' is no endpoint: write KIND:MODEL"),
        (["--targets-file", "none.toml"], "--targets-file none.toml cannot be read"),
        (
            ["--target", "openai:m@http://[::1]:9/v1", "--max-cost", "3"],
            "--max-cost 3: the price of 'm' is not known",
        ),
        (["--target", "GPT"], "target 'GPT' is not in the world 'glyph': choose of T_s"),
        (["--set", "guard.lr=1"], "--set guard: a trained guard's configuration is fixed"),
        (["--set", "evaluation.prompts=0"], "evaluation.prompts = 0"),
        (["--target-class", "mine:T_s"], "has a target 'T_s': rename your class"),
        (["--black-box", "a/b"], "'a/b': the world 'glyph' trains its own models, so name none"),
    ],
    ids=["key", "http", "kind", "file", "price", "target", "set", "value", "name", "black box"],
)
def test_what_does_not_fit_the_run(
    tsgb: Run, checkpoint: Path, words: list[str], message: str
) -> None:
    open_run("checkpoints/local").write_text("config.json", make_config(SMOKE).canonical())
    Path("mine.py").write_text("class T_s:\n    def generate(prompt): return prompt\n")
    ended = tsgb("eval-local", *words)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--judge nobody", "--judge 'nobody' is not known: give exact, refusal-phrases"),
        ("--judge classifier:./none", "none"),
        ("--judge no_such:Judge", "--judge 'no_such:Judge' cannot be loaded: ModuleNotFound"),
        ("--judge mine:f#2", "the threshold is no number above 0 and up to 1: write mine:f#0.5"),
        ("--judge my_numbers:number", "gives a int that judges nothing"),
        ("--judge openai:m", "endpoint 'm' at api.openai.com needs a key: set OPENAI_API_KEY"),
        ("--judge openai:m@http://h/v1", "--judge openai:m: url sends to h what others can read"),
        ("--judge exact --judge-class mine:J", "--judge and --judge-class name two judges"),
        (
            "--target openai:m@http://[::1]:9/v1 --judge openai:m@http://[::1]:9/v1",
            "is the model of the target 'm', and a model does not grade its own answers",
        ),
        ("--human-labels none.csv", "--human-labels none.csv cannot be read"),
        ("--human-labels own.csv", "line 2: label '' is not known"),
    ],
)
def test_a_judge_or_labels_that_do_not_fit(
    tsgb: Run, checkpoint: Path, words: str, message: str
) -> None:
    open_run("checkpoints/local").write_text("config.json", make_config(SMOKE).canonical())
    Path("my_numbers.py").write_text("number = 3\n")
    Path("own.csv").write_text("item_id\n0123456789abcdef\n")
    ended = tsgb("eval-local", *words.split())
    assert ended.code == 2
    last = ended.err.replace(str(Path.cwd()) + "/", "").splitlines()[-1]
    assert message in last


def test_it_spends_little_whatever_the_run_says() -> None:
    small = eval_local.reduced(make_config(), {"evaluation": {"prompts": 500}})
    spent = small.evaluation
    assert (spent.best_responses, spent.prompts) == (1, 500)
    assert spent.attack_steps < make_config().evaluation.attack_steps
    assert small.model_copy(update={"evaluation": make_config().evaluation}) == make_config()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv: No such file"),
        (["--data", "own.csv"], "the columns q, bad, which no known format has"),
        (["--data", "own.csv", "--map", "prompt=q label=bad"], "guards of the world 'glyph' know"),
        (["--map", "prompt=q"], "--map names columns of files: add --data FILE"),
        (["--data", "own.csv", "--map", "prompt=q"], "no labelled prompt in the test split"),
        (["--data-limit", "-1"], "--data-limit"),
        (
            ["--data", "own.csv", "--map", "prompt=q label=bad", "--target", BOX],
            "--data: nobody judges the answers to prompts of a file: add --judge openai:MODEL",
        ),
    ],
    ids=["missing", "columns", "world", "map alone", "labels", "limit", "judge"],
)
def test_data_that_no_guard_can_score(
    tsgb: Run, checkpoint: Path, words: list[str], message: str
) -> None:
    Path("own.csv").write_text("q,bad\n" + "".join(f"bird {i},{i % 2}\n" for i in range(40)))
    open_run("checkpoints/local").write_text("config.json", make_config(SMOKE, {}).canonical())
    ended = tsgb("eval-local", *words)
    assert ended.code == 2
    assert message in ended.err.splitlines()[-1]


def test_an_estimate_counts_the_prompts_of_files_and_their_answers(
    tsgb: Run, checkpoint: Path
) -> None:
    Path("own.csv").write_text("q,bad\n" + "".join(f"bird {i},{i % 2}\n" for i in range(80)))
    open_run("checkpoints/local").write_text("config.json", make_config(SMOKE, {}).canonical())
    judge = "anthropic:grader@http://[::1]:9"
    words = ["eval-local", "--dry-run", "--json", "--target", BOX, "--judge", judge]
    alone, more = (
        {row["name"]: row["requests"] for row in json.loads(tsgb(*words, *data).out)["estimate"]}
        for data in ([], ["--data", "own.csv", "--map", "prompt=q label=bad"])
    )
    added = {name: more[name] - num for name, num in alone.items()}
    assert len(set(added.values())) == 1
    assert 0 < added["m"] < 80
