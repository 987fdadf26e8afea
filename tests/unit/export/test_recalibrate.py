"""Operating points that a user adds to an export, and what they never change."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.fakes.command_line import Run
from tests.unit.export.conftest import read
from tsgb import load_guard
from tsgb.config import TrainingDataConfig, TrainingFileConfig
from tsgb.data.check import DataScan
from tsgb.data.mapping import ColumnMap
from tsgb.data.selection import FileSelection, select
from tsgb.errors import UsageError
from tsgb.export.loading import Assessment, LoadedGuard
from tsgb.export.recalibrate import (
    benign_prompts,
    check_apart,
    measure,
    operating_point,
    score_benign,
    update_card,
)
from tsgb.export.record import GuardFile
from tsgb.trainer.threshold import np_threshold
from tsgb.types import Split

MAP = ["--map", "prompt=q label=bad group=g"]


def own(path: Path, num: int = 400, size: int = 1) -> Path:
    """A file of which one prompt in four is harmful, `size` to a group."""
    rows = [
        {"q": f"kolibri {i * 7919 % 10007} sings {i}", "bad": int(i % 4 == 0), "g": i // size}
        for i in range(num)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def chosen(path: Path, *, everything: bool = False) -> list[FileSelection]:
    mapping = ColumnMap(prompt="q", label="bad", group="g")
    return benign_prompts(DataScan([path], mapping), everything=everything)


class Lengths(LoadedGuard):
    """Scores a prompt by its length, and reads at most 30 characters."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def assess(self, prompts: Sequence[str], *, batch_size: int = 16) -> list[Assessment]:
        if any(len(prompt) > 30 for prompt in prompts):
            raise UsageError("too long")
        self.asked += prompts
        return [Assessment(float(len(prompt)), 0.5, "safe") for prompt in prompts]


def test_the_rule_is_that_of_the_run_with_groups_as_scenarios(tmp_path: Path) -> None:
    files = chosen(own(tmp_path / "x.jsonl", 2000, size=4), everything=True)
    found = score_benign(Lengths(), files)
    assert len(found.scores) == 1500
    assert len(set(found.groups)) == 500
    point = operating_point(found, files, 0.01, everything=True)
    rule = np_threshold(found.scores, 0.01, 0.05, found.groups)
    assert (point.value, point.order, point.fpr_upper) == (rule.value, rule.order, rule.fpr_upper)
    assert point.own is not None
    assert (point.own.n, point.own.groups, point.own.all_splits) == (1500, 500, True)
    assert point.own.correlation == rule.correlation


def test_only_benign_prompts_of_the_calibration_split_are_scored(tmp_path: Path) -> None:
    [some] = chosen(own(tmp_path / "x.jsonl"))
    [every] = chosen(tmp_path / "x.jsonl", everything=True)
    assert 0 < len(some.prompts) < len(every.prompts) == 300
    assert {p.prompt.harmful for p in every.prompts} == {False}


def test_a_prompt_that_is_too_long_does_not_stop_the_others(tmp_path: Path) -> None:
    path = own(tmp_path / "x.jsonl")
    path.write_text(path.read_text() + "\n" + json.dumps({"q": "a" * 99, "bad": 0, "g": "z"}))
    files = chosen(path, everything=True)
    found = score_benign(Lengths(), files)
    assert (len(found.scores), found.too_long) == (300, 1)


def test_a_text_of_two_files_is_scored_once(tmp_path: Path) -> None:
    mapping = ColumnMap(prompt="q", label="bad", group="g")
    paths = [own(tmp_path / "x.jsonl"), own(tmp_path / "y.jsonl", 440)]
    files = benign_prompts(DataScan(paths, mapping), everything=True)
    guard = Lengths()
    assert len(score_benign(guard, files).scores) == 330 == len(set(guard.asked))


def test_points_are_measured_on_prompts_that_none_was_chosen_on(tmp_path: Path) -> None:
    mapping = ColumnMap(prompt="q", label="bad", group="g")
    scan = DataScan([own(tmp_path / "x.jsonl", 800, size=2)], mapping)
    files = select(scan, Split.TEST)
    found = measure(Lengths(), {"low": 0.0, "middle": 22.5, "high": 99.0}, files)
    prompts = [chosen.prompt for file in files for chosen in file.prompts]
    for name, value in (("low", 0.0), ("middle", 22.5), ("high", 99.0)):
        blocked = [len(p.text) > value for p in prompts if not p.harmful]
        passed = [len(p.text) <= value for p in prompts if p.harmful]
        for rate, events in ((found[name].fpr, blocked), (found[name].fnr, passed)):
            assert rate is not None
            assert (rate.n, rate.value) == (len(events), pytest.approx(sum(events) / len(events)))
            assert rate.low <= rate.value <= rate.high
    assert not {c.group for c in files[0].prompts} & {
        c.group for c in benign_prompts(scan, everything=False)[0].prompts
    }


@pytest.fixture
def export(export_family: Callable[[str], Path]) -> Path:
    return export_family("qwen2")


def test_a_point_is_added_and_nothing_else_changes(tsgb: Run, export: Path) -> None:
    own(Path("own.jsonl"), 1600)
    before, card_before = read(export), (export / "README.md").read_text()
    command = ("recalibrate", str(export), "own.jsonl", *MAP, "--dtype", "float32")
    ended = tsgb(*command, "--measure")
    assert ended.code == 0, ended.err
    assert "test split, run: false alarms" in ended.out
    assert "test split, own: false alarms" in ended.out
    assert "kept: run " in ended.out
    assert "the guard uses run; --preset own uses the new one" in ended.out
    after = read(export)
    point = after.dtypes["float32"].thresholds["own"]
    assert point.own is not None
    assert [file.name for file in point.own.files] == ["own.jsonl"]
    assert point.fpr_upper <= point.alpha == 0.01
    points = after.dtypes["float32"].thresholds
    assert {n: p for n, p in points.items() if n != "own"} == before.dtypes["float32"].thresholds
    assert after.default == before.default
    assert "kolibri" not in (export / "guard.json").read_text()
    assert load_guard(export, preset="own", dtype="float32").threshold == point.value
    card = (export / "README.md").read_text()
    assert f"| `own` | float32 | {point.value:.6g} |" in card
    assert f" {point.order} of {point.own.n} |" in card
    assert f"`own.jsonl` (sha256 `{point.own.files[0].sha256[:12]}`" in card
    others = [
        [part for part in text.split("\n## ") if not part.startswith("Operating points")]
        for text in (card, card_before)
    ]
    assert others[0] == others[1]
    again = tsgb(*command)
    assert again.code == 2
    assert "has an operating point 'own' in float32, which is kept" in again.err
    assert read(export) == after
    more = tsgb(*command, "--name", "half", "--fpr", "0.05", "--json")
    assert more.code == 0, more.err
    document = json.loads(more.out)
    assert document["point"]["alpha"] == 0.05
    assert set(read(export).dtypes["float32"].thresholds) == {*points, "half"}
    check_training_data(after)
    for other in OTHER_CARDS:
        (export / "README.md").write_bytes(other)
        assert not update_card(export, after), "a card of the user's own is left alone"
        assert (export / "README.md").read_bytes() == other
    assert [p.name for p in export.glob(".*")] == []


def check_training_data(about: GuardFile) -> None:
    """No threshold is chosen on what the guard was trained on."""
    columns = ColumnMap.parse(MAP[1:])
    assert columns is not None
    files = benign_prompts(DataScan([Path("own.jsonl")], columns), everything=False)
    check_apart(about, files, None, everything=True)
    learned = TrainingDataConfig(
        sha256="ab" * 32,
        harmful=1,
        benign=1,
        groups=1,
        mapping=columns.text,
        files=(TrainingFileConfig(name="x", format="map", sha256=files[0].sha256),),
    )
    trained = about.model_copy(update={"train_data": learned})
    check_apart(trained, files, columns, everything=False)
    with pytest.raises(UsageError, match="--all: the guard was trained on the train split of own"):
        check_apart(trained, files, columns, everything=True)
    for other in (None, ColumnMap(prompt="q", label="bad")):
        with pytest.raises(UsageError, match=r"was read with --map 'prompt=q label=bad group=g'"):
            check_apart(trained, files, other, everything=False)


def test_a_default_takes_the_point_in_every_dtype(tsgb: Run, export: Path) -> None:
    own(Path("own.jsonl"), 1600)
    dtypes = list(read(export).dtypes)
    for number, dtype in enumerate(dtypes, 1):
        words = ("own.jsonl", *MAP, "--dtype", dtype, "--default", "--all")
        ended = tsgb("recalibrate", str(export), *words)
        if number < len(dtypes):
            assert ended.code == 2
            assert f"no such point in {dtypes[-1]} yet" in ended.err
            assert "own" not in read(export).dtypes[dtype].thresholds
            done = tsgb("recalibrate", str(export), *words[:-2])
            assert done.code == 0, done.err
    assert read(export).default == "own"
    card = (export / "README.md").read_text()
    assert card.count("`own` (default)") == len(dtypes)
    assert "`run` (default)" not in card


OTHER_CARDS = [
    b"# My guard\n",
    b"\xff## Operating points\n## Use\n",
    b"## Operating points\nat the end",
    b"## Operating points\n## Operating points\n## Use\n",
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["few.jsonl"], "needs at least 299 benign calibration scores, got"),
        (["nowhere.jsonl"], "No such file"),
        (["few.jsonl", "--fpr", "0"], "--fpr 0 is no budget"),
        (["few.jsonl", "--all", "--measure"], "--all leaves no prompt to measure on"),
        (["few.jsonl", "--name", "run"], "has an operating point 'run'"),
        (["few.jsonl", "--name", "a b"], "--name 'a b' is not"),
    ],
)
def test_what_cannot_be_a_point(words: list[str], message: str, tsgb: Run, export: Path) -> None:
    own(Path("few.jsonl"), 60)
    before = (export / "guard.json").read_bytes()
    ended = tsgb("recalibrate", str(export), *words, *MAP)
    assert ended.code == 2
    assert message in ended.err.splitlines()[-1]
    assert (export / "guard.json").read_bytes() == before


def test_an_export_of_the_first_version_is_left_alone(tsgb: Run, export: Path) -> None:
    own(Path("own.jsonl"))
    path = export / "guard.json"
    content = json.loads(path.read_text())
    measured = content.pop("dtypes")["float32"]
    del measured["deciles"]
    for name in ("dtype", "run_dtype", "uncalibrated"):
        content.pop(name, None)
    path.write_text(json.dumps({**content, **measured, "schema_version": 1}))
    before = path.read_bytes()
    ended = tsgb("recalibrate", str(export), "own.jsonl", *MAP)
    assert ended.code == 2
    assert "exported by an earlier version" in ended.err
    assert path.read_bytes() == before


def test_a_guard_of_words_cannot_read_prompts(tsgb: Run, here: Path) -> None:
    store = str(here.parent / "store" / "lora")
    assert tsgb("export-guard", store, "out").code == 0
    own(Path("own.jsonl"))
    ended = tsgb("recalibrate", "out", "own.jsonl", *MAP)
    assert ended.code == 2
    assert "knows a closed list of words" in ended.err
