"""What a user adds to a world for its evaluation, and what makes two questions one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tsgb.config import make_config
from tsgb.envs import make_environment
from tsgb.errors import ConfigError, UsageError
from tsgb.eval.additions import Additions, choose_targets, named_targets, split_targets
from tsgb.eval.request import attacked_targets
from tsgb.protocols import JudgeItem
from tsgb.targets.endpoint import parse_endpoint
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


def test_a_configuration_chooses_targets_where_a_user_names_none() -> None:
    usual = make_config({"evaluation": {"targets": ["T_s", "B_far"]}})
    assert named_targets(None, usual) == ["T_s", "B_far"]
    assert named_targets(["B_mid"], usual) == ["B_mid"]
    assert named_targets(None, make_config()) is None


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


# -- endpoints -------------------------------------------------------------------------------

FILE = """
[targets.big]
kind = "openai"
model = "gpt"
url = "https://h/v1"
key_variable = "BIG_KEY"
[targets.wise]
kind = "anthropic"
model = "c"
"""


def test_named_targets_and_endpoints_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(FILE)
    names, endpoints = split_targets(None, str(file))
    assert names is None
    assert [e.name for e in endpoints] == ["big", "wise"]
    names, endpoints = split_targets(["T_s", "wise", "openai:m@http://[::1]:8/v1"], str(file))
    assert names == ["T_s", "wise", "m"]
    assert [e.name for e in endpoints] == ["wise", "m"]
    assert split_targets(["T_s"], None) == (["T_s"], [])
    with pytest.raises(UsageError, match="two endpoints are called 'big'"):
        split_targets(["big", "openai:big"], str(file))


def test_endpoints_are_targets_whose_names_are_their_own() -> None:
    endpoint = parse_endpoint("openai:m@https://h/v1")
    added = Additions(endpoints=[endpoint])
    assert added.target_names == ["m"]
    world = added.extend(CANARY)
    assert world.targets()["m"].arch == "openai m at h"
    assert choose_targets(world, ["m"]) == ["m"]
    for other in (Additions(endpoints=[parse_endpoint("openai:T_s")]),
                  Additions(endpoints=[endpoint], target_class=["mine:m"])):  # fmt: skip
        with pytest.raises(UsageError, match="has the name of another target: declare it in a"):
            other.extend(CANARY)


def test_what_determines_an_endpoints_answers_makes_another_question() -> None:
    endpoint = parse_endpoint("openai:m@https://h/v1")
    same = endpoint.model_copy(update={"concurrency": 2, "dollars_in": 1.0})
    other = endpoint.model_copy(update={"temperature": 1.0})
    assert identities(endpoints=[endpoint]) == identities(endpoints=[same])
    assert identities(endpoints=[endpoint]) != identities(endpoints=[other])


def test_keys_and_prices_are_looked_for_before_anything_is_asked() -> None:
    asked: list[str] = []

    def none(name: str) -> None:
        asked.append(name)

    with pytest.raises(UsageError, match=r"'m' at api\.openai\.com needs a key: set OPENAI"):
        Additions(endpoints=[parse_endpoint("openai:m")]).check_endpoints(none)
    assert asked == ["OPENAI_API_KEY"]
    mine = parse_endpoint("openai:m@http://localhost:9/v1")
    with pytest.raises(UsageError, match="--max-cost 3: the price of 'm' is not known"):
        Additions(endpoints=[mine], max_cost=3.0).check_endpoints(none)
    Additions(endpoints=[mine]).check_endpoints(none)


def test_a_request_of_another_form_is_one_line() -> None:
    config = make_config(CANARY.profile("smoke"), {"env": "canary"})
    kept = parse_endpoint("openai:m").model_dump(mode="json")
    assert Additions.of(config, {"endpoints": [kept]}).target_names == ["m"]
    with pytest.raises(UsageError, match="has an endpoint of another form"):
        Additions.of(config, {"endpoints": [{**kept, "url": "http://evil.example.org"}]})
    assert attacked_targets({"endpoints": [kept]}, ["T_s", "m"]) == ["T_s"]


def test_attacks_on_endpoints_are_asked_for_and_make_another_question() -> None:
    config = make_config(CANARY.profile("smoke"), {"env": "canary"})
    endpoint = parse_endpoint("openai:m")
    request = {"endpoints": [endpoint.model_dump(mode="json")], "adaptive": 60}
    assert attacked_targets(request, ["T_s", "m"]) == ["T_s", "m"]
    assert Additions.of(config, request).adaptive == 60
    with_60, with_70, without = (identities(endpoints=[endpoint], adaptive=n) for n in (60, 70, 0))
    assert with_60 != with_70
    assert without == identities(endpoints=[endpoint])
    with pytest.raises(UsageError, match="--adaptive 60: no endpoint is among the targets"):
        Additions(adaptive=60)
