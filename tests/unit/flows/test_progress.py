"""What a person sees."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from rich.console import Console

from flows.progress import Bar, Bars, Lines, bar_of, listener, listening, rates_in, watching
from tsgb.cloud.termination import JobEnd
from tsgb.processes import JobState, StartedJob


@pytest.mark.parametrize(
    ("heartbeat", "end", "bar"),
    [
        pytest.param({}, None, Bar("sft", 0, 0, "runs"), id="no-heartbeat-yet"),
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
            {"step": 9, "total_steps": 9}, JobEnd.DONE, Bar("sft", 9, 9, "done"), id="done"
        ),
    ],
)
def test_heartbeats_become_bars(heartbeat: dict[str, object], end: JobEnd | None, bar: Bar) -> None:
    started = StartedJob(process=None)  # type: ignore[arg-type]
    state = JobState("sft", started=started, progress=heartbeat, end=end)
    assert bar_of(state) == bar


def test_a_line_keeps_the_rate_of_the_player_that_rests() -> None:
    def bar(done: int, **rates: float) -> list[Bar]:
        return [Bar("selfplay", done, 100, "guard", rates)]

    lines = told(
        [(0, "train", bar(0)), (2, "train", bar(1, asr=0.312)), (60, "train", bar(40, fpr=0.02))]
    )
    assert lines[-1].endswith("selfplay 40/100 guard, ASR 31.2 %, FPR 2 % (about 90 s left)")


def test_rates_of_a_heartbeat_are_rates() -> None:
    told_of = {"asr": 0.5, "fpr": -1, "fnr": 0.1, "step": 3}
    assert rates_in({"metrics": told_of}) == {"asr": 0.5}
    assert rates_in({"metrics": "\x1b[2J"}) == {}
    assert rates_in({"metrics": {"asr": "high", "fpr": float("nan")}}) == {}


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def told(looks: Iterable[tuple[float, str, list[Bar]]]) -> list[str]:
    """The lines about these looks, each at its second."""
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, every_seconds=30.0, clock=clock)
    for clock.now, stage, bars in looks:
        lines.bars(stage, bars)
    return stream.getvalue().splitlines()


def test_a_long_stage_says_how_far_it_is_and_how_long_it_takes() -> None:
    looks = [(float(s), "segment 0", [Bar("sft", s, 400, "guard")]) for s in range(401)]
    lines = told(looks)
    assert lines[:3] == [
        "[     1 s] segment 0: sft 1/400 guard",
        "[    31 s] segment 0: sft 31/400 guard (about 6 min left)",
        "[    41 s] segment 0: sft 41/400 guard (about 6 min left)",
    ]
    assert lines[-1] == "[   391 s] segment 0: sft 391/400 guard (about 9 s left)"
    seconds = [int(line[1:7]) for line in lines]
    assert all(10 <= b - a <= 30 for a, b in pairwise(seconds))


def test_a_short_stage_has_few_lines() -> None:
    lines = told((s / 10, "segment 0", [Bar("sft", s, 90, "guard")]) for s in range(91))
    assert lines == ["[     1 s] segment 0: sft 10/90 guard"]
    assert told([(0.0, "verify", [Bar("r1", 1, 9)]), (0.5, "verify", [Bar("r1", 9, 9)])]) == []


def test_a_stage_without_heartbeats_says_for_how_long_it_runs() -> None:
    looks = [(float(s), "report", [Bar("a", 0, 0, "runs"), Bar("b", 0, 0, "waits")]) for s in (0,)]
    looks += [(float(s), "report", looks[0][2]) for s in range(1, 121)]
    assert told(looks)[::2] == [
        "[     1 s] report: a runs; b waits",
        "[    61 s] report: a runs for 61 s; b waits",
    ]


def test_each_model_and_each_stage_has_an_estimate_of_its_own() -> None:
    looks = [
        (0.0, "building models", [Bar("part 1", 0, 0, "runs")]),
        (1.0, "building models", [Bar("part 1", 0, 0, "runs")]),
        (100.0, "building models", [Bar("part 1", 50, 600, "build base")]),
        (150.0, "building models", [Bar("part 1", 100, 600, "build base")]),
        (700.0, "building models", [Bar("part 1", 1, 200, "build B_near")]),
        (731.0, "building models", [Bar("part 1", 32, 200, "build B_near")]),
        (732.0, "segment 0", [Bar("part 1", 150, 200, "guard")]),
        (733.0, "segment 0", [Bar("part 1", 150, 200, "guard")]),
        (763.0, "segment 0", [Bar("part 1", 160, 200, "guard")]),
    ]
    assert [line.partition(": ")[2] for line in told(looks)] == [
        "part 1 runs",
        "part 1 50/600 build base",
        "part 1 100/600 build base (about 8 min left)",
        "part 1 1/200 build B_near",
        "part 1 32/200 build B_near (about 3 min left)",
        "part 1 150/200 guard",
        "part 1 160/200 guard (about 2 min left)",
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


@pytest.mark.parametrize(
    "name", ["step", "total_steps", "durable_step", "seconds_since_durable", "build_total"]
)
@pytest.mark.parametrize("stored", ["x", [1], None, float("inf")])
def test_a_strange_heartbeat_says_nothing(name: str, stored: object) -> None:
    heartbeat = {"step": 1, "total_steps": 2, "durable_step": 1, "seconds_since_durable": 1.0}
    bar = bar_of(JobState("a", progress={**heartbeat, name: stored}))
    assert (bar.done, bar.total) in {(1, 2), (0, 2), (1, 0), (0, 0)}


def test_what_others_say_does_not_steer_a_terminal() -> None:
    lines, drawn = io.StringIO(), io.StringIO()
    said = "lost\x1b]0;title\x07\nby its host\r"
    watcher = Lines(lines)
    watcher.note(said)
    watcher.bars("segment 0", [Bar("self\x1bplay", 0, 0, "guard\x07")])
    watcher.bars("segment 1", [])
    with Bars(Console(file=drawn, force_terminal=True, width=100)) as bars:
        bars.bars("segment 0", [Bar("self\x1bplay", 3, 9, "gu\x07ard")])
        bars.note(said)
    for stream in (lines, drawn):
        assert "lost?]0;title?\nby its host?" in stream.getvalue()
        assert "\x07" not in stream.getvalue()
    assert "self\x1bplay" not in drawn.getvalue()
