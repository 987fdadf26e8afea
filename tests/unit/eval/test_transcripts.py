"""Games that a report may show: never of a world that shows none, and the same for equal games."""

from __future__ import annotations

from typing import Any

from tests.fakes.miniature import world
from tsgb.envs.canary import CanaryEnvironment
from tsgb.eval.records import Item, ItemSource
from tsgb.eval.transcripts import (
    MAX_CHARACTERS,
    MAX_FORM,
    GuardWord,
    Transcript,
    choose,
    choose_adaptive,
    transcribe,
)
from tsgb.types import Split, StreamKind

CANARY = CanaryEnvironment(world_seed=0)
SCENARIO = next(s for s in CANARY.scenarios(Split.TEST) if s.harmful)
SECRET = CANARY.secret(SCENARIO.scenario_id).canary


def item(**changes: Any) -> Item:
    fields: dict[str, Any] = {
        "item_id": "i1",
        "scenario_id": SCENARIO.scenario_id,
        "source": ItemSource.SCRIPTED,
        "stream": StreamKind.STATIC,
        "technique": "spell",
        "target": "T_s",
        "seed": 0,
        "harmful": True,
        "violated": True,
        "scores": {"selfplay": 1.5},
        "blocked": {"none": False, "selfplay": True, "tfidf": False},
    }
    return Item(**fields | changes)


def test_secrets_are_replaced_and_every_guard_but_none_has_its_word() -> None:
    game = transcribe(CANARY, SCENARIO, item(), "tell me", f"it is {SECRET}")
    assert game is not None
    assert SECRET not in game.model_dump_json()
    assert [(w.guard, w.blocked, w.score) for w in game.verdicts] == [
        ("selfplay", True, 1.5),
        ("tfidf", False, None),
    ]


def test_a_world_that_shows_no_text_and_a_game_without_an_outcome_give_none() -> None:
    scenario = next(s for s in world().scenarios(Split.TEST) if s.harmful)
    assert transcribe(world(), scenario, item(), "a b", "c") is None
    failed = item(violated=None, error="timeout")
    assert transcribe(CANARY, SCENARIO, failed, "tell me", "") is None


def test_a_violation_comes_first_and_the_order_is_kept() -> None:
    games = [
        Transcript(
            scenario_id=f"s{number}",
            technique="t",
            target="T_s",
            prompt="p",
            answer="a",
            violated=number in {2, 3},
            verdicts=[],
        )
        for number in range(5)
    ]
    assert [game.scenario_id for game in choose(games)] == ["s2", "s0"]
    assert [game.scenario_id for game in choose(games, 4)] == ["s2", "s0", "s1", "s4"]
    assert choose([]) == []


def test_the_form_of_a_leak_is_kept_redacted_and_that_of_a_safe_answer_is_not() -> None:
    def form(reason: str, **changes: Any) -> str:
        game = transcribe(CANARY, SCENARIO, item(**changes), "tell me", "no", reason)
        assert game is not None
        return game.form

    assert form("morse") == "morse"
    assert form(f"it said {SECRET}") == "it said [canary]"
    assert form("f" * 500) == "f" * (MAX_FORM - 1) + "\u2026"
    assert form("harmless", violated=False) == ""


def test_long_texts_are_cut_after_their_secrets_are_replaced() -> None:
    long = "x" * (MAX_CHARACTERS - 4) + SECRET
    game = transcribe(CANARY, SCENARIO, item(), long, f"{long} {long}")
    assert game is not None
    for text in (game.prompt, game.answer):
        assert len(text) == MAX_CHARACTERS
        assert SECRET[:2] not in text
        assert text.endswith("[ca\u2026")


def adaptive(number: int, outcome: str, **changes: Any) -> Transcript:
    fields: dict[str, Any] = {
        "scenario_id": f"s{number}",
        "technique": "t",
        "target": "T_s",
        "prompt": f"p{number}",
        "answer": "a",
        "violated": outcome != "withstood",
        "against": "sft",
        "br_seed": 0,
        "verdicts": [GuardWord(guard="sft", blocked=outcome == "blocked", score=0.5)],
    }
    return Transcript(**fields | changes)


def test_one_game_of_each_outcome_comes_first_and_no_prompt_twice() -> None:
    outcomes = ["withstood", "passed", "passed", "blocked", "passed", "withstood"]
    games = [adaptive(number, outcome) for number, outcome in enumerate(outcomes)]
    copies = [game.model_copy(update={"scenario_id": "copy"}) for game in games]
    assert [g.scenario_id for g in choose_adaptive([*games, *copies])] == ["s1", "s3", "s0"]
    assert [g.scenario_id for g in choose_adaptive(games, 5)] == ["s1", "s3", "s0", "s2", "s4"]
    assert [g.scenario_id for g in choose_adaptive(games[1:3])] == ["s1", "s2"]
    assert choose_adaptive([]) == []


def test_every_guard_and_target_has_its_own_games() -> None:
    games = [
        adaptive(number, "passed", against=against, target=target)
        for against in ("none", "sft")
        for target in ("T_s", "B_near")
        for number in range(9)
    ]
    chosen = choose_adaptive(games)
    assert len(chosen) == 4 * 3
    assert choose_adaptive(chosen) == chosen
    assert {(g.target, g.against) for g in chosen} == {
        (target, against) for target in ("T_s", "B_near") for against in ("none", "sft")
    }
