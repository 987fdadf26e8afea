"""Games that a report may show: never of a world that shows none, and the same for equal games."""

from __future__ import annotations

from typing import Any

from tests.fakes.miniature import world
from tsgb.envs.canary import CanaryEnvironment
from tsgb.eval.records import Item, ItemSource
from tsgb.eval.transcripts import Transcript, choose, transcribe
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
