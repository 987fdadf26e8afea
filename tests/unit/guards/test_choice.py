"""Guards of the user's are read by their names, and refused in one line before anything starts."""

import json
from pathlib import Path

import pytest

from tests.fakes.chat_model import save_chat_model
from tests.fakes.hub_cache import cache_repository
from tsgb.errors import UsageError
from tsgb.guards.choice import GuardChoice, GuardKind, checked_guards, read_choices
from tsgb.setting_groups import HubSettings

OFFLINE = HubSettings(hf_offline=True)


@pytest.mark.parametrize(
    ("text", "name", "kind", "value", "detail"),
    [
        ("always-block", "always-block", GuardKind.ALWAYS_BLOCK, "", ""),
        ("all=always-block", "all", GuardKind.ALWAYS_BLOCK, "", ""),
        ("keywords:a b.txt", "keywords", GuardKind.KEYWORDS, "a b.txt", ""),
        ("export:out/guard", "guard", GuardKind.EXPORT, "out/guard", ""),
        ("mine=export:x=y", "mine", GuardKind.EXPORT, "x=y", ""),
        ("classifier:org/PG@v2#BAD", "PG", GuardKind.CLASSIFIER, "org/PG@v2", "BAD"),
        ("llama-guard:org/LG-1B", "LG-1B", GuardKind.LLAMA_GUARD, "org/LG-1B", ""),
        (
            "moderation:http://127.0.0.1:8/v1/moderations#omni",
            "127.0.0.1",
            GuardKind.MODERATION,
            "http://127.0.0.1:8/v1/moderations",
            "omni",
        ),
    ],
)
def test_forms(text: str, name: str, kind: GuardKind, value: str, detail: str) -> None:
    found = GuardChoice.parse(text)
    assert found == GuardChoice(name=name, kind=kind, value=value, detail=detail)
    assert GuardChoice.parse(found.text) == found


@pytest.mark.parametrize(
    "text", ["", "block", "always-block:x", "keywords:", "keywords", "x=", "a b=export:c"]
)
def test_another_form_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        GuardChoice.parse(text)
    assert repr(text) in str(caught.value)
    assert "keywords:FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_in_tables_are_told_apart() -> None:
    with pytest.raises(UsageError, match=r"'keywords' in tables.*mine=keywords:b"):
        read_choices(["keywords:a", "keywords:b"], ())
    with pytest.raises(UsageError, match="a guard of the evaluation"):
        read_choices(["selfplay=export:a"], {"selfplay"})
    assert [c.name for c in read_choices(["keywords:a", "b=keywords:b"], ())] == ["keywords", "b"]


def classifier(directory: Path, **changes: object) -> Path:
    directory.mkdir(parents=True)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "id2label": {"0": "BENIGN", "1": "INJECTION"},
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def check(text: str, cache: Path, hub: HubSettings = OFFLINE) -> str:
    return checked_guards([text], hub, cache)[0]


def test_paths_become_full_and_content_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("alpha\n")
    assert check("keywords:words.txt", tmp_path) == f"keywords=keywords:{words}"
    choice = GuardChoice.parse(f"keywords:{words}")
    before = choice.content_hash()
    words.write_text("beta\n")
    assert before != choice.content_hash() != ""
    assert GuardChoice.parse("always-block").content_hash() == ""
    model = classifier(tmp_path / "model")
    assert check("classifier:./model", tmp_path) == f"model=classifier:{model}"


def test_a_repository_is_pinned_to_its_commit(tmp_path: Path) -> None:
    hub = HubSettings(hf_offline=True, hf_cache=tmp_path / "hub")
    commit = cache_repository(tmp_path / "hub", "org/pg", classifier(tmp_path / "m"))
    found = check("classifier:org/pg#INJECTION", tmp_path, hub)
    assert found == f"pg=classifier:org/pg@{commit}#INJECTION"
    save_chat_model(tmp_path / "chat")
    commit = cache_repository(tmp_path / "hub", "org/lg", tmp_path / "chat")
    assert check("llama-guard:org/lg", tmp_path, hub) == f"lg=llama-guard:org/lg@{commit}"


@pytest.mark.parametrize(
    ("changes", "label", "told"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "", "is a LlamaForCausalLM"),
        ({"architectures": None}, "", "no architecture"),
        ({"auto_map": {"AutoModel": "x"}}, "", "auto_map"),
        ({"id2label": {"0": "A", "1": "B"}}, "", "name one of A, B behind a #"),
        ({}, "#OTHER", "has no label 'OTHER'"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_configuration(
    tmp_path: Path, changes: dict[str, object], label: str, told: str
) -> None:
    path = classifier(tmp_path / "m", **changes)
    with pytest.raises(UsageError) as caught:
        check(f"classifier:{path}{label}", tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keywords:/none/words.txt", "No such file"),
        ("export:/none", "holds no guard.json"),
        ("llama-guard:/none", "does not exist"),
        ("classifier:gguf:/none", "a repository of the hub or a directory"),
        ("moderation:ftp://host/x", "is no address"),
        ("moderation:https://user:secret@host/x", "has a user or a password"),
        ("moderation:https://host/x?key=secret", "has a query or a fragment"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(text, tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
