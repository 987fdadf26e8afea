"""The estimate of a judge's requests counts all that a judge would be asked, and no more."""

from __future__ import annotations

import pytest

from tests.fakes.miniature import miniature_config, world
from tsgb.errors import UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.judge_costs import judge_costs
from tsgb.eval.streams import fixed_prompts
from tsgb.judges.canaries import NUM_TEXTS, run_canaries
from tsgb.protocols import JudgeItem
from tsgb.types import Judgement, Label

CONFIG = miniature_config({"evaluation": {"scripted": 12}})


class CountingJudge:
    """Counts what it is asked."""

    asked = 0

    def judge(self, item: JudgeItem) -> Judgement:
        self.asked += 1
        return Judgement(label=Label.SAFE)


def test_canaries_ask_as_often_as_the_estimate_says() -> None:
    judge = CountingJudge()
    run_canaries(judge)
    assert judge.asked == NUM_TEXTS == 14


@pytest.mark.parametrize("judge", [None, "exact", "simple"])
def test_a_judge_that_is_no_endpoint_costs_nothing(judge: str | None) -> None:
    assert judge_costs(world(), [CONFIG], Additions(judge=judge), [*world().targets()], 4) == []


def test_prompts_attacks_and_canaries_are_counted_for_each_target() -> None:
    added = Additions(judge="openai:m#1/2")
    targets = [*world().targets()]
    harmful = sum(p.harmful for p in fixed_prompts(world(), CONFIG))
    attacks = CONFIG.evaluation.prompts * CONFIG.evaluation.best_responses * 4
    [found] = judge_costs(world(), [CONFIG], added, targets, 4)
    assert found.requests == NUM_TEXTS + len(targets) * (harmful + attacks)
    assert found.name.startswith("judge ")
    assert found.dollars is not None
    assert found.most_dollars is not None
    assert 0 < found.dollars < found.most_dollars
    [twice] = judge_costs(world(), [CONFIG, CONFIG], added, targets, 4)
    assert twice.requests - NUM_TEXTS == 2 * (found.requests - NUM_TEXTS)


def test_a_limit_in_dollars_needs_the_price_of_the_judge() -> None:
    url = "openai:m@http://127.0.0.1:1/v1"
    with pytest.raises(UsageError, match="--judge"):
        Additions(judge=url, max_cost=1.0).check_endpoints(lambda _: None)
    Additions(judge=f"{url}#2/8", max_cost=1.0).check_endpoints(lambda _: None)
