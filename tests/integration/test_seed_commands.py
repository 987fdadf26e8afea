"""The two commands of the first README, as a user types them: real processes, an empty folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]  # 80 s of CPU time in all

ROOT = Path(__file__).parents[2]
TRAIN = "train-local --episodes 100 --checkpoint-interval 10"
EVALUATE = "eval-local --checkpoint-path ./checkpoints/latest"
SHORT = "train-local --episodes 40 --checkpoint-interval 1 --run-id short"
FIGURE = r"\d+\.\d+ %|0 / \d+"

Start = Callable[[str], "subprocess.Popen[str]"]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Start]:
    """Start `tsgb` in the folder, with a cache that holds no model at first."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))}
    environment["TSGB_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    environment["PYTHONPATH"] = str(ROOT)
    started: list[subprocess.Popen[str]] = []

    def begin(words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tsgb.cli", *words.split()],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def trained(start: Start, folder: Path) -> Path:
    """The run after the first command."""
    assert list(folder.iterdir()) == []
    code, out, err = finish(start(TRAIN))
    assert code == 0, err
    assert re.search(r"100 of 100 updates, 10 checkpoints in .*/checkpoints/local\n", out)
    assert "ASR guarded" in out
    return folder / "checkpoints" / "local"


@pytest.fixture(scope="module")
def evaluated(start: Start, trained: Path) -> tuple[str, str, str]:
    """Both streams of the second command, and the evaluation's directory."""
    code, out, err = finish(start(EVALUATE))
    assert code == 0, err
    [reports] = (trained / "reports").iterdir()
    return out, err, str(reports)


def test_all_ten_checkpoints_are_kept(trained: Path) -> None:
    places = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert [int(name.split("-")[1]) for name in places] == list(range(10, 101, 10))
    for place in (trained / "checkpoints").iterdir():
        names = {path.name for path in place.iterdir()}
        assert names >= {"attacker.safetensors", "guard.safetensors", "trainer_state.json"}


def test_a_table_and_a_report(evaluated: tuple[str, str, str]) -> None:
    out, _, directory = evaluated
    for word in ("No guard", "Self-play", "T_s", "B_near", "B_mid", "B_far", "Fresh attackers"):
        assert word in out
    assert len(re.findall(FIGURE, out)) > 20
    assert out.endswith(f"Report: {directory}/report.html\n")
    page = Path(directory, "report.html").read_text()
    assert "<script" not in page
    assert "</html>" in page
    summary = json.loads(Path(directory, "summary.json").read_text())
    assert {row["target"] for row in summary["results"]} == {"T_s", "B_near", "B_mid", "B_far"}
    lines = Path(directory, "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in lines} == {"scripted", "adaptive", "benign"}


def test_both_again_say_that_all_is_done(start: Start, evaluated: tuple[str, str, str]) -> None:
    first, second = start(TRAIN), start(EVALUATE)
    code, out, _ = finish(first)
    assert code == 0
    assert "was done already: 100 of 100 updates, 10 checkpoints" in out
    code, out, err = finish(second)
    assert (code, out) == (0, evaluated[0])
    assert "evaluated already" in err


def test_half_an_evaluation_is_made_whole(start: Start, evaluated: tuple[str, str, str]) -> None:
    """A worker that is killed while it writes to a WebDAV store leaves half a document."""
    out, _, directory = evaluated
    cell = min(Path(directory, "cells").glob("*B_far*"))
    before = cell.read_text()
    for path in (Path(directory, "summary.json"), cell):
        path.write_text("{")
    code, again, err = finish(start(EVALUATE))
    assert (code, again) == (0, out), err
    assert cell.read_text() == before


@pytest.mark.slow
@pytest.mark.usefixtures("trained")  # for its models
def test_interrupted_and_resumed(start: Start, folder: Path) -> None:
    """Ctrl-C saves; meanwhile nobody else may train this run; the same command goes on."""
    run = folder / "checkpoints" / "short"
    first = start(SHORT)
    deadline = time.monotonic() + 300
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the second one looks
    code, _, err = finish(start(SHORT))
    assert code == 2
    assert f"is in use by process {first.pid}: " in err.splitlines()[-1]
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGINT)
    code, out, err = finish(first)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "tsgb: stopped by SIGINT; the same command goes on from here"
    saved = max(int(path.name.split("-")[1]) for path in run.glob("checkpoints/*"))
    assert saved < 40
    code, out, err = finish(start(f"{SHORT} --json"))
    assert code == 0, err
    document = json.loads(out)
    assert document["step"] == 40
    assert [row["step"] for row in document["checkpoints"]] == list(range(1, 41))
    attempts = {row["checkpoint"].split("-a")[1][:4] for row in document["checkpoints"]}
    assert attempts == {"0001", "0002"}


@pytest.mark.slow
def test_a_black_box_and_a_judge_of_ones_own(start: Start, trained: Path, folder: Path) -> None:
    (folder / "mine.py").write_text(
        "class Parrot:\n"
        "    def generate(self, prompt: str) -> str:\n"
        "        return prompt\n"
        "class Strict:\n"
        "    def judge(self, response: str, is_benign: bool) -> bool:\n"
        "        return is_benign\n"
        "class Text:\n"
        "    def judge(self, response: str, is_benign: bool) -> str:\n"
        "        return 'False'\n"
        "class Down:\n"
        "    def generate(self, prompt: str) -> str:\n"
        "        raise ConnectionError('no route')\n"
    )
    small = " ".join(
        f"--set evaluation.{name}={value}"
        for name, value in {
            "prompts": 16,
            "scripted": 40,
            "warmup_steps": 1,
            "attack_steps": 1,
        }.items()
    )
    own = f"{EVALUATE} --target T_s {small} --json"
    asked = start(f"{own} --target-class mine:Parrot --judge-class mine:Strict")
    failing = start(f"{own} --target-class mine:Down")
    unsure = start(f"{own} --judge-class mine:Text")
    code, out, err = finish(asked)
    assert code == 0, err
    bare = {
        row["target"]: row["asr_no_guard"]
        for row in json.loads(out)["results"]
        if row["guard"] == "none"
    }
    assert bare["Parrot"]["value"] == bare["T_s"]["value"] == 1.0
    code, out, err = finish(failing)
    assert (code, json.loads(out)["valid"]) == (3, False)
    assert re.search(r"tsgb: not valid: 120 of 120 items .* harmful prompts to Down\.", err)
    assert "not asked (100 items), ConnectionError (20 items)" in err
    assert "<strong>Not valid</strong>" in Path(json.loads(out)["report"]).read_text()
    code, out, err = finish(unsure)
    assert (code, json.loads(out)["valid"]) == (3, False)
    assert re.search(
        r"not valid: 120 of 120 items .* harmful prompts to T_s\..*judge gave str", err
    )
    assert not any("Down" in path.name for path in trained.rglob("cells/*")), "nobody attacked it"


@pytest.mark.slow
def test_a_killed_evaluation_asks_a_black_box_only_the_rest(
    start: Start, trained: Path, folder: Path
) -> None:
    """Also one that declares no name and version: it is the same evaluation until it is done."""
    (folder / "slow.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "class Slow:\n"
        "    def generate(self, prompt: str) -> str:\n"
        "        with Path('asked').open('a') as file:\n"
        "            file.write(prompt + '\\n')\n"
        "        time.sleep(0.02)\n"
        "        return prompt\n"
    )
    sizes = {"prompts": 16, "scripted": 40, "warmup_steps": 1, "attack_steps": 1}
    small = " ".join(f"--set evaluation.{name}={value}" for name, value in sizes.items())
    command = f"{EVALUATE} --target T_s {small} --target-class slow:Slow --json"
    asked = folder / "asked"

    def questions() -> list[str]:
        return asked.read_text().splitlines() if asked.exists() else []

    killed = start(command)
    deadline = time.monotonic() + 300
    while len(questions()) < 100:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    finish(killed)
    code, out, err = finish(start(command))
    assert code == 0, err
    assert "going on with the evaluation that began at" in err
    first, attacks = questions()[:241], questions()[241:]
    code, again, err = finish(start(f"{command} --fresh"))
    assert code == 0, err
    whole = questions()[241 + len(attacks) :]
    assert set(whole[:240]) == set(first)
    assert len(questions()) - 1 == 2 * len(whole), "the kill cost one question at most"
    results = [json.loads(text)["results"] for text in (out, again)]
    assert results[0] == results[1]
