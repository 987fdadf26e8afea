"""A user's own black box."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tsgb.envs import make_environment
from tsgb.errors import Interrupted, UsageError
from tsgb.targets.plugins import BlackBoxTarget, load_black_boxes, target_specs
from tsgb.types import Label, Message, Split

GLYPH = make_environment("glyph", world_seed=0)
HARMFUL = next(s for s in GLYPH.scenarios(Split.TEST) if s.harmful)
CHAT: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
]


class Echo:
    def generate(self, prompt: str) -> str:
        return f"<{prompt}>"


class Surrogates:
    def generate(self, prompt: str) -> str:
        return "fine \udc80 \U0001f600"


def nothing() -> None:
    pass


def raising(error: BaseException) -> Any:
    class Fails:
        def generate(self, prompt: str) -> str:
            raise error

    return Fails()


def returning(value: Any) -> Any:
    class Odd:
        def generate(self, prompt: str) -> Any:
            return value

    return Odd()


async def awaited() -> str:
    return "yes"


def test_a_chat_is_one_prompt() -> None:
    [response] = BlackBoxTarget("Echo", Echo(), nothing).answer([CHAT])
    assert response.text == "<Be kind.\n\nHi>"
    assert response.error is None


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("https://me:secret@host is down"),
        SystemExit(0),
        asyncio.CancelledError(),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_call_that_fails_is_a_third_outcome_without_its_message(error: BaseException) -> None:
    [failed] = BlackBoxTarget("Fails", raising(error), nothing).answer([CHAT])
    assert failed.error == type(error).__name__
    assert GLYPH.judge(HARMFUL, "hi", failed).label is Label.UNSCORED


def test_ctrl_c_is_no_answer() -> None:
    with pytest.raises(KeyboardInterrupt):
        BlackBoxTarget("Fails", raising(KeyboardInterrupt()), nothing).answer([CHAT])


@pytest.mark.parametrize(
    ("value", "kind"), [(None, "NoneType"), (b"yes", "bytes"), (awaited, "coroutine")]
)
def test_what_is_no_text_is_no_answer(value: Any, kind: str) -> None:
    value = value() if callable(value) else value
    [odd] = BlackBoxTarget("Odd", returning(value), nothing).answer([CHAT])
    assert odd.error == f"generate gave {kind}, not str"


def test_a_lone_surrogate_is_escaped_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    responses = BlackBoxTarget("Odd", Surrogates(), nothing).answer([CHAT, CHAT])
    assert {response.text for response in responses} == {"fine \\udc80 \U0001f600"}
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "lone surrogates" in told


def test_a_signal_stops_between_two_prompts() -> None:
    def check() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        BlackBoxTarget("Echo", Echo(), check).answer([CHAT])


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="have one name in the tables, 'Echo': rename"):
        load_black_boxes([f"{__name__}:Echo", f"{__name__}:Echo"])
    both = load_black_boxes([f"{__name__}:Echo", f"{__name__}:Surrogates"])
    assert [*both] == [*target_specs([plugin.path for plugin in both.values()])]


def test_a_spec_imports_nothing() -> None:
    [spec] = target_specs(["no_such_module:Mine"]).values()
    assert (spec.name, spec.role) == ("Mine", "black_box")
