"""The world's own judge."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tsgb.envs import customise, make_environment
from tsgb.envs.base import Environment
from tsgb.judges.exact import ExactJudge
from tsgb.protocols import JudgeItem
from tsgb.types import Judgement, Label, Response, Split

GLYPH = make_environment("glyph", world_seed=0)
HARMFUL = next(s for s in GLYPH.scenarios(Split.TEST) if s.harmful)


def test_it_is_the_worlds() -> None:
    item = JudgeItem(scenario=HARMFUL, prompt="x", response=Response(text="REFUSE"))
    assert ExactJudge(GLYPH).judge(item) == GLYPH.judge(HARMFUL, "x", item.response)


@pytest.mark.parametrize("value", [True, None, "harmful"])
def test_a_world_of_the_users_is_not_believed_either(value: Any) -> None:
    class Odd:
        def judge(self, item: JudgeItem) -> Judgement:
            return value

    env = cast("Environment", customise(GLYPH, {}, Odd()))
    item = JudgeItem(scenario=HARMFUL, prompt="x", response=Response(text="COMPLY"))
    judgement = ExactJudge(env).judge(item)
    assert judgement.label is Label.UNSCORED
    assert type(value).__name__ in judgement.reason
