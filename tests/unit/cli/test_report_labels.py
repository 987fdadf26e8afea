"""`tsgb report --format labels --with-texts`: what people need to see, and the way back."""

from __future__ import annotations

import csv
import json
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.command_line import Ended, Run
from tests.fakes.endpoint_server import OPENAI, Fault, good_body, serving
from tests.fakes.miniature import (
    SHORT_EVALUATION,
    MiniatureEnvironment,
    ScriptedTarget,
    miniature_config,
)
from tsgb.checkpoint.run import open_run
from tsgb.config import RunConfig
from tsgb.eval.additions import Additions
from tsgb.eval.calibrated import no_guard
from tsgb.eval.cells import scripted_items
from tsgb.eval.human_labels import HumanLabels
from tsgb.eval.judge_results import examine
from tsgb.eval.logged_target import LoggedTargets
from tsgb.eval.merge import Part, merge
from tsgb.eval.records import Summary
from tsgb.eval.request import write_request
from tsgb.eval.streams import fixed_prompts
from tsgb.judges.phrases import RefusalPhrasesJudge
from tsgb.targets.endpoint import EndpointSpec
from tsgb.types import (
    LabelledPrompt,
    Response,
    Scenario,
    Split,
    StreamKind,
)

ASKED, SAID = f"asked-{secrets.token_hex(12)}", f"said-{secrets.token_hex(12)}"
"""Words of this session in each harmful prompt, and in each answer that has a text."""
TAIL = 4_000
SEEDS = (0, 1)
COLUMNS = ["item_id", "target", "answer", "sample", "prompt_text", "answer_text", "label"]


class QuotedWorld(MiniatureEnvironment):
    """Its harmful prompts look like formulas and turn the text around; one comes twice."""

    def stream(
        self, kind: StreamKind, split: Split, rng: Random, num: int
    ) -> Sequence[LabelledPrompt]:
        drawn = super().stream(kind, split, rng, num)
        if not kind.harmful:
            return drawn
        quoted = [replace(p, text=f'={ASKED} "{p.text}"\u202e') for p in drawn]
        return [*quoted[:-1], quoted[0]]

    def redact(self, scenario: Scenario, text: str) -> str | None:
        return None


WORLD = QuotedWorld(0)
ENV = f"{__name__}:QuotedWorld"
NAMED = ("--env", ENV)


def config_of(seed: int, scripted: int = 12) -> RunConfig:
    sizes = {"evaluation": {**SHORT_EVALUATION, "scripted": scripted}}
    return miniature_config(sizes, {"seed": seed, "env": ENV})


def answer_to(number: int) -> Fault:
    """Every third prompt is declined without a text."""
    if number % 3 == 0:
        return Fault(body=good_body(OPENAI, "", "content_filter"))
    word = "COMPLY" if number % 2 else "no"
    return Fault(body=good_body(OPENAI, f"\x1b[2J{SAID}\n@{word}" + "x" * TAIL))


def evaluated(store: Path, cache: Path, labels: HumanLabels | None = None) -> Summary:
    """Evaluate two runs on an endpoint and on a model of this machine, with few prompts."""
    texts = [p.text for seed in SEEDS for p in fixed_prompts(WORLD, config_of(seed)) if p.harmful]
    plan: dict[str, list[Fault]] = {}
    for number, text in enumerate(texts):
        plan.setdefault(text, []).append(answer_to(number))
    parts: list[Part] = []
    with serving(plan) as server:
        box = EndpointSpec.model_validate(
            {"name": "big", "kind": OPENAI, "model": "m", "url": server.openai}
        )
        added = Additions(endpoints=[box])
        for seed in SEEDS:
            config, run = config_of(seed), open_run(str(store / f"r{seed}"))
            run.write_text("config.json", config_of(seed, scripted=30).canonical())
            told = None if labels is None else labels.document()
            write_request(run, "e1", {}, ["T_s", "big"], endpoints=[box], human_labels=told)
            if "cells" not in run.list("reports/e1"):
                local = ScriptedTarget(lambda _: Response(text="COMPLY"))
                with LoggedTargets(cache / "responses", "e1", config) as logged:
                    asked = logged.wrap(added.load_targets(lambda: None).values())
                    targets = [local, asked["big"]]
                    items, _ = scripted_items(
                        WORLD, config, [no_guard()], targets, RefusalPhrasesJudge()
                    )
                lines = [item.model_dump(mode="json", exclude_defaults=True) for item in items]
                cell: dict[str, Any] = {"items": lines, "judge": examine(RefusalPhrasesJudge())}
                cell |= {"thresholds": [], "payoff": [], "curves": [], "variance": None}
                run.write_json("reports/e1/cells/scripted.json", cell)
                run.write_json("reports/e1/cells/T_s.0.json", {"items": []})
            parts.append(Part(run, config))
        return merge(parts, added.extend(WORLD), "e1", "tsgb eval-local")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two runs, and the cache beside it."""
    place = tmp_path_factory.mktemp("labels")
    evaluated(place / "store", place / "cache")
    return place


@pytest.fixture
def place(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tsgb: Run) -> Path:
    """A copy of both, which the settings name."""
    shutil.copytree(stored, tmp_path / "copy")
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "copy" / "cache"))
    return tmp_path / "copy"


def exported(tsgb: Run, place: Path, *words: str) -> tuple[Ended, list[dict[str, str]]]:
    out = place / "labels.csv"
    where = str(place / "store" / "r0")
    form = ["--format", "labels", "--with-texts", "--out", str(out)]
    ended = tsgb("report", where, *form, *(words or NAMED))
    return ended, list(csv.DictReader(out.open(newline=""))) if out.exists() else []


def holding(place: Path, word: str) -> set[str]:
    """Names of the files that hold a word."""
    files = (path for path in place.rglob("*") if path.is_file())
    return {path.name for path in files if word.encode() in path.read_bytes()}


def test_texts_are_shown_escaped_cut_and_to_their_owner_alone(tsgb: Run, place: Path) -> None:
    assert holding(place, ASKED) == set()
    (log,) = (place / "cache" / "responses").glob("big-*.jsonl")
    ended, rows = exported(tsgb, place)
    assert (ended.code, ended.out) == (0, "")
    assert list(rows[0]) == COLUMNS
    assert {row["target"] for row in rows} == {"T_s", "big"}
    asked = {p.text for seed in SEEDS for p in fixed_prompts(WORLD, config_of(seed))}
    assert {row["prompt_text"] for row in rows} <= {
        "'" + text.replace("\u202e", "<U+202E>") for text in asked
    }
    for row in rows:
        if row["target"] == "T_s":
            assert row["answer_text"] == ""
    answers = {row["answer_text"] for row in rows if row["target"] == "big"}
    beginning = f"<U+001B>[2J{SAID}\n@"
    whole = len(f"\x1b[2J{SAID}\n@no") + TAIL
    assert "<refused by the service, without a text>" in answers
    rest = answers - {"<refused by the service, without a text>"}
    assert len(rest) == 2
    for text in rest:
        assert text.startswith(beginning)
        assert text.endswith(("more)", f"({whole - 3000} more)"))
        assert len(text) < 3100
    num = sum(row["target"] == "T_s" for row in rows)
    told = ended.err.splitlines()
    assert any(
        line.startswith(f"{num} answers are blank (T_s {num}): no response log in ")
        for line in told
    )
    assert "labels.csv holds texts of third parties" in told[-1]
    assert stat.S_IMODE((place / "labels.csv").stat().st_mode) == 0o600
    assert holding(place, ASKED) == {"labels.csv"}
    assert holding(place, SAID) == {"labels.csv", log.name}
    assert not {ASKED, SAID} & set((ended.out + ended.err).split())
    assert b"\x1b" not in (place / "labels.csv").read_bytes()


def test_each_answer_to_a_prompt_that_is_asked_twice_is_in_its_row(tsgb: Run, place: Path) -> None:
    _, rows = exported(tsgb, place)
    by_digest: dict[str, set[str]] = {}
    for row in rows:
        by_digest.setdefault(row["answer"], set()).add(row["answer_text"])
    assert all(len(texts) == 1 for texts in by_digest.values())
    asked = Counter(row["item_id"] for row in rows if row["target"] == "big")
    assert 2 in asked.values()


def test_what_people_say_of_them_corrects_the_evaluation(tsgb: Run, place: Path) -> None:
    _, rows = exported(tsgb, place)
    refused = [row["answer_text"].startswith("<refused by the service") for row in rows]
    for number, row in enumerate(rows):
        seen = row["answer_text"]
        missed = refused[number] and sum(refused[:number]) < 3
        row["label"] = "" if not seen else "harmful" if "@COMPLY" in seen or missed else "safe"
    with (place / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    labels = HumanLabels.read(place / "labels.csv")
    num = sum(bool(row["label"]) for row in rows)
    assert len(labels.labels) == num > 20
    summary = evaluated(place / "store", place / "cache", labels)
    assert summary.judge is not None
    assert summary.judge.human is not None
    assert (summary.judge.human.num, summary.judge.human.unused) == (num, 0)
    assert summary.judge.human.misses == 3
    assert summary.judge.corrected
    assert holding(place / "store", ASKED) == holding(place / "store", SAID) == set()
    _, again = exported(tsgb, place)
    assert {row["item_id"] + row["target"]: row["label"] for row in again} == {
        row["item_id"] + row["target"]: row["label"] for row in rows
    }


def test_a_text_of_another_digest_is_not_shown(tsgb: Run, place: Path) -> None:
    """A target may have the name of an earlier one, and a world may draw other prompts today."""
    (log,) = (place / "cache" / "responses").glob("big-*.jsonl")
    log.write_text(log.read_text().replace("COMPLY", "REPLY"))
    _, rows = exported(tsgb, place)
    assert not any("REPLY" in row["answer_text"] for row in rows)
    results = place / "store" / "r0" / "reports" / "e1" / "results.jsonl"
    items = [json.loads(line) for line in results.read_text().splitlines()]
    for item in items:
        item["item_id"] = "0" + item["item_id"][1:]
    results.write_text("".join(json.dumps(item) + "\n" for item in items))
    ended, rows = exported(tsgb, place)
    lost = sum(not row["prompt_text"] for row in rows)
    assert lost
    assert f"{lost} prompts are blank, and their answers: this version of the world" in ended.err


def test_on_another_machine_only_prompts_are_there(tsgb: Run, place: Path) -> None:
    shutil.rmtree(place / "cache")
    ended, rows = exported(tsgb, place)
    assert {row["answer_text"] for row in rows} == {""}
    assert all(ASKED in row["prompt_text"] for row in rows)
    assert f"{len(rows)} answers are blank (T_s " in ended.err
    assert {path.name for path in place.iterdir()} == {"store", "labels.csv"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--with-texts --out o.csv", "add --format labels --out FILE"),
        ("--with-texts --format labels", "which no command prints: add --format labels --out"),
        (f"--format labels --env {ENV}", "--env and --trust-config are for --with-texts"),
        ("--format labels --with-texts --out o.csv", f"names the environment {ENV!r}, and its"),
    ],
)
def test_what_is_refused(tsgb: Run, place: Path, words: str, message: str) -> None:
    ended = tsgb("report", str(place / "store" / "r0"), *words.split())
    assert ended.code == 2
    assert message in ended.err
    assert ended.out == ""
    assert not Path("o.csv").exists()


def test_an_evaluation_apart_from_its_run(tsgb: Run, place: Path) -> None:
    shutil.copytree(place / "store" / "r0" / "reports" / "e1", place / "e1")
    form = ("--format", "labels", "--with-texts", "--out", "o.csv")
    ended = tsgb("report", str(place / "e1"), *form)
    assert ended.code == 2
    assert "has no config.json" in ended.err
