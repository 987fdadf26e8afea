"""Names of judges: what each form means, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.chat_model import save_chat_model
from tests.fakes.text_classifier import save_classifier
from tsgb.errors import ConfigError, UsageError
from tsgb.judges.choice import JudgeChoice, JudgeKind, checked_judge
from tsgb.setting_groups import HubSettings

HUB = HubSettings()


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("exact", JudgeChoice(kind=JudgeKind.EXACT)),
        ("refusal-phrases", JudgeChoice(kind=JudgeKind.REFUSAL_PHRASES)),
        ("simple", JudgeChoice(kind=JudgeKind.SIMPLE)),
        (
            "classifier:org/model@0123#toxic",
            JudgeChoice(kind=JudgeKind.CLASSIFIER, value="org/model@0123", label="toxic"),
        ),
        (
            "openai:gpt-4.1@https://host/v1",
            JudgeChoice(kind=JudgeKind.ENDPOINT, value="openai:gpt-4.1@https://host/v1"),
        ),
        ("anthropic:c", JudgeChoice(kind=JudgeKind.ENDPOINT, value="anthropic:c")),
        ("mine:MyJudge", JudgeChoice(kind=JudgeKind.OWN, value="mine:MyJudge")),
        ("my.mod:f#0.8", JudgeChoice(kind=JudgeKind.OWN, value="my.mod:f", threshold=0.8)),
    ],
)
def test_a_form_is_read_and_written(text: str, choice: JudgeChoice) -> None:
    assert JudgeChoice.parse(text) == choice
    assert choice.text == text
    if choice.kind is not JudgeKind.CLASSIFIER:
        assert choice.checked(HUB, Path()) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known: give exact, refusal-phrases"),
        ("exactly", "'exactly' is not known"),
        ("exact:1", "'exact:1' has another form than exact"),
        ("classifier", "'classifier' has another form"),
        ("classifier:", "'classifier:' has another form"),
        ("own:", "'own:' has another form"),
        ("mine:", "'mine:' is not known"),
        ("mine:My Judge", "is not known"),
        ("mine:f#high", "the threshold is no number above 0 and up to 1: write mine:f#0.5"),
        ("mine:f#nan", "the threshold is no number"),
        ("mine:f#0", "the threshold is no number"),
        ("mine:f#1.5", "the threshold is no number"),
        ("opnai:m@https://me:secret@host", "'opnai' is not known"),
    ],
)
def test_a_wrong_one_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        JudgeChoice.parse(text)
    said = str(raised.value)
    assert said.startswith("--judge ")
    assert message in said
    assert "\n" not in said
    assert "secret" not in said


def test_a_classifier_is_looked_at_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_classifier(tmp_path / "m", ["a"], ("fine", "rude"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not say which label is harmful"):
        checked_judge("classifier:./m", HUB, tmp_path)
    checked = checked_judge("classifier:./m#rude", HUB, tmp_path)
    assert checked == f"classifier:{directory}#rude"
    choice = JudgeChoice.parse(checked)
    assert choice.name == "classifier:m"
    before = choice.content_hash()
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"fine"', '"nice"'))
    assert choice.content_hash() != before
    with pytest.raises(UsageError, match="nowhere"):
        checked_judge(f"classifier:{tmp_path}/nowhere", HUB, tmp_path)
    assert checked_judge(None, HUB, tmp_path) is None


def test_an_endpoint_may_have_prices() -> None:
    choice = JudgeChoice.parse("openai:m@http://127.0.0.1:1/v1#2.5/10")
    assert (choice.value, choice.prices) == ("openai:m@http://127.0.0.1:1/v1", (2.5, 10.0))
    assert choice.name == "openai:m@http://127.0.0.1:1/v1"
    assert JudgeChoice.parse(choice.text) == choice
    assert JudgeChoice.parse("openai:m").prices is None


@pytest.mark.parametrize("given", ["2", "a/b", "-1/2", "1e9/2", "1/", "nan/1", "99999999/1", ""])
def test_prices_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="dollars of a million tokens"):
        JudgeChoice.parse(f"openai:m#{given}")


def test_a_chat_model_on_this_machine_has_a_full_path_a_name_and_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_chat_model(tmp_path / "m", words=200)
    monkeypatch.chdir(tmp_path)
    text = checked_judge("local:./m", HUB, tmp_path / "cache")
    assert text == f"local:{directory}"
    choice = JudgeChoice.parse(text)
    assert (choice.kind, choice.name) == (JudgeKind.LOCAL, "local:m")
    assert len(choice.content_hash()) == 64
    with pytest.raises(UsageError, match="nowhere"):
        checked_judge(f"local:{tmp_path}/nowhere", HUB, tmp_path / "cache")
    with pytest.raises(UsageError, match="another form"):
        JudgeChoice.parse("local:")
