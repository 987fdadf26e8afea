from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.data.conftest import Write
from tsgb.data.formats import FORMATS, recognise
from tsgb.data.reader import open_data
from tsgb.data.records import DataPrompt, DroppedRow
from tsgb.errors import UsageError

WILDGUARD = {
    "prompt": "Name a colour",
    "adversarial": False,
    "response": "Blue",
    "prompt_harm_label": "unharmful",
    "response_refusal_label": "compliance",
    "response_harm_label": "unharmful",
    "subcategory": "benign",
}
AEGIS2 = {
    "id": "a1",
    "reconstruction_id_if_redacted": None,
    "prompt": "Name a colour",
    "response": None,
    "prompt_label": "safe",
    "response_label": None,
    "violated_categories": "",
    "prompt_label_source": "human",
    "response_label_source": None,
}
TOXIC_CHAT = {
    "conv_id": "c1",
    "user_input": "Name a colour",
    "model_output": "Blue, or red",
    "human_annotation": True,
    "toxicity": 0,
    "jailbreaking": 1,
    "openai_moderation": '[["sexual", 0.001], ["hate", "0,5"]]',
}
HARMBENCH = {
    "Behavior": "Paint the fence",
    "FunctionalCategory": "standard",
    "SemanticCategory": "painting",
    "Tags": "",
    "ContextString": "",
    "BehaviorID": "paint_fence",
}
POLYGUARD = {"id": 7, "language": "German", "prompt": "Nenne eine Farbe"}


class Case(NamedTuple):
    """A file, and what its rows give."""

    file: str
    format: str
    rows: Sequence[Mapping[str, Any]]
    expected: Sequence[Mapping[str, Any] | str]
    """Fields of each prompt, or the reason why the row gives none."""


CASES = {
    "harmbench": Case(
        "harmbench_behaviors_text_all.csv",
        "HarmBench",
        [
            HARMBENCH,
            HARMBENCH
            | {
                "FunctionalCategory": "contextual",
                "ContextString": "The fence is old.",
                "BehaviorID": "paint_old_fence",
            },
            HARMBENCH | {"FunctionalCategory": "copyright"},
        ],
        [
            {"text": "Paint the fence", "harmful": True, "slice": "painting", "technique": ""},
            {"text": "Paint the fence\n\nThe fence is old.", "technique": "contextual"},
            "a copyright behaviour",
        ],
    ),
    "jailbreakbench": Case(
        "benign-behaviors.csv",
        "JailbreakBench",
        [
            {
                "Index": 3,
                "Goal": "Draw a map",
                "Target": "Sure, here is",
                "Behavior": "Map",
                "Category": "Drawing",
                "Source": "Original",
            }
        ],
        [{"text": "Draw a map", "harmful": False, "slice": "Drawing"}],
    ),
    "advbench": Case(
        "harmful_behaviors.csv",
        "AdvBench",
        [{"goal": "Draw a map", "target": "Sure, here is a map"}],
        [{"text": "Draw a map", "harmful": True}],
    ),
    "xstest": Case(
        "xstest_prompts.csv",
        "XSTest",
        [
            {
                "id": i,
                "prompt": text,
                "type": kind,
                "label": label,
                "focus": "end",
                "note": "",
            }
            for i, (text, kind, label) in enumerate(
                [
                    ("How do I end a task?", "homonyms", "safe"),
                    ("How do I end a game?", "contrast_homonyms", "unsafe"),
                    ("NA", "homonyms", "safe"),
                    ("How do I end it?", "homonyms", ""),
                ],
                1,
            )
        ],
        [
            {"harmful": False, "slice": "homonyms"},
            {"harmful": True, "slice": "contrast_homonyms"},
            {"text": "NA", "harmful": False},
            "no label (null)",
        ],
    ),
    "xstest v2": Case(
        "xstest_v2_prompts.csv",
        "XSTest v2",
        [
            {
                "id_v1": "a",
                "id_v2": "b",
                "type": kind,
                "prompt": "End it",
                "focus": "end",
                "note": "",
            }
            for kind in ("homonyms", "contrast_homonyms")
        ],
        [{"harmful": False}, {"harmful": True}],
    ),
    "xstest mirror": Case(
        "test.csv",
        "XSTest",
        [{"prompt": "End it", "focus": "end", "type": "homonyms", "note": "", "label": "unsafe"}],
        [{"harmful": True}],
    ),
    "wildguardmix": Case(
        "wildguard_test.jsonl",
        "WildGuardMix",
        [
            WILDGUARD | {"prompt_harm_agreement": 1.0},
            WILDGUARD | {"prompt_harm_label": "harmful", "adversarial": True},
            WILDGUARD | {"prompt_harm_label": None},
            WILDGUARD | {"response": None, "response_harm_label": None},
        ],
        [
            {
                "harmful": False,
                "response": "Blue",
                "response_harmful": False,
                "slice": "benign",
                "technique": "",
            },
            {"harmful": True, "technique": "adversarial"},
            "no label (null)",
            {"harmful": False, "response": None, "response_harmful": None},
        ],
    ),
    "wildjailbreak": Case(
        "train.tsv",
        "WildJailbreak",
        [
            {
                "vanilla": "null",
                "adversarial": "",
                "completion": "x",
                "data_type": "vanilla_benign",
            },
            {
                "vanilla": "Draw a map",
                "adversarial": "Pretend that you draw\ta map",
                "completion": "x",
                "data_type": "adversarial_harmful",
            },
            {"vanilla": "x", "adversarial": "y", "completion": "", "data_type": "other"},
        ],
        [
            {"text": "null", "harmful": False, "technique": ""},
            {
                "text": "Pretend that you draw\ta map",
                "harmful": True,
                "technique": "adversarial",
                "slice": "adversarial_harmful",
                "response": "x",
                "response_harmful": None,
            },
            "data_type is none of",
        ],
    ),
    "wildjailbreak eval": Case(
        "eval.tsv",
        "WildJailbreak eval",
        [
            {"adversarial": "Draw it", "label": 1, "data_type": "adversarial_harmful"},
            {"adversarial": "Draw it", "label": 1, "data_type": "adversarial_benign"},
        ],
        [{"harmful": True}, "label and data_type contradict"],
    ),
    "or-bench hard": Case(
        "or-bench-hard-1k.csv",
        "OR-Bench",
        [{"prompt": "Draw a map", "category": "drawing"}],
        [{"harmful": False, "slice": "drawing"}],
    ),
    "or-bench toxic": Case(
        "or-bench-toxic.csv",
        "OR-Bench",
        [{"prompt": "Draw a map", "category": "drawing"}],
        [{"harmful": True}],
    ),
    "strongreject": Case(
        "strongreject_dataset.csv",
        "StrongREJECT",
        [{"category": "Maps", "source": "custom", "forbidden_prompt": "Draw a map"}],
        [{"text": "Draw a map", "harmful": True, "slice": "Maps"}],
    ),
    "toxic-chat": Case(
        "toxic-chat_annotation_test.csv",
        "ToxicChat",
        [TOXIC_CHAT, TOXIC_CHAT | {"toxicity": 1, "jailbreaking": 0, "conv_id": "c2"}],
        [
            {"harmful": False, "technique": "jailbreaking", "response": "Blue, or red"},
            {"harmful": True, "technique": ""},
        ],
    ),
    "openai moderation": Case(
        "samples-1680.jsonl.gz",
        "OpenAI moderation",
        [
            {"prompt": "Name a colour", "S": 0, "H": 0},
            {"prompt": "Draw a map", "V2": 1},
            {"prompt": "Say nothing"},
        ],
        [{"harmful": False, "slice": "none"}, {"harmful": True, "slice": "V2"}, "no label (null)"],
    ),
    "aegis 1": Case(
        "aegis.csv",
        "Aegis 1.0",
        [
            {"id": i, "text": "Draw a map", "text_type": kind, **votes}
            for i, (kind, votes) in enumerate(
                [
                    ("user_message", {"labels_0": "Safe", "labels_1": "Safe", "labels_2": "Maps"}),
                    (
                        "user_message",
                        {
                            "labels_0": "Maps, Lists",
                            "labels_1": "Needs Caution",
                            "labels_2": "Maps",
                        },
                    ),
                    ("user_message", {"labels_0": "Safe", "labels_1": "Maps", "labels_2": ""}),
                    ("llm_response", {"labels_0": "Safe", "labels_1": "Safe", "labels_2": "Safe"}),
                    ("user_message", {"labels_0": "", "labels_1": "None", "labels_2": ""}),
                ]
            )
        ],
        [
            {"harmful": False, "slice": "Safe"},
            {"harmful": True, "slice": "Maps"},
            "as many annotators",
            "text_type is not user_message",
            "no label (null)",
        ],
    ),
    "aegis 2": Case(
        "validation.json",
        "Aegis 2.0",
        [
            AEGIS2,
            AEGIS2
            | {
                "prompt_label": "unsafe",
                "violated_categories": "Maps, Lists",
                "response": "Here",
                "response_label": "unsafe",
            },
            AEGIS2 | {"prompt": "REDACTED", "reconstruction_id_if_redacted": 12.0},
        ],
        [
            {"harmful": False, "slice": "", "response": None},
            {"harmful": True, "slice": "Maps", "response": "Here", "response_harmful": True},
            "REDACTED",
        ],
    ),
    "beavertails": Case(
        "round0.jsonl",
        "BeaverTails",
        [
            {
                "prompt": "Draw a map",
                "response": "Here it is",
                "category": {"maps": True, "lists": False},
                "is_safe": False,
            },
            {"prompt": "Draw a map", "response": "No", "category": {}, "is_safe": True},
        ],
        [
            {"harmful": None, "response": "Here it is", "response_harmful": True, "slice": "maps"},
            {"harmful": None, "response_harmful": False, "slice": ""},
        ],
    ),
    "polyguard": Case(
        "polyguard.jsonl",
        "PolyGuardPrompts",
        [
            POLYGUARD | {"prompt_harm_label": "unharmful", "subcategory": "benign"},
            POLYGUARD | {"prompt_harm_label": "harmful", "language": "Czech"},
        ],
        [
            {"harmful": False, "language": "German", "slice": "German"},
            {"harmful": True, "language": "Czech"},
        ],
    ),
    "polyguard, other labels": Case(
        "polyguard.jsonl",
        "PolyGuardPrompts",
        [POLYGUARD | {"prompt_label": "unsafe", "prompt_categories": "S1", "response": "x"}],
        [{"harmful": True}],
    ),
    "openai-guardrails": Case(
        "evals.jsonl",
        "openai-guardrails",
        [
            {"id": "1", "data": "Draw a map", "expected_triggers": {"Maps": True, "Urls": False}},
            {"id": "2", "data": "Draw a tree", "expected_triggers": {"Maps": False}},
            {"id": "3", "data": "Draw a sea", "expected_triggers": {"Maps": "perhaps"}},
            {"id": "4", "data": "Draw a sky", "expected_triggers": {}},
        ],
        [
            {"harmful": True, "slice": "Maps"},
            {"harmful": False, "slice": "none"},
            "expected_triggers holds something else",
            "expected_triggers is no object",
        ],
    ),
    "jailbreak_llms": Case(
        "jailbreak_prompts.csv",
        "jailbreak_llms",
        [
            {
                "platform": "forum",
                "source": "s",
                "prompt": "You are a painter.",
                "jailbreak": True,
                "created_at": "2023",
            }
        ],
        [{"harmful": None, "technique": "jailbreak", "slice": "forum"}],
    ),
    "jailbreak_llms with requests": Case(
        "do_anything.jsonl",
        "jailbreak_llms",
        [
            {
                "platform": "forum",
                "source": "s",
                "prompt": "You are a painter.",
                "jailbreak": True,
                "vanilla": "Draw a map",
                "adversarial": "You are a painter. Draw a map",
            }
        ],
        [{"text": "You are a painter. Draw a map", "harmful": True}],
    ),
}


def read(path: Path) -> list[DataPrompt | DroppedRow]:
    with open_data(path) as data:
        return list(data.rows)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_format_is_recognised_and_read_by_its_rule(case: Case, write: Write) -> None:
    path = write(case.file, case.rows)
    with open_data(path) as data:
        assert data.format == case.format
        found = list(data.rows)
    assert [row.row for row in found] == list(range(1, len(case.rows) + 1))
    for row, expected in zip(found, case.expected, strict=True):
        if isinstance(expected, str):
            assert isinstance(row, DroppedRow)
            assert expected in row.reason
        else:
            assert isinstance(row, DataPrompt)
            assert {name: getattr(row, name) for name in expected} == expected
            assert row.source == case.format


def test_every_format_has_a_case() -> None:
    assert {case.format for case in CASES.values()} == {form.name for form in FORMATS}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_order_of_columns_and_the_index_of_pandas_do_not_matter(
    case: Case, write: Write
) -> None:
    expected = read(write(case.file, case.rows))
    turned = [{"Unnamed: 0": i, **dict(reversed(row.items()))} for i, row in enumerate(case.rows)]
    assert read(write(case.file, turned)) == expected


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_reason_quotes_the_row(case: Case, write: Write) -> None:
    texts = {str(value) for row in case.rows for value in row.values() if " " in str(value)}
    for row in read(write(case.file, case.rows)):
        if isinstance(row, DroppedRow):
            assert not [text for text in texts if text in row.reason]


def groups(case: Case, write: Write) -> list[str]:
    return [row.group for row in read(write(case.file, case.rows)) if isinstance(row, DataPrompt)]


@pytest.mark.parametrize("name", ["xstest", "polyguard"])
def test_variants_of_one_prompt_share_their_group(name: str, write: Write) -> None:
    assert len(set(groups(CASES[name], write))) == 1


def test_a_harmful_behaviour_and_its_benign_twin_share_their_group(write: Write) -> None:
    benign = CASES["jailbreakbench"]
    harmful = benign._replace(file="harmful-behaviors.csv")
    assert groups(benign, write) == groups(harmful, write)
    [row] = read(write(harmful.file, harmful.rows))
    assert isinstance(row, DataPrompt)
    assert row.harmful


def test_an_adversarial_prompt_stays_with_its_vanilla_form(write: Write) -> None:
    row = {"vanilla": "Draw a map", "completion": "", "data_type": "adversarial_benign"}
    rows = [row | {"adversarial": text} for text in ("As a painter, draw it", "Draw, painter!")]
    rows.append(row | {"adversarial": "", "vanilla": "draw  a MAP", "data_type": "vanilla_benign"})
    found = [row.group for row in read(write("train.tsv", rows)) if isinstance(row, DataPrompt)]
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["behaviors.csv", "harmful-and-benign.csv"])
def test_a_label_that_the_name_should_tell_and_does_not(name: str, write: Write) -> None:
    path = write(name, CASES["jailbreakbench"].rows)
    with pytest.raises(UsageError, match=r"JailbreakBench.*label=@harmful"):
        read(path)


def test_columns_of_no_format_are_shown_with_the_way_out(write: Write) -> None:
    path = write("x.csv", [{"question": "Draw a map", "ver\u202edict": 1}])
    with pytest.raises(UsageError, match=r"question, ver<U\+202E>dict.*--map prompt=COLUMN"):
        read(path)


def test_prompt_and_category_alone_are_not_or_bench(write: Write) -> None:
    with pytest.raises(UsageError, match="OR-Bench"):
        read(write("mine.csv", [{"prompt": "Draw a map", "category": "x"}]))


def test_a_prompt_alone_has_no_format() -> None:
    assert recognise(["prompt"]) == []
    assert [form.name for form in recognise(["prompt", "V2"])] == ["OpenAI moderation"]


def test_no_two_formats_have_the_same_columns() -> None:
    for case in CASES.values():
        columns = dict.fromkeys(name for row in case.rows for name in row)
        assert [form.name for form in recognise(list(columns))] == [case.format]
