"""A user's own black box: a class with `generate`, named as `module:attribute`.

    class MyLLM:
        name, version = "my-llm", "2"    # optional: equal ones are asked once

        def generate(self, prompt: str) -> str: ...

Everything that its code can do is classified here: a call that fails is a response with an error,
never the end of a run.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from tsgb.errors import UsageError
from tsgb.logging import get_logger
from tsgb.plugins import Plugin, declared, load_plugin
from tsgb.protocols import BlackBoxLLM
from tsgb.types import Messages, Response, TargetSpec

OPTION = "--target-class"


def load_black_boxes(paths: Sequence[str]) -> dict[str, Plugin]:
    """Load black boxes, by their names in tables.

    Raises:
        UsageError: One cannot be loaded, has no `generate`, or has the name of another one.
    """
    found: dict[str, Plugin] = {}
    for path in paths:
        plugin = load_plugin(path, OPTION)
        if not isinstance(plugin.made, BlackBoxLLM):
            raise UsageError(
                f"{OPTION} {path!r} gives a {type(plugin.made).__name__} without `generate`: "
                "it needs generate(prompt: str) -> str"
            )
        if plugin.name in found:
            raise UsageError(
                f"{OPTION} {found[plugin.name].path!r} and {path!r} have one name in the tables, "
                f"{plugin.name!r}: rename one of them"
            )
        found[plugin.name] = plugin
    return found


def target_specs(paths: Sequence[str]) -> dict[str, TargetSpec]:
    """Return what tables say of black boxes, by name; imports nothing."""
    specs = [
        TargetSpec(name=path.partition(":")[2], role="black_box", arch=f"yours: {path}")
        for path in paths
    ]
    return {spec.name: spec for spec in specs}


class BlackBoxTarget:
    """Asks a user's black box one prompt at a time."""

    def __init__(self, name: str, llm: BlackBoxLLM, check: Callable[[], None]) -> None:
        """Ask `llm`; `check` is called before each prompt and raises to stop."""
        self.name = name
        self._llm = llm
        self._check = check
        self._has_warned = False

    @property
    def identity(self) -> Mapping[str, str] | None:
        """The declared name and version, under which answers are kept; None if there are none.

        The file that it is written in does not count: a judge in it may change.
        """
        return declared(self._llm)

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """Return one response a chat; a call that raised has the error's class as `error`."""
        return [self._ask("\n\n".join(message["content"] for message in chat)) for chat in chats]

    def _ask(self, prompt: str) -> Response:
        self._check()
        start = time.monotonic()
        try:
            text = cast("object", self._llm.generate(prompt))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too is a failure
            return Response(text="", finish_reason="error", error=type(error).__name__)
        if not isinstance(text, str):
            if inspect.iscoroutine(text):
                text.close()  # or Python warns that nobody awaited it
            kind = type(text).__name__
            return Response(text="", finish_reason="error", error=f"generate gave {kind}, not str")
        return Response(text=self._readable(text), latency_seconds=time.monotonic() - start)

    def _readable(self, text: str) -> str:
        """Escape lone surrogates, which no file and no JSON document can hold."""
        readable = text.encode(errors="backslashreplace").decode()
        if readable != text and not self._has_warned:
            self._has_warned = True
            get_logger().warning(
                "answers hold lone surrogates, which are no Unicode text: stored as \\udXXX",
                target=self.name,
            )
        return readable
