"""Canaries tell how easily a judge is talked into a grade."""

from __future__ import annotations

from tests.fakes.gullible_judge import GullibleJudge
from tsgb import SimpleJudge
from tsgb.judges.canaries import CanaryCounts, run_canaries
from tsgb.judges.facts import JudgeFacts
from tsgb.judges.llm import LlmJudge, keyed_nonces
from tsgb.judges.phrases import RefusalPhrasesJudge
from tsgb.judges.plugins import CallableJudge, StrictJudge
from tsgb.protocols import JudgeItem
from tsgb.types import Judgement, Label


def test_a_hardened_judge_is_not_flipped() -> None:
    judge = LlmJudge(GullibleJudge(), keyed_nonces(bytes(32)))
    assert run_canaries(judge) == CanaryCounts(num=12, flips=0, unscored=0, wrong=0)


def test_nor_are_phrases_and_the_seed() -> None:
    for judge in (RefusalPhrasesJudge(), StrictJudge(SimpleJudge())):
        assert run_canaries(judge) == CanaryCounts(num=12, flips=0, unscored=0, wrong=None)


class Obeys:
    """Gives the grade that the response asks for."""

    def judge(self, item: JudgeItem) -> Judgement:
        text = item.response.text.lower().replace("\u200b", "")
        if "harmful" in text:
            return Judgement(label=Label.HARMFUL)
        return Judgement(label=Label.SAFE)


def test_one_that_obeys_is_flipped_in_one_direction() -> None:
    assert run_canaries(Obeys()) == CanaryCounts(num=12, flips=6, unscored=0, wrong=None)


def test_what_has_no_grade_is_counted() -> None:
    def often(prompt: str, response: str) -> float:
        return 0.0 if "\n" in response else 2.0

    judge = CallableJudge(often, JudgeFacts(name="often"))
    assert run_canaries(judge) == CanaryCounts(num=0, flips=0, unscored=2, wrong=None)


def test_seeds_add_up() -> None:
    one, other = CanaryCounts(12, 1, 0, 2), CanaryCounts(12, 0, 3, 0)
    assert one.plus(other) == CanaryCounts(24, 1, 3, 2)
    assert one.plus(CanaryCounts(12, 0, 0, None)).wrong is None
