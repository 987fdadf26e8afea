"""Replays: the stretch that is chosen, and the share of a run that they vouch for."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.replays import (
    ReplayRecord,
    choose_stretch,
    read_replays,
    share_replayed,
    write_replay,
)
from tsgb.checkpoint.run import open_run
from tsgb.errors import UsageError


def kept(*steps: int) -> list[CheckpointName]:
    return [CheckpointName(1, step, "0001b2c4") for step in steps]


def record(first: int, last: int, deviation: float | None = 0.0) -> ReplayRecord:
    start, stop = kept(first, last)
    return ReplayRecord(
        start=start.name,
        stop=stop.name,
        start_sha256="a",
        stop_sha256="b",
        first_step=first,
        last_step=last,
        total_steps=100,
        deviation=deviation,
        where="",
        moved=0.1,
        tolerance=1e-4,
        at=datetime(2026, 11, 29, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("updates", "start", "wanted"),
    [
        (1, None, (30, 40)),
        (10, None, (30, 40)),
        (11, None, (20, 40)),
        (99, None, (10, 40)),
        (1, 10, (10, 20)),
        (11, 10, (10, 30)),
        (99, 20, (20, 40)),
    ],
)
def test_the_stretch(updates: int, start: int | None, wanted: tuple[int, int]) -> None:
    name = None if start is None else kept(start)[0].name
    first, last = choose_stretch(kept(40, 10, 30, 20), updates, name)
    assert (first.step, last.step) == wanted


def test_of_one_step_the_highest_attempt_counts() -> None:
    again = CheckpointName(2, 20, "0001b2c4")
    assert choose_stretch([again, *kept(10, 20)], 5) == (kept(10)[0], again)


def test_what_leads_nowhere_is_refused() -> None:
    for found in ([], kept(10)):
        with pytest.raises(UsageError, match=f"has {len(found)} checkpoints, and a replay leads"):
            choose_stretch(found, 1)
    with pytest.raises(UsageError, match="is the last checkpoint of its run"):
        choose_stretch(kept(10, 20), 1, kept(20)[0].name)
    with pytest.raises(UsageError, match="is no checkpoint that counts"):
        choose_stretch(kept(10, 20), 1, kept(15)[0].name)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40), st.booleans()), max_size=6))
def test_each_update_counts_once(stretches: list[tuple[int, int, bool]]) -> None:
    records = [
        record(first, first + num, 0.0 if agrees else 1.0) for first, num, agrees in stretches
    ]
    updates = {u for one in records if one.agrees for u in range(one.first_step, one.last_step)}
    assert share_replayed(records, 100) == len(updates & set(range(100))) / 100


def test_only_what_is_signed_and_whole_is_read(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "r1"), manifest_key=SecretStr("k" * 20))
    assert read_replays(run) == []
    good, worse = record(0, 10), record(10, 20, None)
    write_replay(run, worse)
    write_replay(run, good)
    forged = record(20, 30)
    run.write_json(f"replays/{forged.stop}.json", forged.model_dump(mode="json"))
    run.write_text("replays/notes.txt", "mine")
    assert read_replays(run) == [good, worse]
    assert not worse.agrees
    name = f"replays/{good.stop}.json"
    run.write_signed(name, re.sub(rb'"moved": ?0.1', b'"moved": "far"', run.read_bytes(name)))
    assert read_replays(run) == [worse]
