"""A target is asked once, its errors again later, and not at all where that is in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes.miniature import ScriptedTarget
from tsgb.config import make_config
from tsgb.errors import Interrupted
from tsgb.eval.logged_target import (
    MOST_CLAIMS,
    NOT_ASKED,
    LoggedTarget,
    LoggedTargets,
    Tally,
    identity_of,
)
from tsgb.eval.responses import ResponseLog, questions
from tsgb.protocols import Target
from tsgb.types import Messages, Response

CONFIG = make_config({"evaluation": {"max_error_rate": 0.02}})


def chats(*texts: str) -> list[Messages]:
    return [[{"role": "user", "content": text}] for text in texts]


def numbered(num: int, start: int = 0) -> list[Messages]:
    return chats(*(f"question {index}" for index in range(start, start + num)))


def echo(prompt: str) -> Response:
    return Response(text=f"answer to {prompt}")


def failing(_prompt: str) -> Response:
    return Response(text="", finish_reason="error", error="ConnectionError")


def half(number: int) -> bool:
    return number % 2 == 1


def late(number: int) -> bool:
    return number > 150


class Concurrent(ScriptedTarget):
    """Has several questions on their way, and answers the newest one first."""

    def __init__(self, answer: Callable[[str], Response], num: int = 8) -> None:
        super().__init__(answer)
        self._num = num
        self.identity = {"model": "m"}

    def answer_each(self, chats: Sequence[Messages]) -> Iterator[tuple[int, Response]]:
        waiting, on_the_way = list(enumerate(chats)), list[tuple[int, Response]]()
        while waiting or on_the_way:
            while waiting and len(on_the_way) < self._num:
                index, chat = waiting.pop(0)
                on_the_way.append((index, self.answer([chat])[0]))
            yield on_the_way.pop()


class Session:
    """An evaluation's use of one log; a new one stands for a new command."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "log.jsonl"
        self.notes: list[str] = []

    @property
    def num_kept(self) -> int:
        with ResponseLog(self._path, "x", {}) as log:
            return len(log)

    def ask(self, target: Target, *asked: tuple[str, Sequence[Messages]]) -> list[list[Response]]:
        with ResponseLog(self._path, "x", {}) as log:
            logged = LoggedTarget(target, log, limit=0.02, note=self.notes.append)
            return [logged.ask(chats, kind) for kind, chats in asked]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


@pytest.mark.parametrize("make", [ScriptedTarget, Concurrent])
def test_each_question_is_asked_once(
    make: Callable[[Callable[[str], Response]], ScriptedTarget], session: Session
) -> None:
    bot = make(echo)
    [first] = session.ask(bot, ("harmful", numbered(100)))
    assert [response.text for response in first] == [
        f"answer to question {index}" for index in range(100)
    ]
    assert Counter(bot.asked) == Counter(f"question {index}" for index in range(100))
    again, more = session.ask(bot, ("harmful", numbered(100)), ("attacks", numbered(60, 80)))
    assert again == first
    assert more[:20] == first[80:]
    assert len(bot.asked) == 140


def test_many_questions_are_given_in_pieces(session: Session) -> None:
    """A kernel looks through all claims of a file for each of them."""
    sizes: list[int] = []

    class Sized(Concurrent):
        def answer_each(self, chats: Sequence[Messages]) -> Iterator[tuple[int, Response]]:
            sizes.append(len(chats))
            return super().answer_each(chats)

    [found] = session.ask(Sized(echo), ("harmful", numbered(3000)))
    assert [r.text for r in found] == [f"answer to question {index}" for index in range(3000)]
    assert sizes == [20, 20, MOST_CLAIMS, MOST_CLAIMS, 3000 - 40 - 2 * MOST_CLAIMS]


def test_equal_questions_are_draws_of_their_own(session: Session) -> None:
    texts = iter("abc")
    bot = ScriptedTarget(lambda _: Response(text=next(texts)))
    [first] = session.ask(bot, ("harmful", chats("x", "x", "x")))
    assert [response.text for response in first] == ["a", "b", "c"]
    [again] = session.ask(bot, ("harmful", chats("x", "x")))
    assert again == first[:2]


def test_errors_are_asked_again_by_the_next_command_after_all_that_is_new(
    session: Session,
) -> None:
    broken = {"question 3", "question 5"}
    bot = ScriptedTarget(lambda prompt: failing(prompt) if prompt in broken else echo(prompt))
    first, second = session.ask(bot, ("harmful", numbered(10)), ("harmful", numbered(10)))
    assert first == second, "within one command an error stands"
    assert [index for index, response in enumerate(first) if response.error] == [3, 5]
    assert len(bot.asked) == 10
    healed = ScriptedTarget(echo)
    [third] = session.ask(healed, ("harmful", numbered(12)))
    assert healed.asked == [f"question {index}" for index in (10, 11, 3, 5)]
    assert not any(response.error for response in third)


@pytest.mark.parametrize("make", [ScriptedTarget, Concurrent])
def test_a_target_that_never_answers_is_asked_twenty_times(
    make: Callable[[Callable[[str], Response]], ScriptedTarget], session: Session
) -> None:
    bot = make(failing)
    harmful, benign = session.ask(bot, ("harmful", numbered(400)), ("benign", numbered(400, 400)))
    assert Counter(r.error for r in harmful) == {"ConnectionError": 20, NOT_ASKED: 380}
    assert Counter(r.error for r in benign) == {"ConnectionError": 20, NOT_ASKED: 380}
    assert len(bot.asked) <= 40 + 2 * 8
    assert session.notes[0] == (
        "T_s: 20 of 20 questions (harmful) failed, so it is not asked the other 380; the same "
        "command asks again what failed"
    )
    healed = make(echo)
    [again] = session.ask(healed, ("harmful", numbered(400)))
    assert not any(response.error for response in again)
    assert len(healed.asked) == 400


@pytest.mark.parametrize("make", [ScriptedTarget, Concurrent])
@pytest.mark.parametrize("dead", [half, late])
def test_a_target_that_cannot_give_a_valid_result_any_more_is_not_asked_on(
    make: Callable[[Callable[[str], Response]], ScriptedTarget],
    dead: Callable[[int], bool],
    session: Session,
) -> None:
    bot = make(lambda text: failing(text) if dead(int(text.split()[1])) else echo(text))
    [found] = session.ask(bot, ("harmful", numbered(400)))
    num = sum(1 for index in range(len(bot.asked)) if dead(index))
    assert len(bot.asked) <= (60 if dead(1) else 150 + 20 + 2 * 8)
    assert sum(r.error == NOT_ASKED for r in found) >= 400 - len(bot.asked)
    assert num > 8


def test_a_few_errors_stop_nothing(session: Session) -> None:
    bot = Concurrent(lambda text: failing(text) if text.endswith("7") else echo(text))
    [found] = session.ask(bot, ("harmful", numbered(400)))
    assert Counter(r.error for r in found) == {None: 360, "ConnectionError": 40}


def test_a_tally_waits_until_the_evaluation_cannot_be_valid() -> None:
    tally = Tally(limit=0.5)
    tally.total = 100
    for failed in [False] * 30 + [True] * 50:
        tally.count(failed=failed)
        assert not tally.hopeless
    tally.count(failed=True)
    assert tally.hopeless


def test_what_was_never_sent_is_not_kept(session: Session) -> None:
    spent = Response(text="", finish_reason="error", error="budget", attempts=0)
    [found] = session.ask(ScriptedTarget(lambda _: spent), ("harmful", numbered(3)))
    assert [response.error for response in found] == ["budget"] * 3
    assert not session.num_kept


def test_a_command_that_is_stopped_keeps_what_was_answered(session: Session) -> None:
    def answer(prompt: str) -> Response:
        if prompt == "question 7":
            raise Interrupted("stopped")
        return echo(prompt)

    with pytest.raises(Interrupted):
        session.ask(ScriptedTarget(answer), ("harmful", numbered(10)))
    rest = ScriptedTarget(echo)
    session.ask(rest, ("harmful", numbered(10)))
    assert rest.asked == ["question 7", "question 8", "question 9"]


def test_what_another_process_asks_now_is_waited_for(tmp_path: Path) -> None:
    """Its claim is that of a process; here a log that claims nothing stands for it."""
    path = tmp_path / "log.jsonl"
    [taken] = questions(chats("b"))
    waits: list[float] = []

    class Busy(ResponseLog):
        def claim(self, key: str) -> bool:
            return (key != taken or len(waits) == 3) and super().claim(key)

    bot = ScriptedTarget(echo)
    with Busy(path, "x", {}) as log, ResponseLog(path, "x", {}) as other:

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                other.append(taken, Response(text="theirs"))

        logged = LoggedTarget(bot, log, limit=0.02, sleep=sleep)
        found = logged.answer(chats("a", "b", "c"))
    assert [r.text for r in found] == ["answer to a", "theirs", "answer to c"]
    assert bot.asked == ["a", "c"]
    assert len(waits) == 3


class Declared(ScriptedTarget):
    def __init__(self, version: str) -> None:
        super().__init__(echo, name="Mine")
        self._version = version

    def identity(self) -> dict[str, str]:
        return {"name": "mine", "version": self._version}


def test_an_identity_is_a_mapping_or_a_method() -> None:
    assert identity_of(Declared("1")) == {"name": "mine", "version": "1"}
    assert identity_of(Concurrent(echo)) == {"model": "m"}
    assert identity_of(ScriptedTarget(echo)) is None


@pytest.mark.parametrize(
    ("make", "eval_id", "shared", "num"),
    [
        (lambda: Declared("1"), "e1", True, 0),
        (lambda: Declared("1"), "e2", True, 0),
        (lambda: Declared("2"), "e1", True, 5),
        (lambda: Declared("1"), "e3", False, 5),
        (lambda: ScriptedTarget(echo, name="Mine"), "e1", True, 5),
    ],
    ids=["same", "other evaluation", "other version", "fresh", "undeclared"],
)
def test_who_shares_answers(
    make: Callable[[], ScriptedTarget], eval_id: str, shared: bool, num: int, tmp_path: Path
) -> None:
    def asked(target: ScriptedTarget, eval_id: str, *, shared: bool) -> int:
        with LoggedTargets(tmp_path, eval_id, CONFIG, shared=shared) as logs:
            logs.wrap([target])["Mine"].answer(numbered(5))
        return len(target.asked)

    assert asked(Declared("1"), "e1", shared=True) == 5
    assert asked(make(), eval_id, shared=shared) == num
    assert asked(make(), eval_id, shared=shared) == 0, "the same evaluation goes on"
