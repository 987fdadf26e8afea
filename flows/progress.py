"""Progress for a person who watches a flow: one listener per process, silent unless one is set.

It knows no Prefect. A flow's parameters are JSON, so a listener cannot be one of them; it travels
in a context variable, which Prefect keeps for tasks that are called directly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from tsgb.checkpoint.documents import count_in, printable, seconds_in
from tsgb.cloud.termination import JobEnd
from tsgb.processes import JobState

UNSAVED_SECONDS = 120.0
"""Seconds since the last save from which on a person is told about it."""
FIRST_SECONDS = 1.0
"""Seconds after which a stage is long enough for a line."""
ESTIMATE_SECONDS = 5.0
"""Seconds of a piece of work after which its speed says something."""
_MOST_CHARACTERS = 10_000
SHOWN_RATES = ("asr", "fpr")
"""Metrics of updates that a line about progress shows."""
WAITS, DONE = "waits", "done"
"""Texts of a worker that has not begun, and of one that has ended well."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How far one worker is.

    Example: `Bar(key="selfplay", done=120, total=600, text="guard, round 2")`
    """

    key: str
    """Name of the worker within its stage: an arm, a part, a model."""
    done: int
    """Steps that are done."""
    total: int
    """Steps in all; 0 while that is unknown."""
    text: str = ""
    """Current work, for people: a phase, a model, a state."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """Rates of its newest update, by name, as far as that update has them."""


class Listener(Protocol):
    """Shows a person what happens."""

    def note(self, text: str) -> None:
        """Show something worth a line: a stage begins, a machine was lost."""
        ...

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Show the workers of a stage; called at each look at them."""
        ...


class Silent:
    """Shows no progress; for deployments, whose progress is in Prefect's UI."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Show nothing."""


_LISTENER: ContextVar[Listener] = ContextVar("tsgb_listener", default=Silent())  # noqa: B039 - has no state


def listener() -> Listener:
    """Return the listener that is set here."""
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
    """Read a heartbeat of a worker that builds, trains or evaluates.

    Their keys are `built`, `build_total`, `phase`; `step`, `total_steps`, `phase`, `round`; and
    `done`, `total`, `label`.
    """
    heartbeat: Mapping[str, Any] = state.progress
    metrics: Mapping[str, float] = {}
    if "build_total" in heartbeat:
        done, total = count_in(heartbeat, "built"), count_in(heartbeat, "build_total")
        text = str(heartbeat.get("phase", ""))
    elif "total_steps" in heartbeat:
        done, total = count_in(heartbeat, "step"), count_in(heartbeat, "total_steps")
        text = f"{heartbeat.get('phase', '')}, round {heartbeat.get('round', 0)}"
        metrics = rates_in(heartbeat)
        if "durable_step" in heartbeat:
            text += f", saved {count_in(heartbeat, 'durable_step')}"
            seconds = seconds_in(heartbeat, "seconds_since_durable")
            text += f" ({seconds / 60:.0f} min ago)" if seconds > UNSAVED_SECONDS else ""
        if heartbeat.get("alarm"):
            text += f" [!] {heartbeat['alarm']}"
    else:
        done, total = count_in(heartbeat, "done"), count_in(heartbeat, "total")
        text = str(heartbeat.get("label", ""))
    if state.end is JobEnd.DONE:
        text = DONE
    elif state.started is None:
        text = WAITS
    elif not heartbeat:
        text = "runs"
    return Bar(state.key, done, total, text, metrics)


def rates_in(heartbeat: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates that a heartbeat tells of its newest update: 0 to 1, by name."""
    told: object = heartbeat.get("metrics")
    if not isinstance(told, Mapping):
        return {}
    named = cast("Mapping[str, object]", told)
    found = {name: named.get(name) for name in SHOWN_RATES}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and 0 <= value <= 1
    }


class Together:
    """Shows several runs that train at once on one listener, each under its name.

    Example: `Together(listener()).of("r1-s0").note("instance 7 is up")`
    """

    def __init__(self, to: Listener) -> None:
        """Show them on a listener, which one thread at a time uses."""
        self._to = to
        self._lock = Lock()
        self._bars: dict[str, Sequence[Bar]] = {}

    def of(self, name: str) -> Listener:
        """Return the listener of one run."""
        return _One(self, name)

    def note(self, name: str, text: str) -> None:
        """Show a line of a run."""
        with self._lock:
            self._to.note(f"{name}: {text}")

    def bars(self, name: str, bars: Sequence[Bar]) -> None:
        """Show the bars of a run beside those that the others showed last."""
        with self._lock:
            self._bars[name] = [replace(bar, key=f"{name} {bar.key}") for bar in bars]
            shown_now = [bar for run in sorted(self._bars) for bar in self._bars[run]]
            self._to.bars("runs", shown_now)


@dataclass(frozen=True, slots=True)
class _One:
    """One of several runs."""

    together: Together
    """All of them."""
    name: str
    """Its id."""

    def note(self, text: str) -> None:
        self.together.note(self.name, text)

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:  # noqa: ARG002 - runs differ in it
        self.together.bars(self.name, bars)


class ProgressText:
    """A text about a stage from time to time: how far, how fast and how well each worker is.

    There is one after the stage's first second, when a worker passes another tenth of its work, and
    every `every_seconds` in any case.
    """

    def __init__(self, every_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            every_seconds: Most seconds between two texts; a third of it is the least.
            clock: Seconds that never go back.
        """
        self._every_seconds = every_seconds
        self._clock = clock
        self._stage = ""
        self._due = self._earliest = 0.0
        self._tenths: list[int] = []
        self._paces: dict[str, _Pace] = {}
        self._rates: dict[str, dict[str, float]] = {}

    def due(self, stage: str, bars: Sequence[Bar]) -> str | None:
        """Return a text if there is news, or if the last one is old enough."""
        now = self._clock()
        if stage != self._stage:
            self._stage, self._paces, self._tenths = stage, {}, []
            self._due = self._earliest = now + FIRST_SECONDS
        for bar in bars:
            pace = self._paces.get(bar.key)
            if pace is None or pace.total != bar.total or bar.done < pace.first_done:
                self._paces[bar.key] = _Pace(now, bar.done, bar.total)
            # An update trains one of the two players, and tells the rate of that one.
            self._rates.setdefault(bar.key, {}).update(bar.metrics)
        tenths = [10 * bar.done // bar.total for bar in bars if bar.total]
        if now < self._due and (now < self._earliest or tenths == self._tenths):
            return None
        self._tenths = tenths
        self._due, self._earliest = now + self._every_seconds, now + self._every_seconds / 3
        return f"{stage}: {self.describe(bars)}"

    def describe(self, bars: Sequence[Bar]) -> str:
        """Return the text about workers that were looked at before."""
        now = self._clock()
        return "; ".join(
            self._paces[bar.key].describe(bar, now, self._rates.get(bar.key, {})) for bar in bars
        )


class Lines:
    """A line on each note, and one about a stage from time to time: for logs and pipes."""

    def __init__(
        self,
        stream: TextIO,
        every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Print to a stream.

        Args:
            stream: Where lines go.
            every_seconds: Most seconds between two lines about a stage; a third of it is the least.
            clock: Seconds that never go back.
        """
        self._stream = stream
        self._clock = clock
        self._start = clock()
        self._text = ProgressText(every_seconds, clock)

    def note(self, text: str) -> None:
        """Print a line."""
        self._stream.write(f"[{self._clock() - self._start:6.0f} s] {shown(text)}\n")
        self._stream.flush()

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Print a line if there is news, or if the last line is old enough."""
        text = self._text.due(stage, bars)
        if text is not None:
            self.note(text)


@dataclass(frozen=True, slots=True)
class _Pace:
    """The start of a worker's piece of work, from which its speed is taken."""

    start: float
    """Time of the first look at it, in seconds of the listener's clock."""
    first_done: int
    """Steps that were done at that look."""
    total: int
    """Steps of the piece; a worker that builds models has one piece for each."""

    def describe(self, bar: Bar, now: float, rates: Mapping[str, float]) -> str:
        """Return the worker's part of a text."""
        seconds = now - self.start
        if not bar.total:
            plain = bar.text in {WAITS, DONE} or seconds < ESTIMATE_SECONDS
            return f"{bar.key} {bar.text}" + ("" if plain else f" for {duration(seconds)}")
        figures = [f"{name.upper()} {100 * rate:.3g} %" for name, rate in sorted(rates.items())]
        text = ", ".join([f"{bar.key} {bar.done}/{bar.total} {bar.text}", *figures])
        fresh = bar.done - self.first_done
        if fresh <= 0 or seconds < ESTIMATE_SECONDS or bar.done >= bar.total:
            return text
        return f"{text} (about {duration(seconds * (bar.total - bar.done) / fresh)} left)"


def shown(text: str) -> str:
    """Return a text for a terminal; some of it is from hosts and services that nobody trusts."""
    return printable(text[:_MOST_CHARACTERS], keep="\n\t")


def duration(seconds: float) -> str:
    """Return a time span for people.

    >>> duration(42), duration(700), duration(9000)
    ('42 s', '12 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Bars:
    """Progress bars, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[stage]:>8}"),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self._stage = ""
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        """Start to draw at the bottom of the terminal."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear what was drawn."""
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(shown(text), markup=False, highlight=False)

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        """Draw the workers; a new stage takes the place of the one before."""
        if stage != self._stage:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._stage, self._tasks = stage, {}
        for bar in bars:
            if bar.key not in self._tasks:
                self._tasks[bar.key] = self._progress.add_task(
                    shown(bar.key), total=None, stage=stage, text=""
                )
            self._progress.update(
                self._tasks[bar.key],
                completed=bar.done,
                total=bar.total or None,
                text=shown(bar.text),
            )


@contextmanager
def watching(stream: TextIO | None = None) -> Generator[Listener]:
    """Show progress on stderr, or `stream`: bars on a terminal, lines elsewhere."""
    console = Console(file=stream or sys.stderr)
    if console.is_terminal:
        with Bars(console) as bars, listening(bars):
            yield bars
    else:
        lines = Lines(console.file)  # pyright: ignore[reportArgumentType]
        with listening(lines):
            yield lines
