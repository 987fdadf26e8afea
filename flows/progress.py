"""What a flow tells a person who watches: a listener per process, silent unless one is set.

It knows no Prefect. A flow's parameters are JSON, so a listener cannot be one of them; it travels
in a context variable, which Prefect keeps for tasks that are called directly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from tsgb.cloud.termination import Outcome
from tsgb.processes import JobState

UNSAVED_SECONDS = 120.0
"""From here on a person is told how long ago the last save was."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How far one worker is.

    Example: `Bar(key="selfplay", done=120, total=600, text="guard, round 2")`
    """

    key: str
    done: int
    total: int
    text: str = ""


class Listener(Protocol):
    """Is told what happens."""

    def note(self, text: str) -> None:
        """Something worth a line: a stage begins, a machine was lost."""
        ...

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """The workers of a stage, at each look."""
        ...


class Silent:
    """Says nothing; for deployments, whose progress is in Prefect's UI."""

    def note(self, text: str) -> None:
        """Nothing."""

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Nothing."""


_LISTENER: ContextVar[Listener] = ContextVar("tsgb_listener", default=Silent())  # noqa: B039 - has no state


def listener() -> Listener:
    """The one that is set here."""
    return _LISTENER.get()


@contextmanager
def listening(to: Listener) -> Generator[None]:
    """Set the listener for what runs inside."""
    token = _LISTENER.set(to)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def bar_of(state: JobState) -> Bar:
    """Read a heartbeat: a trainer's (`step`, `total_steps`, `phase`) or an evaluation's."""
    heartbeat: Mapping[str, Any] = state.progress
    if "build_total" in heartbeat:
        done, total = heartbeat.get("built", 0), heartbeat["build_total"]
        text = str(heartbeat.get("phase", ""))
    elif "total_steps" in heartbeat:
        done, total = heartbeat.get("step", 0), heartbeat["total_steps"]
        text = f"{heartbeat.get('phase', '')}, round {heartbeat.get('round', 0)}"
        if "durable_step" in heartbeat:
            text += f", saved {max(0, heartbeat['durable_step'])}"
            if heartbeat.get("seconds_since_durable", 0) > UNSAVED_SECONDS:
                text += f" ({heartbeat['seconds_since_durable'] / 60:.0f} min ago)"
        if heartbeat.get("alarm"):
            text += f" [!] {heartbeat['alarm']}"
    else:
        done, total = heartbeat.get("done", 0), heartbeat.get("total", 0)
        text = str(heartbeat.get("label", ""))
    if state.outcome is Outcome.DONE:
        text = "done"
    elif state.attempt is None:
        text = "waits"
    elif not heartbeat:
        text = "starts"
    return Bar(state.key, int(done), int(total), text)


class Lines:
    """A line on each note, and one about all workers every few seconds: for logs and pipes."""

    def __init__(
        self,
        stream: TextIO,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._every_seconds = every_seconds
        self._clock = clock
        self._start = clock()
        self._next = self._start + every_seconds

    def note(self, text: str) -> None:
        """Print a line."""
        self._stream.write(f"[{self._clock() - self._start:6.0f} s] {text}\n")
        self._stream.flush()

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Print a line if the last one is old enough."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + self._every_seconds
        parts = [
            f"{bar.key} {bar.done}/{bar.total} {bar.text}" if bar.total else f"{bar.key} {bar.text}"
            for bar in bars
        ]
        self.note(f"{stage}: {'; '.join(parts)}")


class Bars:
    """Progress bars, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[stage]:>8}"),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self._stage = ""
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        """Take over the bottom of the terminal."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Draw them; a new stage takes the old one's place."""
        if stage != self._stage:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._stage, self._tasks = stage, {}
        for bar in bars:
            if bar.key not in self._tasks:
                self._tasks[bar.key] = self._progress.add_task(
                    bar.key, total=None, stage=stage, text=""
                )
            self._progress.update(
                self._tasks[bar.key], completed=bar.done, total=bar.total or None, text=bar.text
            )


@contextmanager
def watching(stream: TextIO | None = None) -> Generator[Listener]:
    """Tell a person on stderr: bars on a terminal, lines elsewhere."""
    console = Console(file=stream or sys.stderr)
    if console.is_terminal:
        with Bars(console) as bars, listening(bars):
            yield bars
    else:
        lines = Lines(console.file)  # pyright: ignore[reportArgumentType]
        with listening(lines):
            yield lines
