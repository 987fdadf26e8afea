"""The published formats refuse contradictions, and their schema is the committed one."""

import json

import pytest
from pydantic import ValidationError

from tsgb.eval.records import SCHEMA_PATH, Item, Rate, TargetRecord, schema_text

SCRIPTED = {
    "item_id": "a1",
    "scenario_id": "S-1",
    "source": "scripted",
    "stream": "held_out",
    "target": "T_s",
    "seed": 0,
    "harmful": True,
    "violated": True,
}


def test_schema_is_up_to_date() -> None:
    """Stale? Run `python -m tsgb.eval.records` and look at what changed for readers."""
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()


def test_a_target_of_an_older_summary_can_be_read() -> None:
    older = {"name": "T_s", "role": "surrogate", "overlap": 1.0, "arch": "GPT d64"}
    target = TargetRecord.model_validate(older | {"accuracy": None})
    assert target.model_dump() == older, "what nothing measures is not published"
    with pytest.raises(ValidationError, match="Extra inputs"):
        TargetRecord.model_validate(older | {"accuracy": 0.9})


def test_item_round_trip() -> None:
    item = Item.model_validate(SCRIPTED | {"scores": {"sft": 1.5}, "blocked": {"sft": False}})
    assert Item.model_validate_json(item.model_dump_json()) == item
    seldom = {"thought", "file", "attempts", "answer", "probability", "human"}
    assert set(json.loads(item.model_dump_json())) == set(Item.model_fields) - seldom
    thinking = item.model_copy(update={"thought": True})
    assert set(json.loads(thinking.model_dump_json())) == set(Item.model_fields) - (
        seldom - {"thought"}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"prompt": "text"}, "Extra inputs", id="prompt-text"),
        pytest.param({"item_id": "a prompt with spaces"}, "pattern", id="text-as-id"),
        pytest.param({"source": "adaptive"}, "against", id="adaptive-without-guard"),
        pytest.param({"stream": None}, "names its stream", id="no-stream"),
        pytest.param({"stream": "benign"}, "contradict", id="stream-label"),
        pytest.param({"source": "benign"}, "contradict", id="source-label"),
        pytest.param({"error": "timeout"}, "not both", id="outcome-and-error"),
        pytest.param({"violated": None}, "says why", id="silent-error"),
        pytest.param({"scores": {"sft": float("nan")}}, "finite", id="nan"),
    ],
)
def test_item_refuses(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Item.model_validate(SCRIPTED | change)


def test_error_item_is_valid() -> None:
    item = Item.model_validate(SCRIPTED | {"violated": None, "error": "timeout"})
    assert item.violated is None


def test_rate_counts_events() -> None:
    assert Rate(value=7 / 96, low=0.0, high=1.0, n=96).events == 7


def test_a_prompt_of_a_file_names_its_file_and_no_stream() -> None:
    data = {"source": "data", "stream": None, "target": None, "violated": None}
    for harmful in (True, False):
        item = Item.model_validate(SCRIPTED | data | {"file": "own.csv", "harmful": harmful})
        assert Item.model_validate_json(item.model_dump_json()) == item
    for wrong in ({"file": ""}, {"file": "own.csv", "stream": "held_out"}):
        with pytest.raises(ValidationError, match="names its file and no stream"):
            Item.model_validate(SCRIPTED | data | wrong)
