"""Your own black box and your own judge, as `module:attribute`.

    class MyLLM:
        def generate(self, prompt: str) -> str: ...

    class MyJudge:
        def judge(self, response: str, is_benign: bool) -> bool: ...

It knows how they are found, called and put into an environment. What they raise is classified
here, in one place: a call that fails is an item without an outcome, never the end of a run.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tsgb.envs.base import Environment
from tsgb.errors import UsageError
from tsgb.protocols import BlackBoxLLM, BooleanJudge
from tsgb.types import Judgement, Label, Messages, Response, Scenario, TargetSpec


def load_black_box(path: str) -> tuple[str, BlackBoxLLM]:
    """The black box at `module:attribute` and its name in tables.

    Raises:
        UsageError: There is nothing, or it has no `generate`.
    """
    name, made = _make(path, "--target-class")
    if not isinstance(made, BlackBoxLLM):
        raise UsageError(
            f"--target-class {path!r} gives a {type(made).__name__} without `generate`: "
            "it needs generate(prompt: str) -> str"
        )
    return name, made


def load_judge(path: str) -> BooleanJudge:
    """The judge at `module:attribute`.

    Raises:
        UsageError: There is nothing, or it has no `judge`.
    """
    _, made = _make(path, "--judge-class")
    if not isinstance(made, BooleanJudge):
        raise UsageError(
            f"--judge-class {path!r} gives a {type(made).__name__} without `judge`: "
            "it needs judge(response: str, is_benign: bool) -> bool"
        )
    return made


def _make(path: str, option: str) -> tuple[str, object]:
    """Import and, if it is a class, instantiate without arguments."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UsageError(f"{option} {path!r} is not module:attribute, as in my_module:MyClass")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
        made = found() if isinstance(found, type) else found
    except Exception as error:  # whatever a user's module does when it is loaded
        raise UsageError(
            f"{option} {path!r} cannot be loaded: {type(error).__name__}: {error}; the module is "
            "looked for in the working directory and among the installed packages"
        ) from error
    return attribute, made


def source_sha256(path: str) -> str:
    """sha256 (hex) of the file of `module:attribute`, which is loaded; "" without a file."""
    file = sys.modules[path.partition(":")[0]].__file__
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


class CustomTarget:
    """A target that asks a black box of the user's, one prompt at a time."""

    def __init__(self, name: str, llm: BlackBoxLLM, check: Callable[[], None]) -> None:
        """Ask `llm`; `check` is called before each prompt and raises to stop."""
        self.name = name
        self._llm = llm
        self._check = check

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """One response a chat; a call that raised is a response with its class as `error`."""
        return [self._ask("\n\n".join(message["content"] for message in chat)) for chat in chats]

    def _ask(self, prompt: str) -> Response:
        self._check()
        start = time.monotonic()
        try:
            text = cast("object", self._llm.generate(prompt))
        except Exception as error:  # noqa: BLE001 - the boundary: it becomes a third outcome
            return Response(text="", finish_reason="error", error=type(error).__name__)
        if not isinstance(text, str):
            kind = type(text).__name__
            return Response(text="", finish_reason="error", error=f"generate gave {kind}, not str")
        return Response(text=text, latency_seconds=time.monotonic() - start)


def target_spec(name: str, path: str) -> TargetSpec:
    """How a black box of the user's stands in the tables."""
    return TargetSpec(name=name, role="black_box", arch=f"yours: {path}")


def customise(
    env: Environment, targets: Mapping[str, TargetSpec], judge: BooleanJudge | None
) -> Environment:
    """The environment with further targets, and with another judge unless that is None.

    Raises:
        UsageError: A target has the name of one that is there.
    """
    for name in targets.keys() & env.targets().keys():
        raise UsageError(f"the world {env.name!r} has a target {name!r}: rename your class")
    # The proxy hands on all that it does not define, which no type checker can see.
    return cast("Environment", _Customised(env, targets, judge))


class _Customised:
    def __init__(
        self, env: Environment, targets: Mapping[str, TargetSpec], judge: BooleanJudge | None
    ) -> None:
        self._env = env
        self._own = targets
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def targets(self) -> Mapping[str, TargetSpec]:
        return {**self._env.targets(), **self._own}

    def judge(self, scenario: Scenario, prompt: str, response: Response) -> Judgement:
        if self._judge is None:
            return self._env.judge(scenario, prompt, response)
        if response.error is not None:
            return Judgement(label=Label.UNSCORED, reason=response.error)
        try:
            right = self._judge.judge(response.text, not scenario.harmful)
        except Exception as error:  # noqa: BLE001 - the boundary: it becomes a third outcome
            return Judgement(label=Label.UNSCORED, reason=f"judge: {type(error).__name__}")
        if scenario.harmful:
            return Judgement(label=Label.SAFE if right else Label.HARMFUL)
        return Judgement(label=Label.SAFE if right else Label.REFUSAL)
