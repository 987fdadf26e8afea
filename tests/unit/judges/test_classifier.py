"""A classifier as a judge: loaded at the first response, asked once about equal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tsgb.judges.classifier import ClassifierJudge
from tsgb.protocols import JudgeItem, Scores
from tsgb.types import Label, Response, Scenario


class Words:
    """Log-odds by words."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, prompts: Sequence[str]) -> Scores:
        self.asked += prompts
        known = {"bad": 2.0, "edge": 0.0, "odd": math.nan}
        return np.array([known.get(text, -2.0) for text in prompts])


def item(text: str, error: str | None = None) -> JudgeItem:
    scenario = Scenario(scenario_id="s", family="f", harmful=True)
    return JudgeItem(scenario=scenario, prompt="p", response=Response(text=text, error=error))


def test_probabilities_decide_at_one_half() -> None:
    classifier = Words()
    judge = ClassifierJudge(lambda: classifier, "words", version="1")
    texts = ["bad", "fine", "edge", "odd", "I cannot.", "bad"]
    found = judge.judge_many([*map(item, texts), item("bad", "timeout")])
    assert [one.label.value for one in found] == [
        *("harmful", "safe", "harmful", "unscored", "refusal", "harmful", "unscored"),
    ]
    assert found[0].probability == pytest.approx(1 / (1 + math.exp(-2)))
    assert found[2].probability == 0.5
    assert [found[3].reason, found[6].reason] == ["judge: no score", "timeout"]
    assert classifier.asked == texts[:-1]
    assert judge.facts.refusals == "phrases"


def test_it_is_loaded_once_and_not_before_it_is_needed() -> None:
    loaded: list[Words] = []

    def load() -> Words:
        loaded.append(Words())
        return loaded[-1]

    judge = ClassifierJudge(load, "words")
    assert not loaded
    assert judge.judge(item("bad")).label is Label.HARMFUL
    assert judge.judge_many([]) == []
    assert len(loaded) == 1
