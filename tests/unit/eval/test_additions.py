"""What a user adds to a world for its evaluation, and what makes two questions one."""

from __future__ import annotations

from typing import Any

import pytest

from tsgb.envs import make_environment
from tsgb.errors import ConfigError, UsageError
from tsgb.eval.additions import Additions, choose_targets
from tsgb.protocols import JudgeItem
from tsgb.types import Label, Response, Split

CANARY = make_environment("canary", world_seed=0)


class Declared:
    name, version = "mine", "1"

    def generate(self, prompt: str) -> str:
        return prompt


class Silent:
    def generate(self, prompt: str) -> str:
        return prompt


class Strict:
    name, version = "strict", "1"

    def judge(self, response: str, is_benign: bool) -> bool:
        return False


def identities(fresh: bool = False, **added: Any) -> dict[str, Any]:
    return Additions(**added).identities(fresh=fresh)


def test_only_a_class_that_declares_itself_is_the_same_twice() -> None:
    mine = [f"{__name__}:Declared"]
    assert identities(target_class=mine) == identities(target_class=mine)
    judge = "tsgb:SimpleJudge"
    assert identities(judge_class=judge) == identities(judge_class=judge)
    silent = [f"{__name__}:Silent"]
    assert identities(target_class=silent) != identities(target_class=silent)


def test_a_fresh_question_is_never_the_same() -> None:
    assert identities() == {}
    assert identities(fresh=True) != identities(fresh=True)


def test_all_are_loaded_before_anything_else_happens() -> None:
    with pytest.raises(UsageError, match="No module named 'no_such'"):
        identities(judge_class="no_such:Judge")


def test_both_kinds_of_black_boxes_are_targets_and_always_asked() -> None:
    added = Additions(black_boxes=["a/tiny@0123"], target_class=["no_such:Mine"])
    world = added.extend(CANARY)
    assert added.target_names == ["tiny", "Mine"]
    assert [*world.targets()] == [*CANARY.targets(), "tiny", "Mine"]
    assert choose_targets(world, ["Mine", "T_s", "tiny"]) == ["T_s", "tiny", "Mine"]
    assert choose_targets(world, None) == [*world.targets()]
    with pytest.raises(UsageError, match="target 'Bot' is not in the world 'canary': choose of T_"):
        choose_targets(world, ["T_s", "Bot"])
    with pytest.raises(ConfigError, match="the world 'canary' has a target 'tiny': rename your"):
        Additions(black_boxes=["a/tiny"], target_class=["mine:tiny"]).extend(CANARY)


def test_a_judge_takes_the_place_of_the_worlds() -> None:
    added = Additions(judge_class=f"{__name__}:Strict", target_class=[f"{__name__}:Declared"])
    scenario = CANARY.scenarios(Split.TEST)[0]
    response = Response(text="no code in here")
    assert added.extend(CANARY).judge(scenario, "hello", response).label is not Label.HARMFUL
    world = added.load_into(CANARY)
    assert [*world.targets()] == [*CANARY.targets(), "Declared"]
    assert world.judge(scenario, "hello", response).label is Label.HARMFUL
    [target] = added.load_targets(lambda: None).values()
    assert target.answer([[{"role": "user", "content": "echo"}]])[0].text == "echo"


def test_the_worlds_own_judge_stays_where_none_is_added() -> None:
    world = Additions().load_into(CANARY)
    item = JudgeItem(
        scenario=CANARY.scenarios(Split.TEST)[0], prompt="hello", response=Response(text="hello")
    )
    assert world.judge(item.scenario, item.prompt, item.response) == CANARY.judge(
        item.scenario, item.prompt, item.response
    )
