"""The user's prompts that train: which they are, how a run keeps them, how they are drawn."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgb.checkpoint.run import open_run
from tsgb.config import TrainingDataConfig
from tsgb.data.check import DataScan
from tsgb.data.mapping import ColumnMap
from tsgb.data.readable import MAX_CHARACTERS, MAX_TOKENS
from tsgb.data.selection import select
from tsgb.data.training import (
    TrainingData,
    TrainingPrompt,
    read_training_data,
    with_training_data,
    write_training_data,
)
from tsgb.envs import make_environment
from tsgb.errors import CheckpointError, ConfigError, UsageError
from tsgb.trainer.batches import clean_prompts
from tsgb.types import Split, StreamKind

MAP = ["prompt=q label=bad", "group=g"]
WORLD = make_environment("canary", world_seed=0)
Rows = Sequence[dict[str, Any]]


def birds(num: int = 200, size: int = 2) -> list[dict[str, Any]]:
    return [{"q": f"kolibri {i} sings", "bad": i % 2, "g": i // size} for i in range(num)]


def own(path: Path, rows: Rows) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(tmp_path: Path, rows: Rows, asked: Sequence[str] = ()) -> TrainingData:
    return TrainingData.read([own(tmp_path / "own.jsonl", rows)], MAP, asked)


def prompts(tmp_path: Path, data: TrainingData) -> list[TrainingPrompt]:
    run = open_run(str(tmp_path / "r1"))
    write_training_data(run, data)
    return read_training_data(run, data.config)


def test_a_run_keeps_the_train_split_and_no_more(tmp_path: Path) -> None:
    data = read(tmp_path, birds())
    kept = prompts(tmp_path, data)
    [chosen] = select(DataScan([tmp_path / "own.jsonl"], ColumnMap.parse(MAP)), Split.TRAIN)
    assert [(p.text, p.harmful, p.group) for p in kept] == [
        (one.prompt.text, one.prompt.harmful, one.group) for one in chosen.prompts
    ]
    labels = Counter(p.harmful for p in kept)
    assert (data.config.harmful, data.config.benign) == (labels[True], labels[False])
    assert data.config.groups == len({p.group for p in kept})
    [file] = data.config.files
    assert (file.name, file.format, file.sha256) == ("own.jsonl", "map", chosen.sha256)
    assert data.config.mapping == "prompt=q label=bad group=g"
    assert ColumnMap.parse([data.config.mapping]) == ColumnMap.parse(MAP)
    assert not any(data.left_out)
    assert read(tmp_path, birds()) == data, "the same files are the same data"
    assert "kolibri" not in f"{data} {data.config}"


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 12)), min_size=1, max_size=80
    )
)
def test_no_group_that_trains_is_in_another_split(drawn: list[tuple[int, bool, int]]) -> None:
    rows = [{"q": f"bird {text}", "bad": int(bad), "g": group} for text, bad, group in drawn]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            kept = prompts(folder, read(folder, rows))
            scan = DataScan([folder / "own.jsonl"], ColumnMap.parse(MAP))
            others = [select(scan, split) for split in (Split.TEST, Split.CALIBRATION)]
        except UsageError:
            return  # a split is empty, or has one label
    for [file] in others:
        assert not {p.group for p in kept} & {one.group for one in file.prompts}
        assert not {p.text for p in kept} & {one.prompt.text for one in file.prompts}


def test_what_does_not_train_is_counted(tmp_path: Path) -> None:
    rows = birds()
    one, *others = prompts(tmp_path, read(tmp_path, rows))
    twin = next(p for p in others if p.harmful)
    rows += [{"q": twin.text, "bad": 0, "g": 999}]
    rows += [
        {"q": f"{i}" + "a" * MAX_CHARACTERS, "bad": 0, "g": int(one.group, 16)} for i in range(40)
    ]
    data = read(tmp_path, rows, [f"  {one.text.upper()} ", "another"])
    texts = {p.text for p in prompts(tmp_path, data)}
    assert one.text not in texts, "equal once normalised"
    assert twin.text not in texts, "it has both labels"
    assert (data.left_out.asked, data.left_out.contradicting) == (1, 1)
    assert data.left_out.too_long in {0, 40}, "they are one group"
    assert "left out: 1 that the evaluation asks, 1 with both labels" in str(data)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**row, "bad": 1} for row in birds()], "own.jsonl has no benign prompt; a guard that"),
        ([{**row, "bad": 0} for row in birds()], "own.jsonl has no harmful prompt; a guard that"),
    ],
)
def test_prompts_of_one_label_do_not_train(tmp_path: Path, rows: Rows, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, rows)


def test_two_files_of_one_label_each_train_together(tmp_path: Path) -> None:
    good = own(tmp_path / "good.jsonl", [r for r in birds() if not r["bad"]])
    bad = own(tmp_path / "bad.jsonl", [r for r in birds() if r["bad"]])
    data = TrainingData.read([good, bad], MAP)
    assert [file.name for file in data.config.files] == ["good.jsonl", "bad.jsonl"]
    assert {p.harmful for p in prompts(tmp_path, data)} == {True, False}


def test_a_split_that_no_store_takes(tmp_path: Path) -> None:
    path = own(tmp_path / "own.jsonl", birds())
    size = len(TrainingData.read([path], MAP).document)
    assert TrainingData.read([path], MAP, most_bytes=size)
    with pytest.raises(UsageError, match=f"has {size:,} bytes, and a run takes {size - 1:,}: name"):
        TrainingData.read([path], MAP, most_bytes=size - 1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "training_data.jsonl is missing, which holds the prompts of --train-data: give"),
        (b'{"group":"ab","harmful":true,"text":"x"}\n', "is not what the run was begun with"),
        (b"", "is not what the run was begun with"),
    ],
)
def test_other_bytes_are_no_training_data(
    tmp_path: Path, document: bytes | None, message: str
) -> None:
    data, run = read(tmp_path, birds()), open_run(str(tmp_path / "r1"))
    if document is not None:
        run.write_bytes("training_data.jsonl", document)
    with pytest.raises(CheckpointError, match=message):
        read_training_data(run, data.config)
    write_training_data(run, data)
    assert read_training_data(run, data.config), "the command that began the run heals it"


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"group":"../x","harmful":true,"text":"x"}',
        b'{"group":"ab","harmful":1,"text":"x"}',
        b'{"group":"ab","harmful":true,"text":""}',
        b'{"group":"ab","harmful":true,"text":"x","more":1}',
        b"\xff",
    ],
)
def test_a_hash_makes_no_training_data(tmp_path: Path, line: bytes) -> None:
    """Whoever writes both the hash and the prompts still has to write prompts."""
    known = read(tmp_path, birds()).config
    run = open_run(str(tmp_path / "r1"))
    run.write_bytes("training_data.jsonl", line + b"\n")
    digest = hashlib.sha256(line + b"\n").hexdigest()
    with pytest.raises(CheckpointError, match=r"holds no training data") as raised:
        read_training_data(run, known.model_copy(update={"sha256": digest}))
    assert "kolibri" not in str(raised.value)


def drawn_from(kept: Sequence[TrainingPrompt], share: float, num: int = 800) -> Counter[str]:
    env, too_long = with_training_data(WORLD, kept, share, str.split)
    assert not too_long
    texts = {p.text: p.harmful for p in kept}
    found = Counter[str]()
    for prompt in clean_prompts(env, Random(1), num, 0.125):
        here = prompt.text in texts
        assert not here or texts[prompt.text] is prompt.harmful
        found[f"{'own' if here else 'world'} {prompt.harmful}"] += 1
    return found


def test_a_share_of_the_clean_prompts_is_the_users(tmp_path: Path) -> None:
    kept = prompts(tmp_path, read(tmp_path, birds()))
    assert drawn_from(kept, 0.25) == {
        "own True": 100,
        "own False": 100,
        "world True": 300,
        "world False": 300,
    }
    assert drawn_from(kept, 1.0) == {"own True": 400, "own False": 400}
    assert drawn_from(kept, 0.0) == {"world True": 400, "world False": 400}


def test_every_other_stream_is_the_worlds(tmp_path: Path) -> None:
    env, _ = with_training_data(
        WORLD, prompts(tmp_path, read(tmp_path, birds())), 0.5, lambda text: text.split()
    )
    for kind in StreamKind:
        for split in (Split.CALIBRATION, Split.TEST):
            assert env.stream(kind, split, Random(2), 9) == WORLD.stream(kind, split, Random(2), 9)
    assert env.corpus("replay", Random(3), 4) == WORLD.corpus("replay", Random(3), 4)
    assert env.name == WORLD.name


def test_prompts_that_are_too_long_do_not_train(tmp_path: Path) -> None:
    long = TrainingPrompt(text="a " * (MAX_TOKENS + 1), harmful=True, group="ab")
    short = [
        TrainingPrompt(text=f"bird {harmful}", harmful=harmful, group="cd")
        for harmful in (True, False)
    ]
    env, too_long = with_training_data(WORLD, [long, *short], 1.0, str.split)
    assert too_long == 1
    assert {p.text for p in clean_prompts(env, Random(0), 40, 0.125)} == {p.text for p in short}
    with pytest.raises(ConfigError, match="every harmful prompt has more than 2,048 tokens"):
        with_training_data(WORLD, [long, short[1]], 1.0, str.split)


def test_a_configuration_names_it_in_a_sentence(tmp_path: Path) -> None:
    config = read(tmp_path, birds()).config
    assert TrainingDataConfig.model_validate_json(config.model_dump_json()) == config
    begin = f"{config.harmful} harmful and {config.benign} benign prompts in {config.groups} groups"
    assert config.sentence == (
        f"{begin}, the train split of own.jsonl (sha256 {config.files[0].sha256[:12]})"
    )
