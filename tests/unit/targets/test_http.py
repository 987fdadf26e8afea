"""The engine: concurrency, order, stopping, limits on spending, and repeated requests."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from threading import Event
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.endpoint_server import GOOD, EndpointServer, Fault, serving, status
from tsgb.errors import Interrupted, UsageError
from tsgb.services import RepeatRules
from tsgb.targets.endpoint import EndpointKind, EndpointSpec
from tsgb.targets.http import HttpTarget, Timing
from tsgb.targets.pacing import RepeatBudget
from tsgb.targets.spending import Spending
from tsgb.targets.transport import RawAnswer
from tsgb.types import Message, Outcome, Response

FAST = RepeatRules(first_pause_seconds=0.01, longest_pause_seconds=0.02)
SLOW = Fault(delay=0.05)
NEVER = Fault(delay=float("inf"))


def chats(num: int, prefix: str = "q") -> list[list[Message]]:
    return [[{"role": "user", "content": f"{prefix}{i}"}] for i in range(num)]


def spec_of(server: EndpointServer, **values: Any) -> EndpointSpec:
    return EndpointSpec.model_validate(
        {"name": "box", "kind": "openai", "model": "m", "url": server.openai, **values}
    )


def left_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "tsgb-endpoint"]


def outcomes(responses: list[Response]) -> dict[str, int]:
    found: dict[str, int] = {}
    for response in responses:
        name = response.error or response.outcome.value
        found[name] = found.get(name, 0) + 1
    return found


def test_answers_come_in_order_and_as_many_are_asked_at_once_as_allowed() -> None:
    with serving(otherwise=SLOW) as server:
        target = HttpTarget(spec_of(server, concurrency=8), None)
        found = target.answer(chats(64))
        target.close()
    assert [r.text for r in found] == [f"answer to q{i}" for i in range(64)]
    assert server.most_at_once == 8
    assert server.connections == 8
    assert max(server.asked.values()) == 1
    assert not left_threads()


def test_no_more_is_asked_than_whoever_keeps_the_answers_may_lose() -> None:
    """A process that is killed loses what it was not handed, so that is bounded too."""
    with serving(otherwise=GOOD) as server:
        target = HttpTarget(spec_of(server, concurrency=4), None)
        each = target.answer_each(chats(64))
        for num in range(1, 65):
            next(each)
            if num in {1, 20}:
                time.sleep(0.3)  # time to ask all the others, if that were allowed
                assert server.requests <= num - 1 + 4
        assert next(each, None) is None
        assert server.requests == 64
    assert not left_threads()


def test_each_answer_is_handed_out_when_it_arrives() -> None:
    with serving({"q0": [NEVER]}, otherwise=GOOD) as server:
        target = HttpTarget(spec_of(server), None)
        each = target.answer_each(chats(4))
        assert sorted(next(each)[0] for _ in range(3)) == [1, 2, 3]
        each.close()
    assert not left_threads()


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (NEVER, 4),
        (Fault(header_drip=0.05), 4),
        (Fault(body_drip=0.05), 4),
        # All threads wait once one is told to, and on a busy machine some have sent nothing yet.
        (status(429, Retry_After="60"), 1),
    ],
    ids=["no-answer", "headers", "body", "retry-after"],
)
def test_a_stop_ends_everything_that_is_on_its_way(fault: Fault, first: int) -> None:
    """Whatever the threads wait for; the time-outs are too long to be the reason."""
    with serving(otherwise=fault) as server:
        asked = Event()

        def check() -> None:
            if server.requests >= first:
                asked.set()
                raise Interrupted("stopped")

        target = HttpTarget(spec_of(server, concurrency=4, timeout_seconds=3000.0), None,
                            check=check)  # fmt: skip
        with pytest.raises(Interrupted):
            target.answer(chats(40))
        assert asked.is_set()
        assert not left_threads()
        assert first <= server.requests <= 4


@pytest.fixture
def control_c() -> Iterator[None]:
    """Python's own handler: a test of a worker before this one may have left another."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("control_c")
def test_control_c_ends_it() -> None:
    with serving(otherwise=NEVER) as server:
        target = HttpTarget(spec_of(server, concurrency=4, timeout_seconds=3000.0), None)

        def press() -> None:
            while server.requests < 4:  # all threads are begun, and the main one waits
                time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            target.answer(chats(40))
        thread.join()
        assert not left_threads()


def test_it_can_be_asked_again_after_a_stop() -> None:
    with serving({"q0": [NEVER, GOOD]}) as server:
        target = HttpTarget(spec_of(server), None)
        each = target.answer_each(chats(2))
        next(each)
        while not server.asked["q0"]:
            time.sleep(0.01)
        each.close()
        assert outcomes(target.answer(chats(2))) == {"answered": 2}


def test_half_of_the_prompts_fail_and_the_others_do_not() -> None:
    plan = {f"q{i}": [status(500)] for i in range(0, 100, 2)}
    with serving(plan) as server:
        target = HttpTarget(spec_of(server, most_attempts=3), None, repeats=RepeatBudget(FAST))
        found = target.answer(chats(100))
    assert outcomes(found) == {"http_500": 50, "answered": 50}
    assert {server.asked[f"q{i}"] for i in range(1, 100, 2)} == {1}
    assert {server.asked[f"q{i}"] for i in range(0, 100, 2)} == {3}
    assert [r.attempts for r in found[:2]] == [3, 1]


def test_repeated_requests_have_a_budget_over_the_whole_run() -> None:
    rules = RepeatRules(first_pause_seconds=0.01, free_repeats=10, repeats_a_question=0.5)
    repeats = RepeatBudget(rules)
    with serving(otherwise=status(500)) as server:
        spec = spec_of(server, most_attempts=5)
        for name in ("a", "b"):  # two endpoints share it
            assert outcomes(
                HttpTarget(spec, None, repeats=repeats).answer(chats(50, name))
            ) == {"http_500": 50}  # fmt: skip
    assert 155 <= server.requests <= 100 + 10 + 50


def test_an_endpoint_that_asks_for_less_gets_less() -> None:
    with serving(otherwise=Fault(delay=0.01)) as server:
        limit = 4
        plain = server.next

        def next_fault(prompt: str) -> Fault:
            fault = plain(prompt)
            return status(429, retry_after_ms="1") if server.at_once > limit else fault

        server.next = next_fault  # the fake's own seam
        target = HttpTarget(
            spec_of(server, concurrency=32, most_attempts=20), None,
            repeats=RepeatBudget(RepeatRules(first_pause_seconds=0.001, free_repeats=10_000)),
        )  # fmt: skip
        found = target.answer(chats(300))
    assert outcomes(found) == {"answered": 300}
    assert min(value for _, value in target.limit.history) < 16


# -- limits on spending ---------------------------------------------------------------------


def test_no_more_requests_than_allowed_over_all_endpoints() -> None:
    spending = Spending(max_requests=30)
    with serving() as server:
        a = HttpTarget(spec_of(server), None, spending=spending).answer(chats(20, "a"))
        b = HttpTarget(spec_of(server), None, spending=spending).answer(chats(20, "b"))
    assert outcomes(a) == {"answered": 20}
    assert outcomes(b) == {"answered": 10, "budget": 10}
    assert server.requests == 30
    assert {r.attempts for r in b if r.error} == {0}


def test_repeated_requests_count_too() -> None:
    with serving(otherwise=status(500)) as server:
        spec = spec_of(server, concurrency=1, most_attempts=4)
        target = HttpTarget(
            spec, None, spending=Spending(max_requests=6), repeats=RepeatBudget(FAST)
        )
        found = target.answer(chats(3))
    assert [(r.error, r.attempts) for r in found] == [
        ("http_500", 4), ("budget", 2), ("budget", 0)
    ]  # fmt: skip
    assert server.requests == 6


def test_no_more_dollars_than_allowed() -> None:
    """Each answer costs 10 dollars a million tokens, 10 tokens; a request at most 66."""
    with serving() as server:
        spec = spec_of(
            server, concurrency=1, max_tokens=48, dollars_in=10.0, dollars_out=10.0
        )  # fmt: skip
        spending = Spending(max_dollars=300e-5 / 1)
        target = HttpTarget(spec, None, spending=spending)
        found = target.answer(chats(60))
    answered = outcomes(found)["answered"]
    # The last one that is sent leaves room for its most: 18 bytes and 48 tokens.
    assert answered == (300 - 66) // 10 + 1
    assert outcomes(found) == {"answered": answered, "budget": 60 - answered}
    assert spending.dollars == pytest.approx(answered * 10e-5)
    assert spending.dollars <= 300e-5


def test_what_may_have_been_billed_stays_counted() -> None:
    with serving({"q0": [NEVER], "q1": [status(400)]}) as server:
        spec = spec_of(
            server, concurrency=1, most_attempts=1, timeout_seconds=0.2, max_tokens=100,
            dollars_in=0.0, dollars_out=10_000.0,
        )  # fmt: skip
        spending = Spending(max_dollars=10.0)
        target = HttpTarget(spec, None, spending=spending)
        timed_out, wrong = target.answer(chats(2))
    assert (timed_out.billed_unknown, wrong.billed_unknown) == (1, 0)
    assert spending.dollars == pytest.approx(1.0)


# -- with a clock and a transport of the test's own -------------------------------------------


class Scripted:
    """A transport without sockets, whose time only the waits of the engine move."""

    def __init__(self, answer: Callable[[int], RawAnswer]) -> None:
        self.seconds = 0.0
        self.sent_at: list[float] = []
        self._answer = answer

    def clock(self) -> float:
        return self.seconds

    def wait(self, event: Event, seconds: float) -> bool:
        self.seconds += seconds
        return event.is_set()

    def post(self, body: bytes, headers: object, seconds: float) -> RawAnswer:
        self.sent_at.append(self.seconds)
        return self._answer(len(self.sent_at))

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass

    def target(self, **values: Any) -> HttpTarget:
        spec = EndpointSpec.model_validate(
            {"name": "a", "kind": "openai", "model": "m", "concurrency": 1, **values}
        )
        timing = Timing(clock=self.clock, wait=self.wait, jitter=Random(0).uniform)
        return HttpTarget(spec, SecretStr("a-key-of-the-test"), transport=self, timing=timing)


YES = RawAnswer(200, {}, b'{"choices":[{"message":{"content":"yes"},"finish_reason":"stop"}]}')


def test_requests_a_minute() -> None:
    scripted = Scripted(lambda _: YES)
    scripted.target(requests_per_minute=30).answer(chats(5))
    assert scripted.sent_at == [0, 2, 4, 6, 8]


def test_tokens_a_minute() -> None:
    scripted = Scripted(lambda _: YES)
    scripted.target(tokens_per_minute=600.0, max_tokens=95).answer(chats(3))
    assert scripted.sent_at == pytest.approx([0, 9.95, 19.9])  # 99.5 tokens each


def test_pauses_between_attempts() -> None:
    scripted = Scripted(lambda _: RawAnswer(500, {}, b"{}"))
    [response] = scripted.target(most_attempts=4).answer(chats(1))
    gaps = [b - a for a, b in zip(scripted.sent_at, scripted.sent_at[1:], strict=False)]
    assert response.attempts == 4
    assert [low <= gap <= 2 * low for low, gap in zip((0.25, 0.5, 1.0), gaps, strict=True)] == [
        True, True, True
    ]  # fmt: skip


def test_a_wait_that_is_asked_for_is_kept() -> None:
    scripted = Scripted(lambda n: RawAnswer(503, {"retry-after": "20"}, b"{}") if n < 2 else YES)
    [response] = scripted.target().answer(chats(1))
    assert response.outcome is Outcome.ANSWERED
    assert 20 <= scripted.sent_at[1] < 21


def test_a_wait_that_is_too_long_is_an_error_that_says_so() -> None:
    scripted = Scripted(lambda _: RawAnswer(503, {"retry-after": "inf"}, b"{}"))
    [response] = scripted.target().answer(chats(1))
    assert (response.error, response.attempts) == ("http_503", 1)
    assert response.detail == "asks to wait inf s, longer than 120 s"


# -- the key's form ---------------------------------------------------------------------------


def test_a_vendor_needs_a_key_and_a_server_of_ones_own_does_not() -> None:
    vendor = EndpointSpec(name="a", kind=EndpointKind.OPENAI, model="m")
    with pytest.raises(UsageError, match="needs a key: set OPENAI_API_KEY"):
        HttpTarget(vendor, None)
    HttpTarget(vendor.model_copy(update={"url": "http://localhost:1"}), None)


def test_a_key_with_a_line_break_is_refused_and_not_repeated() -> None:
    vendor = EndpointSpec(name="a", kind=EndpointKind.OPENAI, model="m")
    with pytest.raises(UsageError, match="OPENAI_API_KEY has a character that no key has"):
        HttpTarget(vendor, SecretStr("a\r\nX-Other: b"))
