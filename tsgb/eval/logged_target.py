"""A target that is asked once: what its log holds is not asked again, and what arrives is kept.

It also stops asking a target that does not answer any more. It knows neither guards nor judges, so
that those can be changed, and applied to the same answers.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

from tsgb.config import RunConfig
from tsgb.eval.responses import Note, ResponseLog, log_path, questions, warn
from tsgb.eval.usage import Meter, Role
from tsgb.logging import get_logger
from tsgb.protocols import Target
from tsgb.targets.http import BUDGET
from tsgb.types import Messages, Response

NOT_ASKED = "not asked"
"""Error of the items that a target was spared, or that the user was."""
ATTACKS = "attacks"
"""Class of the prompts that fresh attackers write."""
_GIVEN_UP = {NOT_ASKED, BUDGET}
FIRST = 20
"""Questions of a kind after which a target that answered none of them is not asked on."""
WINDOW = 40
"""Newest questions of a kind in which errors are counted."""
TOO_MANY = 0.25
"""Share of errors in a window from which a target that makes the evaluation invalid anyway is not
asked on."""
MOST_CLAIMS = 1024
"""Questions that a target is given at once. A kernel looks through all claims of a file for each of
them; a hundred thousand took minutes."""
_POLL_SECONDS = 0.2


@runtime_checkable
class ConcurrentTarget(Protocol):
    """A target that has several questions on their way at a time."""

    name: str
    """Name in tables."""

    def answer_each(self, chats: Sequence[Messages]) -> Iterator[tuple[int, Response]]:
        """Yield (index of the chat, response) in order of arrival; closing it asks no more."""
        ...


class Tally:
    """Decides when a target is not asked on about one kind of prompts.

    Example: `Tally(limit=0.02)`
    """

    def __init__(self, limit: float) -> None:
        """Count nothing yet; above `limit` of errors the evaluation is invalid."""
        self._limit = limit
        self._newest: deque[bool] = deque(maxlen=WINDOW)
        self.total = 0
        """Questions that there are."""
        self.asked = 0
        """Questions that were asked, with or without success."""
        self.errors = 0
        """Questions that ended in an error."""

    def count(self, *, failed: bool) -> None:
        """Count a question that was asked."""
        self.asked += 1
        self.errors += failed
        self._newest.append(failed)

    @property
    def hopeless(self) -> bool:
        """Whether more questions would be in vain.

        Either all of the first `FIRST` failed, or there are more errors already than a valid
        evaluation may have, and of the newest `WINDOW` a quarter failed.
        """
        if self.asked >= FIRST and self.errors == self.asked:
            return True
        failing = len(self._newest) == WINDOW and sum(self._newest) >= TOO_MANY * WINDOW
        return failing and self.errors > self._limit * self.total


class LoggedTarget:
    """Answers from the log of a target, and asks the target for the rest.

    Example: `LoggedTarget(bot, log, limit=0.02).ask(chats, "harmful")`
    """

    def __init__(
        self,
        target: Target,
        log: ResponseLog,
        *,
        limit: float,
        check: Callable[[], None] = lambda: None,
        note: Note | None = None,
        sleep: Callable[[float], None] = time.sleep,
        role: Role = "target",
    ) -> None:
        """Ask nothing yet.

        Args:
            target: Is asked what the log does not answer: by `answer_each` if it has that, or else
                one chat at a time.
            log: Keeps what it answers.
            limit: Share of errors of a kind of prompts above which the evaluation is invalid.
            check: Called while another process asks the same; raises to stop.
            note: Is told what is not asked; without it a line is logged.
            sleep: Waits for some seconds.
            role: Whether it is attacked or judges.
        """
        self.name = target.name
        self.meter = Meter(target.name, role)
        """Counts the time and money of what was asked, now or earlier."""
        self._target = target
        self._log = log
        self._limit = limit
        self._check = check
        self._note = note or warn
        self._sleep = sleep
        self._tallies: dict[str, Tally] = {}
        self._has_told = False

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`: these count as attacks."""
        return self.ask(chats, ATTACKS)

    def ask(self, chats: Sequence[Messages], kind: str) -> list[Response]:
        """Return one response a chat, in order.

        Args:
            chats: Questions; equal ones are draws of their own.
            kind: Class of prompts whose errors are counted together, such as `harmful`.

        Returns:
            A response for each. Errors that were there before the log was opened are asked again,
            after all that was never asked. What was not asked has the error `NOT_ASKED`.

        Raises:
            StoreError: The log cannot be written; what it holds is untouched.
        """
        keys = questions(chats)
        tally = self._tallies.setdefault(kind, Tally(self._limit))
        tally.total += len(chats)
        found, unknown, failed = self._look_up(keys)
        for index, response in self._answers(chats, keys, [*unknown, *failed], tally):
            found[index] = response
        self._log.sync()
        spared = len(keys) - len(found)
        if spared:
            self._note(
                f"{self.name}: {tally.errors} of {tally.asked} questions ({kind}) failed, so it is "
                f"not asked the other {spared}; the same command asks again what failed"
            )
        for response in found.values():
            self.meter.count(response)
        missing = Response(text="", finish_reason="error", error=NOT_ASKED, attempts=0)
        return [found.get(index, missing) for index in range(len(keys))]

    def _look_up(self, keys: Sequence[str]) -> tuple[dict[int, Response], list[int], list[int]]:
        """Return known answers by index, what was never asked, and what failed earlier."""
        found: dict[int, Response] = {}
        unknown: list[int] = []
        failed: list[int] = []
        self._log.refresh()
        for index, key in enumerate(keys):
            stored = self._log.find(key)
            if stored is None:
                unknown.append(index)
            elif stored.earlier and stored.response.error is not None:
                failed.append(index)
            else:
                found[index] = stored.response
        if found and not self._has_told:
            self._has_told = True
            get_logger().info(
                f"{self.name}: {len(found)} of {len(keys)} questions were answered before; "
                "--fresh asks anew",
                log=str(self._log.path),
            )
        return found, unknown, failed

    def _answers(
        self, chats: Sequence[Messages], keys: Sequence[str], order: Sequence[int], tally: Tally
    ) -> Iterator[tuple[int, Response]]:
        """Yield what others answered meanwhile, and what the target answers to the rest."""
        queue, busy = deque(order), deque[int]()
        while queue or busy:
            if tally.hopeless:
                return
            if not queue:  # another process asks all that is left
                self._check()
                self._sleep(_POLL_SECONDS)
                queue, busy = busy, queue
            mine: list[int] = []
            try:
                while queue and len(mine) < self._at_once(tally):
                    index = queue.popleft()
                    if not self._log.claim(keys[index]):
                        busy.append(index)
                        continue
                    mine.append(index)
                    # Only now: whoever asked it had it claimed until the answer was stored.
                    known = self._known(keys[index])
                    if known is not None:
                        self._log.release(keys[mine.pop()])
                        yield index, known
                yield from self._asked(chats, keys, mine, tally)
            finally:
                for index in mine:
                    self._log.release(keys[index])

    def _known(self, key: str) -> Response | None:
        self._log.refresh()
        stored = self._log.find(key)
        if stored is None or (stored.earlier and stored.response.error is not None):
            return None
        return stored.response

    def _at_once(self, tally: Tally) -> int:
        """Return how many questions the target is given: few until it is known to answer."""
        if not isinstance(self._target, ConcurrentTarget):
            return 1
        return FIRST - tally.asked % FIRST if tally.asked < WINDOW else MOST_CLAIMS

    def _asked(
        self, chats: Sequence[Messages], keys: Sequence[str], mine: Sequence[int], tally: Tally
    ) -> Iterator[tuple[int, Response]]:
        """Ask, and keep each answer as it arrives."""
        with closing(self._arriving([chats[index] for index in mine])) as arriving:
            for number, response in arriving:
                index = mine[number]
                if response.attempts:  # otherwise nothing was sent, as where the money is used up
                    self._log.append(keys[index], response)
                self._log.release(keys[index])
                tally.count(failed=response.error is not None)
                yield index, response
                if tally.hopeless:
                    return

    def _arriving(self, chats: Sequence[Messages]) -> Generator[tuple[int, Response]]:
        if not isinstance(self._target, ConcurrentTarget):
            for number, chat in enumerate(chats):
                yield number, self._target.answer([chat])[0]
            return
        each = self._target.answer_each(chats)
        try:
            yield from each
        finally:
            if inspect.isgenerator(each):
                each.close()


def ask(target: Target, chats: Sequence[Messages], kind: str) -> list[Response]:
    """Ask any target about prompts of a kind."""
    return target.ask(chats, kind) if isinstance(target, LoggedTarget) else target.answer(chats)


class GaveUpError(Exception):
    """A target is not asked any more, so that nothing more can be learned on it."""


class AttackedTarget:
    """A target that attackers learn on: their learning ends where it is not asked any more.

    That is where too many questions failed, or a limit on the spending is reached.

    Example: `AttackedTarget(LoggedTarget(bot, log, limit=0.02))`
    """

    def __init__(self, target: Target) -> None:
        """Ask nothing yet."""
        self.name = target.name
        self.target = target
        """The target itself, which gives an answer or an error to each question."""
        self.gave_up: str | None = None
        """Error of the questions that were not asked; None while it is asked."""

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`.

        Raises:
            GaveUpError: An earlier answer said that it is not asked any more.
        """
        self.check()
        found = ask(self.target, chats, ATTACKS)
        self.look_at(found)
        return found

    def check(self) -> None:
        """Raise where the target is not asked any more.

        Raises:
            GaveUpError: It is not.
        """
        if self.gave_up is not None:
            raise GaveUpError(f"{self.name}: {self.gave_up}")

    def look_at(self, answers: Iterable[Response | None]) -> None:
        """Take note where one of these answers says that it is not asked any more."""
        for response in answers:
            if response is not None and response.error in _GIVEN_UP:
                self.gave_up = response.error


def identity_of(target: Target) -> Mapping[str, Any] | None:
    """Return what a target declares itself to be; None if it declares nothing.

    A target says it with `identity`, a mapping or a method that returns one: everything that
    changes its answers, such as URL, model and sampling, and no secret.
    """
    declared = getattr(target, "identity", None)
    found: object = declared() if callable(declared) else declared
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else None


class LoggedTargets:
    """The logs of an evaluation's added targets, which are closed together.

    Example: `with LoggedTargets(cache_dir / "responses", "e1", config) as logged: ...`
    """

    def __init__(
        self,
        directory: Path,
        eval_id: str,
        config: RunConfig,
        *,
        shared: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open nothing yet.

        Args:
            directory: Where logs lie.
            eval_id: Name of the evaluation: scope of a target that declares no identity.
            config: Configuration of the evaluation.
            shared: Whether answers of earlier evaluations count, and later ones may use these;
                False gives the evaluation logs of its own.
            check: Called while another process asks the same; raises to stop.
        """
        self._directory = directory
        self._eval_id = eval_id
        self._limit = config.evaluation.max_error_rate
        self._shared = shared
        self._check = check
        self._logs: list[ResponseLog] = []
        self._meters: list[Meter] = []

    def wrap(self, targets: Iterable[Target], role: Role = "target") -> dict[str, Target]:
        """Return targets by name, each with its log.

        Args:
            targets: They are asked through the logs from here on.
            role: Whether they are attacked or judge.

        Raises:
            StoreError: A log cannot be made.
        """
        return {target.name: self._logged(target, role) for target in targets}

    def take_usage(self) -> list[dict[str, Any]]:
        """Return the time and money of what all of them answered since the last call."""
        found = (meter.take() for meter in self._meters)
        return [one for one in found if one is not None]

    def _logged(self, target: Target, role: Role) -> LoggedTarget:
        identity = identity_of(target)
        if identity is None or not self._shared:
            identity = {**(identity or {"target": target.name}), "evaluation": self._eval_id}
        path = log_path(self._directory, target.name, identity)
        log = ResponseLog(path, target.name, identity)
        self._logs.append(log)
        logged = LoggedTarget(target, log, limit=self._limit, check=self._check, role=role)
        self._meters.append(logged.meter)
        return logged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs:
            with suppress(OSError):
                log.close()
        self._logs.clear()
