from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.data_evaluation import MAP, LengthGuard, Registry, StandIn, rows
from tsgb.data.readable import MAX_TOKENS
from tsgb.data.records import DataPrompt
from tsgb.data.selection import SelectedPrompt
from tsgb.data.training import TrainingPrompt
from tsgb.errors import Interrupted, UsageError
from tsgb.eval.calibrated import CalibratedGuard
from tsgb.eval.data_results import CELL, read_cell, read_files
from tsgb.eval.own_data import OwnData, data_items, fill_data
from tsgb.guards.choice import read_choices


def selected(text: str, *, harmful: bool = True) -> SelectedPrompt:
    prompt = DataPrompt(
        text=text, harmful=harmful, group="g1", slice="a\u202eb", source="map", row=1
    )
    return SelectedPrompt(prompt=prompt, group="g1", digest="ab" * 16)


def test_an_item_holds_ids_and_verdicts_and_no_text() -> None:
    guard = CalibratedGuard("length", LengthGuard(), threshold=12.0)
    prompts = [selected("kolibri kolibri"), selected("kolibri?"), selected("kol", harmful=False)]
    long, unknown, short = data_items("own.csv", prompts, [guard], 4)
    assert (long.scores, long.blocked, long.harmful) == ({"length": 15.0}, {"length": True}, True)
    assert (unknown.scores, unknown.blocked) == ({}, {})
    assert (short.blocked, short.harmful, short.seed) == ({"length": False}, False, 4)
    assert (long.scenario_id, long.slice, long.file) == ("g1", "a<U+202E>b", "own.csv")
    assert "kolibri" not in long.model_dump_json()


def test_the_cell_is_made_once_for_a_dtype(tmp_path: Path) -> None:
    texts = [f"kolibri number {i}" for i in range(100)]
    data = OwnData.read([rows(tmp_path, texts)], MAP, 0)
    evaluation, told = StandIn(tmp_path), list[tuple[int, int, str]]()

    def fill() -> None:
        fill_data(evaluation, data, lambda *word: told.append(word), lambda: None)

    fill()
    num = evaluation.guard.asked
    assert told[-1] == (num, num, "data")
    fill()
    assert evaluation.guard.asked == num
    evaluation.registry = Registry("bfloat16")
    fill()
    assert evaluation.guard.asked == 2 * num
    cell = read_cell(evaluation.run, evaluation.directory)
    [record] = read_files({"data": [r.model_dump() for r in data.records]}, cell)
    assert (record.drawn, record.too_long) == (num, 0) == (len(cell["items"]), 0)
    assert "kolibri" not in json.dumps(cell)


def test_a_cell_that_lacks_verdicts_is_made_again(tmp_path: Path) -> None:
    texts = [f"kolibri number {i}" + "?" * (i % 9 == 0) for i in range(100)]
    data = OwnData.read([rows(tmp_path, texts)], MAP, 0)
    evaluation = StandIn(tmp_path)
    for times in (1, 2):
        fill_data(evaluation, data, lambda *_: None, lambda: None)
        assert evaluation.guard.asked == times * data.records[0].drawn
    cell = read_cell(evaluation.run, evaluation.directory)
    assert cell["missing"] == sum(not item.get("blocked") for item in cell["items"]) > 0


def test_prompts_that_are_too_long_are_counted_and_not_scored(tmp_path: Path) -> None:
    texts = [f"bird {i} " + "a " * (MAX_TOKENS * (i % 2)) for i in range(40)]
    texts += [f"{i}" + "a" * 1_000_000 for i in range(4)]
    data = OwnData.read([rows(tmp_path, texts)], MAP, 0)
    evaluation = StandIn(tmp_path)
    fill_data(evaluation, data, lambda *_: None, lambda: None)
    cell = read_cell(evaluation.run, evaluation.directory)
    assert 0 < cell["too_long"]["own.jsonl"] < data.records[0].drawn
    assert evaluation.guard.asked == data.records[0].drawn - cell["too_long"]["own.jsonl"]


def test_an_interrupted_cell_is_not_there(tmp_path: Path) -> None:
    data = OwnData.read([rows(tmp_path, [f"bird {i}" for i in range(300)])], MAP, 0)
    evaluation = StandIn(tmp_path)

    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        fill_data(evaluation, data, lambda *_: None, stop)
    with pytest.raises(UsageError, match="lacks the cell of the data: evaluate first"):
        read_cell(evaluation.run, evaluation.directory)
    evaluation.run.write_text(f"{evaluation.directory}/{CELL}", '{"items": [')
    fill_data(evaluation, data, lambda *_: None, lambda: None)
    assert read_cell(evaluation.run, evaluation.directory)["items"]


def test_a_limit_is_told_with_what_there_is(tmp_path: Path) -> None:
    path = rows(tmp_path, [f"bird {i}" for i in range(300)])
    [all_of_it], [some] = (OwnData.read([path], MAP, limit).records for limit in (0, 20))
    assert (some.drawn, some.available) == (20, all_of_it.drawn)
    assert some.split_sha256 != all_of_it.split_sha256


def test_it_is_told_which_services_read_the_prompts(tmp_path: Path) -> None:
    data = OwnData.read([rows(tmp_path, [f"bird {i}" for i in range(60)])], MAP, 0)
    services = ("always-block", "far=moderation:https://mod.test:8443/v1/moderations#big")
    [line] = data.sent_to(read_choices(services, ()))
    num = data.records[0].drawn
    assert line == (
        f"the guard 'far' is a service: up to {num} prompts of own.jsonl are sent to mod.test"
    )


def test_prompts_that_the_guard_was_trained_on_are_left_out(tmp_path: Path) -> None:
    """By group and by near duplicates, whatever the file and its columns are called."""
    words = " ".join(f"word{i}" for i in range(40))
    texts = [f"bird {i}" for i in range(100)] + [f"{words} {i}" for i in range(3)]
    data = OwnData.read([rows(tmp_path, texts)], MAP, 0)
    [file] = data.files
    first, second, *_ = (chosen for chosen in file.prompts if "word" not in chosen.prompt.text)
    assert first.group == second.group
    trained = [
        TrainingPrompt(text=f"  {first.prompt.text.upper()}", harmful=True, group="ab"),
        TrainingPrompt(text=f"{words} 7", harmful=True, group="cd"),
    ]
    apart = data.apart_from(trained)
    near = {chosen.group for chosen in file.prompts if "word" in chosen.prompt.text}
    kept = {chosen.group for chosen in apart.files[0].prompts}
    assert kept == {chosen.group for chosen in file.prompts} - {first.group} - near
    [record] = apart.records
    assert record.trained_on == len(file.prompts) - record.drawn > 0
    assert record.groups == len(kept)
    every = [
        TrainingPrompt(text=chosen.prompt.text, harmful=True, group=chosen.group)
        for chosen in file.prompts
    ]
    with pytest.raises(UsageError, match=r"--data own.jsonl: the guard was trained on all of"):
        data.apart_from(every)
    assert data.apart_from([]).records == data.records
    assert "trained_on" not in data.records[0].model_dump()
