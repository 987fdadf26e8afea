"""`tsgb score`: a line out for each line in, whatever the lines are and wherever it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.command_line import Run
from tsgb.export.loading import load_guard
from tsgb.export.scoring import BLOCK, MAX_LINE_BYTES

NUM = 2 * BLOCK + 5


@pytest.fixture
def guard(tsgb: Run, here: Path) -> Path:
    assert tsgb("export-guard", "../store/full", "guard").code == 0
    return here / "guard"


@pytest.fixture
def score(tsgb: Run, guard: Path) -> Run:
    return lambda *words: tsgb("score", "--guard", str(guard), *words)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(path: Path) -> Path:
    path.write_text("".join(f"o{i % 7} a{i % 5}\n" for i in range(NUM)))
    return path


def test_lines_of_a_file(score: Run, guard: Path, tmp_path: Path) -> None:
    source = prompts(tmp_path / "prompts")
    ended = score(str(source))
    said = [json.loads(line) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, f"{NUM} lines, 0 without a score\n")
    assert [record["line"] for record in said] == list(range(1, NUM + 1))
    wanted = load_guard(guard).assess(source.read_text().splitlines())
    for record, found in zip(said, wanted, strict=True):
        assert record["verdict"] == found.verdict
        assert record["score"] == pytest.approx(found.score, abs=1e-6)
        assert record["probability"] == pytest.approx(found.probability, abs=1e-6)


def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_file(
    score: Run, tmp_path: Path
) -> None:
    source, out = prompts(tmp_path / "prompts"), tmp_path / "scores"
    assert score(str(source), "--output", str(out)).code == 0
    whole = out.read_bytes()
    block = len(b"".join(whole.splitlines(keepends=True)[:BLOCK]))
    for kept in (0, 5, block - 1, block, block + 1, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:kept])
        assert score(str(source), "--output", str(out)).code == 0
        assert out.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
def test_scores_of_an_earlier_go_may_differ_by_the_rounding_of_their_dtype(
    tsgb: Run, tmp_path: Path, export_family: Callable[[str], Path]
) -> None:
    """As those of another machine do, whose kernels add up in another order."""
    export_family("llama3")
    source, out = prompts(tmp_path / "prompts"), tmp_path / "scores"
    codes: dict[tuple[str, float], int] = {}
    for dtype in ("float32", "bfloat16"):
        words = ("score", "--guard", "out", str(source), "--output", str(out), "--dtype", dtype)
        for difference in (5e-4, 0.15, 0.4):
            out.unlink(missing_ok=True)
            assert tsgb(*words).code == 0
            earlier = lines_of(out)
            for record in earlier:
                record["score"] += difference
            out.write_text("".join(json.dumps(record) + "\n" for record in earlier[:-3]))
            before = out.read_bytes()
            codes[dtype, difference] = tsgb(*words).code
            assert (out.read_bytes() == before) == (codes[dtype, difference] == 2)
    assert codes == {
        ("float32", 5e-4): 0,
        ("float32", 0.15): 2,
        ("float32", 0.4): 2,
        ("bfloat16", 5e-4): 0,
        ("bfloat16", 0.15): 0,
        ("bfloat16", 0.4): 2,
    }


def test_the_device_is_an_option(score: Run, tmp_path: Path) -> None:
    source = prompts(tmp_path / "prompts")
    assert score(str(source), "--device", "cpu").out == score(str(source)).out
    refusals = {"tpu": "device 'tpu' is not known: choose of auto, cpu, cuda, cuda:N and mps"}
    if not torch.cuda.is_available():
        refusals["cuda:1"] = "device 'cuda:1': torch finds no CUDA cards here; set it to 'cpu' or"
    for device, reason in refusals.items():
        ended = score(str(source), "--device", device)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert reason in ended.err


def test_what_is_no_prompt_is_recorded_in_its_line(score: Run, tmp_path: Path) -> None:
    source = tmp_path / "prompts"
    rows = [
        b'{"id": "a", "text": "o1 a2"}',
        b"",
        b'{"id": 7, "prompt": "o1"}',
        b'{"text": "\\ud800"}',
        b"[1]",
        b"{",
        b'{"text": "\xff"}',
        b"x" * (2 * MAX_LINE_BYTES + 3),
        b"[" * 100_000,
        b'{"id": [1], "text": "o2"}',
    ]
    source.write_bytes(b"\r\n".join(rows))
    ended = score(str(source), "--field", "text", "--output", str(tmp_path / "scores"))
    assert (ended.code, ended.err) == (1, "10 lines, 8 without a score\n")
    said = lines_of(tmp_path / "scores")
    assert [record.get("id") for record in said] == ["a", None, 7, *[None] * 7]
    assert [n for n, record in enumerate(said) if "score" in record] == [0, 9]
    errors = [record["error"] for record in said if "error" in record]
    reasons = [
        "empty",
        "'text' holds no text",
        "surrogate",
        "not a JSON object",
        "not JSON",
        "not UTF-8 at byte 10",
        "longer than",
        "not JSON",
    ]
    for found, wanted in zip(errors, reasons, strict=True):
        assert wanted in found


def test_another_file_is_never_touched(score: Run, tmp_path: Path) -> None:
    source, out = prompts(tmp_path / "prompts"), tmp_path / "scores"
    out.write_text("precious\n")
    ended = score(str(source), "--output", str(out))
    assert (ended.code, out.read_text()) == (2, "precious\n")
    assert "holds something else than scores: name another file" in ended.err
    out.unlink()
    score(str(source), "--output", str(out))
    before = out.read_bytes()
    first, _, *others = before.splitlines(keepends=True)
    damaged = b"".join([first, b"[" * 200_000 + b"\n", *others[:14]])
    out.write_bytes(damaged)
    ended = score(str(source), "--output", str(out))
    assert (ended.code, out.read_bytes()) == (2, damaged)
    assert "line 1 to 16 differ" in ended.err
    out.write_bytes(before)
    source.write_text("o1 a1 o2 a2 o3\n" * NUM)
    ended = score(str(source), "--output", str(out))
    assert (ended.code, out.read_bytes()) == (2, before)
    assert "line 17 to 32 differ" in ended.err
    for words, reason in (
        (["nowhere"], "name a file of prompts"),
        ([str(source), "--preset", "x"], "choose of run, strict"),
        ([str(source), "--output", "/proc/x"], "name another file"),
    ):
        ended = score(*words)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert reason in ended.err


def test_the_self_test_comes_first(score: Run, guard: Path, tmp_path: Path) -> None:
    source, out = prompts(tmp_path / "prompts"), tmp_path / "scores"
    ended = score(str(source), "--dtype", "bfloat16")
    assert (ended.code, ended.out) == (2, "")
    assert "has no thresholds in 'bfloat16' (models of the world" in ended.err
    about = json.loads((guard / "guard.json").read_text())
    test = about["dtypes"]["float32"]["self_test"][1]
    test["score"] += 0.1
    (guard / "guard.json").write_text(json.dumps(about))
    ended = score(str(source), "--output", str(out))
    assert (ended.code, ended.out, out.exists()) == (2, "", False)
    [line] = ended.err.splitlines()
    assert "a prompt of its self-test scores" in line
    assert f"in float32 instead of {test['score']:.6g} within 0.01" in line
    script = subprocess.run(
        [sys.executable, str(guard / "score.py"), "x"], capture_output=True, text=True, check=False
    )
    assert (script.returncode, script.stdout) == (1, "")
    assert "a prompt of the self-test scores" in script.stderr
