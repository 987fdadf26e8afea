"""Which label of a classifier means harmful is read from its configuration alone."""

import json
from pathlib import Path

import pytest

from tsgb.errors import ConfigError
from tsgb.models.sequence_labels import check_labels, labels_of


def save(directory: Path, **config: object) -> Path:
    architecture = ["DebertaV2ForSequenceClassification"]
    (directory / "config.json").write_text(json.dumps({"architectures": architecture, **config}))
    return directory


def test_usual_names_are_known_and_a_name_wins(tmp_path: Path) -> None:
    save(tmp_path, id2label={"0": "SAFE", "1": "Jailbreak", "2": "toxic"})
    assert labels_of(tmp_path) == {"SAFE": 0, "Jailbreak": 1, "toxic": 2}
    assert check_labels(tmp_path) == "Jailbreak"
    assert check_labels(tmp_path, "TOXIC") == "toxic"


def test_without_names_the_second_label_is_the_harmful_one(tmp_path: Path) -> None:
    assert check_labels(save(tmp_path)) == "LABEL_1"


def test_what_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, id2label={"0": "left", "1": "right"})
    with pytest.raises(ConfigError, match="does not say which label is harmful: name one of left"):
        check_labels(tmp_path)
