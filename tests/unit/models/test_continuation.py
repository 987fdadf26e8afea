"""Verdict words of a model are read by one rule, with transformers and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from tests.fakes.chat_model import TEMPLATE, save_chat_model
from tests.fakes.chat_styles import STYLES, save_tokenizer
from tsgb.errors import ConfigError
from tsgb.models.chat_template import ChatTemplate
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.continuation import Continuation, VerdictTokens
from tsgb.models.source import inspect
from tsgb.setting_groups import HubSettings
from tsgb.types import GuardTemplate

ASKED = [
    GuardTemplate(system="Decide.", answer="Verdict:", unsafe=" unsafe", safe=" safe"),
    GuardTemplate(system="", answer="Verdict:", unsafe=" unsafe", safe=" safe"),
    GuardTemplate(system="Decide.", answer="", unsafe="a", safe="e"),
    GuardTemplate(system="Decide.", answer="s", unsafe="a", safe="e"),
    GuardTemplate(system="Decide.", answer="Verdict:", unsafe=" zzzq", safe=" qqqz"),
    GuardTemplate(
        system="Decide.",
        answer="Verdict:",
        unsafe=" zzzq",
        safe=" safe",
        alternatives=((" unsafe", " safe"),),
    ),
]


def outcome(read: Callable[[GuardTemplate], VerdictTokens], asked: GuardTemplate) -> object:
    """The verdict words, or the refusal without the model's name."""
    try:
        return read(asked)
    except ConfigError as error:
        return str(error).partition(": ")[2]


@pytest.mark.parametrize("style", list(STYLES))
def test_files_alone_give_the_words_of_the_loaded_tokenizer(tmp_path: Path, style: str) -> None:
    directory = save_tokenizer(tmp_path / style, STYLES[style])
    backend = FastTokenizer.from_file(str(directory / "tokenizer.json"))
    template, added = ChatTemplate.from_directory(directory), backend.get_added_tokens_decoder()
    alone = Continuation(backend, template, added, "model x")
    loaded = ChatTokenizer(directory)
    for asked in ASKED:
        assert outcome(alone.verdict, asked) == outcome(loaded.verdict, asked), asked


END = "{{ '<|im_start|>assistant\n' }}"


@pytest.mark.parametrize(
    ("end", "words", "is_usable"),
    [
        # "sa" would be one token, but the guard's chat has a system text.
        pytest.param("{{ '' if messages[0].role == 'system' else 's' }}", "ae", True, id="system"),
        pytest.param("", "aa", False, id="equal words"),
        pytest.param("", ("<|im_end|>", "<|im_start|>"), False, id="special tokens"),
    ],
)
def test_a_model_is_refused_before_it_is_loaded_if_and_only_if_it_would_be_then(
    tmp_path: Path, end: str, words: tuple[str, str], is_usable: bool
) -> None:
    model = save_chat_model(tmp_path / "model")
    settings = model / "tokenizer_config.json"
    changed = {"chat_template": TEMPLATE.replace(END, END + end)}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **changed}))
    asked = GuardTemplate(system="Decide.", answer="", unsafe=words[0], safe=words[1])
    facts, loaded = inspect(str(model), HubSettings(), tmp_path / "cache"), ChatTokenizer(model)
    if is_usable:
        facts.check_verdicts(asked)
        assert loaded.verdict(asked)[:2] == (words[0], words[1])
        return
    refusal = "no pair of verdict words is one token each of its tokenizer after"
    with pytest.raises(ConfigError, match=f"^model {model}: {refusal}"):
        facts.check_verdicts(asked)
    with pytest.raises(ConfigError, match=f"^{model}: {refusal}"):
        loaded.verdict(asked)
