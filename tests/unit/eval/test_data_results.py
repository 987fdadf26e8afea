"""Figures on a user's files, recomputed from the items, and that no other figure counts them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.fakes import evaluation as fake
from tsgb.eval.records import (
    SCHEMA_PATH,
    DataFileRecord,
    DataResult,
    Item,
    ItemSource,
    Setup,
    Summary,
)
from tsgb.eval.report import render_report
from tsgb.eval.summarise import summarise

ARMS = {name: fake.ARMS[name] for name in ("none", "sft", "selfplay", "oracle")}
FILES = ("one.csv", "<b>two\u202e</b>.csv")
SEEDS = (0, 1)


def prompts(missing: int = 0) -> list[Item]:
    """240 prompts a file and seed in 60 groups; `missing` benign ones lack a verdict of sft."""
    rng = np.random.default_rng(3)
    out: list[Item] = []
    for seed in SEEDS:
        for file in FILES:
            for i in range(240):
                harmful = i % 3 == 0
                scores = {g: float(rng.normal() + 2 * harmful) for g in ("sft", "selfplay")}
                if i % 3 == 1 and i < 3 * missing:
                    del scores["sft"]
                out.append(
                    Item(
                        item_id=f"{i:032x}",
                        scenario_id=f"group-{i // 4}",
                        source=ItemSource.DATA,
                        file=file,
                        slice=f"kind {i % 2}",
                        seed=seed,
                        harmful=harmful,
                        scores=scores,
                        blocked={guard: z > 1 for guard, z in scores.items()},
                    )
                )
    return out


def record(name: str) -> DataFileRecord:
    return DataFileRecord(
        name=name,
        format="map",
        sha256="ab" * 32,
        available=500,
        drawn=241,
        too_long=1,
        groups=60,
        split_sha256="cd" * 32,
    )


def setup(files: Sequence[str] = FILES) -> Setup:
    return fake.setup(ARMS, SEEDS).model_copy(
        update={"data_files": [record(name) for name in files]}
    )


@pytest.fixture(scope="module")
def streams() -> list[Item]:
    return fake.items(ARMS, SEEDS, num_prompts=24, num_attacks=24)


@pytest.fixture(scope="module")
def summary(streams: list[Item]) -> Summary:
    return summarise([*prompts(), *streams], setup(), num_draws=200)


def found(summary: Summary, guard: str, file: str, name: str | None = None) -> DataResult:
    [result] = [
        r for r in summary.data_results if (r.guard, r.file, r.slice) == (guard, file, name)
    ]
    return result


@pytest.mark.parametrize("guard", ["sft", "selfplay"])
@pytest.mark.parametrize("name", [None, "kind 1"])
@pytest.mark.parametrize("file", FILES)
def test_rates_are_those_of_the_items(
    guard: str, name: str | None, file: str, summary: Summary
) -> None:
    items = [i for i in prompts() if i.file == file and name in {None, i.slice}]
    result = found(summary, guard, file, name)
    for rate, harmful in ((result.fpr, False), (result.fnr, True)):
        verdicts = [i.blocked[guard] != harmful for i in items if i.harmful == harmful]
        assert rate is not None
        assert rate.n == len(verdicts)
        assert rate.value == pytest.approx(np.mean(verdicts))
        assert rate.low <= rate.value <= rate.high
    wins: list[float] = []
    for seed in SEEDS:
        z = [[i.scores[guard] for i in items if (i.seed, i.harmful) == (seed, h)] for h in (0, 1)]
        wins.append(float(np.mean(np.less.outer(z[0], z[1]))))
    assert result.auroc is not None
    assert result.auroc.value == pytest.approx(np.mean(wins))


def test_guards_without_a_verdict_are_left_out(summary: Summary) -> None:
    assert {result.guard for result in summary.data_results} == {"sft", "selfplay"}


def test_no_other_figure_counts_them(summary: Summary, streams: list[Item]) -> None:
    alone = summarise(streams, setup(()), num_draws=200)
    fields = ("results", "unguarded", "comparisons", "claims", "verdict", "slices", "roc")
    for name in fields:
        assert getattr(alone, name) == getattr(summary, name)
    assert alone.data_results == []
    assert "data_results" not in json.loads(alone.model_dump_json())


def test_one_class_alone_has_one_rate_and_no_auroc(streams: list[Item]) -> None:
    items = [i for i in prompts() if i.file == "one.csv" and not i.harmful]
    result = found(summarise([*streams, *items], setup(), num_draws=50), "sft", "one.csv")
    assert result.fpr is not None
    assert (result.fnr, result.auroc) == (None, None)


def test_a_missing_verdict_widens_and_too_many_make_it_invalid(streams: list[Item]) -> None:
    few = summarise([*streams, *prompts(3)], setup(), num_draws=50)
    rate = found(few, "sft", "one.csv").fpr
    assert rate is not None
    assert rate.errors == 6
    many = summarise([*streams, *prompts(20)], setup(), num_draws=50)
    assert "verdicts of sft on benign prompts of one.csv" in [one.what for one in many.invalid]


def test_a_guard_without_any_verdict_is_no_guard_without_errors(streams: list[Item]) -> None:
    silent = [
        item.model_copy(
            update={
                "scores": {"selfplay": item.scores["selfplay"]},
                "blocked": {"selfplay": item.blocked["selfplay"]},
            }
        )
        for item in prompts()
    ]
    found = summarise([*streams, *silent], setup(), num_draws=50)
    assert {one.what for one in found.invalid} == {
        f"verdicts of sft on {kind} prompts of {file}"
        for kind in ("harmful", "benign")
        for file in FILES
    }


def test_the_summary_is_of_the_published_form(summary: Summary) -> None:
    document: dict[str, Any] = json.loads(summary.model_dump_json())
    jsonschema.validate(document, json.loads(SCHEMA_PATH.read_text(encoding="utf-8")))
    assert Summary.model_validate(document) == summary


def test_the_report_shows_files_and_categories_escaped(summary: Summary) -> None:
    page = render_report(summary)
    assert "one.csv: Self-play" in page
    assert "&lt;b&gt;two&lt;U+202E&gt;&lt;/b&gt;.csv" in page
    assert "\u202e" not in page
    assert "kind 1" in page
    assert "241 of 500 labelled prompts" in page
    assert "1 were left out, too long" in page
    assert "Your data" not in render_report(summary.model_copy(update={"data_results": []}))
