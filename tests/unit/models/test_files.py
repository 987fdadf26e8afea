"""Files of a model: which there must be, and one identity whatever their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.fakes.chat_model import save_chat_model
from tsgb.errors import ConfigError
from tsgb.models.files import (
    CONFIG,
    GENERATION,
    INDEX,
    WEIGHTS,
    identity,
    sha256_of,
    tensor_counts,
    weight_files,
)


def test_one_file_has_two_names_and_shards_have_one(tmp_path: Path) -> None:
    whole, parts = save_chat_model(tmp_path / "a"), save_chat_model(tmp_path / "b", shards=3)
    one = identity(whole)
    assert one == identity(save_chat_model(tmp_path / "c"))
    assert one.weights_sha256 == sha256_of(whole / WEIGHTS)
    assert one.sha256 != one.weights_sha256
    several = identity(parts)
    assert several.weights_sha256 == ""
    assert several.sha256 not in {one.sha256, one.weights_sha256}
    assert len(weight_files(parts)) == 3


@pytest.mark.parametrize("changed", ["tokenizer.json", "tokenizer_config.json", WEIGHTS])
def test_a_change_of_weights_or_tokenizer_changes_the_identity(
    tmp_path: Path, changed: str
) -> None:
    model = save_chat_model(tmp_path / "a")
    before = identity(model)
    (model / "README.md").write_text("says nothing about the weights")
    assert identity(model) == before
    with (model / changed).open("ab") as file:
        file.write(b" ")
    assert identity(model).sha256 != before.sha256


@pytest.mark.parametrize(
    ("file", "change", "is_noticed"),
    [
        pytest.param(CONFIG, {"rms_norm_eps": 0.5}, True, id="arithmetic"),
        pytest.param(CONFIG, {"some_new_switch": True}, True, id="unknown key"),
        pytest.param(CONFIG, {"transformers_version": "9"}, False, id="version"),
        pytest.param(GENERATION, {"eos_token_id": [1, 5]}, True, id="end of turn"),
        pytest.param(GENERATION, {"temperature": 0.3}, False, id="sampling"),
    ],
)
def test_a_change_of_what_is_computed_changes_the_identity(
    tmp_path: Path, file: str, change: dict[str, object], is_noticed: bool
) -> None:
    model = save_chat_model(tmp_path / "a")
    (model / GENERATION).write_text("{}")
    before = identity(model)
    content = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**content, **change}))
    after = identity(model)
    assert (after.sha256 != before.sha256) is is_noticed
    assert (after.weights_sha256, after.earlier_sha256) == (
        before.weights_sha256,
        before.earlier_sha256,
    )


def test_weights_are_counted_without_being_read(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "a", dtype=torch.bfloat16)
    counts = tensor_counts(model / WEIGHTS)
    assert list(counts) == ["BF16"]
    with (model / WEIGHTS).open("r+b") as file:
        file.truncate((model / WEIGHTS).stat().st_size - 1)
    with pytest.raises(ConfigError, match=r"model\.safetensors has \d+ bytes and should have"):
        tensor_counts(model / WEIGHTS)
    (model / WEIGHTS).write_bytes(b"<html>")
    with pytest.raises(ConfigError, match=r"model\.safetensors is no safetensors file"):
        tensor_counts(model / WEIGHTS)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "model-00009.safetensors"}},
            r"names 1 absent file\(s\), such as mod",
        ),
        ({"weight_map": {"a": "../other/model.safetensors"}}, "outside of its directory"),
        ({"weight_map": {}}, "no weight_map"),
        (["model.safetensors"], "it is not a JSON object"),
    ],
    ids=["absent shard", "path", "empty", "no object"],
)
def test_an_index_must_name_what_is_there(tmp_path: Path, index: object, message: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=message):
        weight_files(tmp_path)


def test_pickled_weights_are_none(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="weights must be in the safetensors format"):
        weight_files(tmp_path)
