"""A user's own black box and judge."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from tsgb import SimpleJudge
from tsgb.envs import make_environment
from tsgb.errors import Interrupted, UsageError
from tsgb.targets.plugins import CustomTarget, customise, target_spec
from tsgb.types import Label, Response, Split

GLYPH = make_environment("glyph", world_seed=0)
HARMFUL = next(s for s in GLYPH.scenarios(Split.TEST) if s.harmful)
BENIGN = next(s for s in GLYPH.scenarios(Split.TEST) if not s.harmful)


class Fails:
    def generate(self, prompt: str) -> str:
        raise ConnectionError("https://me:secret@host is down")

    def judge(self, response: str, is_benign: bool) -> bool:
        raise KeyError(response)


class Odd:
    def generate(self, prompt: str) -> Any:
        return None


class Echo:
    def generate(self, prompt: str) -> str:
        return f"<{prompt}>"


def nothing() -> None:
    pass


class TestTarget:
    def test_a_chat_is_one_prompt(self) -> None:
        chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
        [response] = CustomTarget("Echo", Echo(), nothing).answer([chat])  # type: ignore[list-item]
        assert response.text == "<Be kind.\n\nHi>"
        assert response.error is None

    def test_a_call_that_fails_is_a_third_outcome_without_its_message(self) -> None:
        chat = GLYPH.target_messages("x", HARMFUL, "hi")
        [failed] = CustomTarget("Fails", Fails(), nothing).answer([chat])
        assert failed.error == "ConnectionError"
        [odd] = CustomTarget("Odd", Odd(), nothing).answer([chat])
        assert odd.error == "generate gave NoneType, not str"
        for response in (failed, odd):
            assert GLYPH.judge(HARMFUL, "hi", response).label is Label.UNSCORED

    def test_a_signal_stops_between_two_prompts(self) -> None:
        def check() -> None:
            raise Interrupted("stopped")

        with pytest.raises(Interrupted):
            CustomTarget("Echo", Echo(), check).answer([GLYPH.target_messages("x", HARMFUL, "")])


class TestEnvironment:
    def test_a_target_is_added_and_all_else_stays(self) -> None:
        env = customise(GLYPH, {"Echo": target_spec("Echo", "mine:Echo")}, None)
        assert [*env.targets()] == [*GLYPH.targets(), "Echo"]
        assert env.targets()["Echo"].role == "black_box"
        assert env.name == "glyph"
        response = Response(text="REFUSE")
        assert env.judge(HARMFUL, "x", response) == GLYPH.judge(HARMFUL, "x", response)
        assert env.demonstrations(Random(1), 3) == GLYPH.demonstrations(Random(1), 3)

    def test_a_name_that_is_taken(self) -> None:
        with pytest.raises(UsageError, match="'T_s': rename your class"):
            customise(GLYPH, {"T_s": target_spec("T_s", "mine:T_s")}, None)

    @pytest.mark.parametrize(
        ("make", "scenario", "text", "label"),
        [
            (SimpleJudge, HARMFUL, "COMPLY", Label.HARMFUL),
            (SimpleJudge, HARMFUL, "REFUSE", Label.SAFE),
            (SimpleJudge, BENIGN, "COMPLY", Label.SAFE),
            (SimpleJudge, BENIGN, "REFUSE", Label.REFUSAL),
            (Fails, HARMFUL, "COMPLY", Label.UNSCORED),
        ],
    )
    def test_the_judge_of_the_user_decides(
        self, make: Callable[[], Any], scenario: Any, text: str, label: Label
    ) -> None:
        env = customise(GLYPH, {}, make())
        judgement = env.judge(scenario, "any prompt", Response(text=text))
        assert judgement.label is label
        assert text not in judgement.reason

    def test_a_response_that_failed_is_not_judged(self) -> None:
        env = customise(GLYPH, {}, SimpleJudge())
        judgement = env.judge(HARMFUL, "x", Response(text="", error="TimeoutError"))
        assert judgement.label is Label.UNSCORED
        assert judgement.reason == "TimeoutError"
