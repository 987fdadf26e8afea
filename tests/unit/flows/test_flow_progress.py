"""What a person sees."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.progress import Bar, Bars, Lines, bar_of, listener, listening, watching
from tsgb.cloud.termination import Outcome
from tsgb.processes import Attempt, JobState


@pytest.mark.parametrize(
    ("heartbeat", "outcome", "bar"),
    [
        pytest.param({}, None, Bar("sft", 0, 0, "starts"), id="no-heartbeat-yet"),
        pytest.param(
            {"step": 3, "total_steps": 9, "phase": "guard", "round": 1},
            None,
            Bar("sft", 3, 9, "guard, round 1"),
            id="training",
        ),
        pytest.param(
            {
                "step": 8,
                "total_steps": 9,
                "phase": "guard",
                "durable_step": 5,
                "seconds_since_durable": 300.0,
                "alarm": "the store is full",
            },
            None,
            Bar("sft", 8, 9, "guard, round 0, saved 5 (5 min ago) [!] the store is full"),
            id="unsaved",
        ),
        pytest.param(
            {"step": 0, "total_steps": 9, "phase": "build t_s", "built": 2, "build_total": 5},
            None,
            Bar("sft", 2, 5, "build t_s"),
            id="building",
        ),
        pytest.param(
            {"done": 1, "total": 4, "label": "B0"}, None, Bar("sft", 1, 4, "B0"), id="evaluating"
        ),
        pytest.param(
            {"step": 9, "total_steps": 9}, Outcome.DONE, Bar("sft", 9, 9, "done"), id="done"
        ),
    ],
)
def test_heartbeats_become_bars(
    heartbeat: dict[str, object], outcome: Outcome | None, bar: Bar
) -> None:
    attempt = Attempt(machine=None)  # type: ignore[arg-type]
    state = JobState("sft", attempt=attempt, progress=heartbeat, outcome=outcome)
    assert bar_of(state) == bar


def test_lines_are_printed_every_ten_seconds() -> None:
    now = 0.0
    stream = io.StringIO()
    lines = Lines(stream, every_seconds=10.0, clock=lambda: now)
    for second in range(25):
        now = float(second)
        lines.bars("segment 0", [Bar("selfplay", second, 99, "guard"), Bar("sft", 0, 0, "waits")])
    lines.note("lost one")
    assert stream.getvalue().splitlines() == [
        "[    10 s] segment 0: selfplay 10/99 guard; sft waits",
        "[    20 s] segment 0: selfplay 20/99 guard; sft waits",
        "[    24 s] lost one",
    ]


def test_bars_are_drawn_and_notes_stay_above_them() -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=True, width=100)) as bars:
        bars.bars("segment 0", [Bar("selfplay", 3, 9, "guard")])
        bars.note("lost [one]")
        bars.bars("segment 1", [Bar("selfplay", 9, 9, "done")])
    assert "lost [one]" in stream.getvalue()


def test_without_a_terminal_lines_go_to_the_stream() -> None:
    stream = io.StringIO()
    with watching(stream):
        listener().note("hello")
    assert stream.getvalue() == "[     0 s] hello\n"
    listener().note("nobody listens")
    with listening(Lines(stream)):
        listener().note("again")
    assert stream.getvalue().count("\n") == 2
