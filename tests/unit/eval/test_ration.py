"""The questions of `--adaptive N` are shared out in full and never overdrawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.config import Arm, RunConfig, make_config
from tsgb.errors import UsageError
from tsgb.eval.ration import fought, guards_before, ration, share_of_run

SIZES = st.integers(1, 50)


def config(best_responses: int, warmup: int, attack: int, prompts: int, update: int) -> RunConfig:
    return make_config(
        {
            "evaluation": {
                "best_responses": best_responses,
                "warmup_steps": warmup,
                "attack_steps": attack,
                "prompts": prompts,
            },
            "attacker": {"scenarios_per_step": update, "group_size": 2},
        }
    )


@given(
    st.integers(0, 30_000),
    st.integers(1, 5),
    st.integers(0, 50),
    st.integers(0, 50),
    SIZES,
    SIZES,
    st.integers(1, 8),
)
def test_attackers_stay_within_the_questions_of_their_run(
    more: int, best_responses: int, warmup: int, attack: int, prompts: int, update: int, guards: int
) -> None:
    made = config(best_responses, warmup, attack, prompts, update)
    questions = best_responses * (1 + guards) + more
    found = ration(made, questions, guards)
    used = best_responses * found.questions(made, guards)
    assert used <= questions
    assert 1 <= found.attempts <= prompts
    assert 0 <= found.warmup_steps <= warmup
    assert 0 <= found.attack_steps <= attack
    if found.attempts < prompts:
        assert questions - used < best_responses * (2 + guards), "what is left buys no attack"
    enough = ration(made, 10**9, guards)
    assert (enough.attempts, enough.warmup_steps, enough.attack_steps) == (prompts, warmup, attack)
    assert ration(made, best_responses * enough.questions(made, guards), guards) == enough


def test_half_of_the_questions_are_for_learning_where_they_buy_updates() -> None:
    made = config(best_responses=2, warmup=4, attack=8, prompts=100, update=5)
    few, more = ration(made, 2 * 60, 2), ration(made, 2 * 300, 2)
    assert (few.attempts, few.warmup_steps, few.attack_steps) == (13, 0, 1)
    assert few.questions(made, 2) == 59
    assert (more.attempts, more.warmup_steps, more.attack_steps) == (50, 3, 6)
    assert more.questions(made, 2) == 300


def test_too_few_questions_are_refused_with_the_fewest_that_do() -> None:
    made = config(best_responses=3, warmup=4, attack=8, prompts=100, update=5)
    assert share_of_run(made, 0, 6) == 0
    assert share_of_run(made, 100, 6, runs=4) == 25
    with pytest.raises(
        UsageError, match=r"--adaptive 83: the fewest are 84, .* for each of 4 seed"
    ):
        share_of_run(made, 83, 6, runs=4)
    with pytest.raises(UsageError, match="the fewest are 21"):
        ration(made, 0, 6)


def test_ablations_and_guards_that_need_no_attack_are_not_fought() -> None:
    assert fought(["none", "tfidf", "selfplay", "no_pool", "exact_pg", "mine", "oracle"]) == [
        *("tfidf", "selfplay", "mine")
    ]
    assert guards_before([Arm.SELFPLAY, Arm.SFT, Arm("no_pool")], own_guards=1) == 5
