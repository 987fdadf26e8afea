"""Chat templates of every dialect that transformers renders, and what they do to messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.chat_model import TEMPLATE
from tsgb.errors import ConfigError
from tsgb.models.chat_template import ChatTemplate
from tsgb.types import Message

CHAT: list[Message] = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "What is 'that'?"},
]
LOOP = "{% for m in messages %}BODY{% endfor %}"
TEMPLATES = {
    "ours": TEMPLATE,
    "generation tag": LOOP.replace("BODY", "{% generation %}{{ m.content }}{% endgeneration %}"),
    "json": LOOP.replace("BODY", "{{ m | tojson }}"),
    "indented json": LOOP.replace("BODY", "{{ m | tojson(indent=2) }}"),
    "loop control": LOOP.replace("BODY", "{% if loop.last %}{% break %}{% endif %}{{ m.role }}"),
    "namespace": "{% set ns = namespace(x=1) %}{{ ns.x }}"
    + LOOP.replace("BODY", "{{ m.content }}"),
    "tools": "{% if tools %}{{ tools }}{% endif %}{{ messages[-1]['content'] }}",
}


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=TEMPLATES)
def test_it_renders_as_transformers_does(text: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"eos_token": "<|im_end|>"}
    render: Any = render_jinja_template
    [theirs], _ = render([CHAT], chat_template=text, add_generation_prompt=True, **special)
    assert ChatTemplate(text, special).render(CHAT) == theirs


def test_the_day_does_not_change() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}")
    assert template.render(CHAT[1:]) == "01 Jan 2026 What is 'that'?"


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        (TEMPLATE, True),
        (LOOP.replace("BODY", "{% if m.role != 'system' %}{{ m.content }}{% endif %}"), False),
        (
            LOOP.replace(
                "BODY", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
            )
            + "{{ messages[0].content }}",
            False,
        ),
    ],
    ids=["kept", "dropped", "refused"],
)
def test_it_tells_whether_a_system_message_survives(text: str, keeps: bool) -> None:
    assert ChatTemplate(text, {"eos_token": "<|im_end|>"}).check() is keeps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% if %}", "cannot be rendered"),
        ("{{ messages[0].parts[0].text }}", "cannot be rendered"),
        ("{{ raise_exception('no chats') }}", r"cannot be rendered \(no chats\)"),
        ("hello", "drops the text of a message"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(text).check()


def test_it_is_read_from_where_tokenizers_keep_it(tmp_path: Path) -> None:
    settings = tmp_path / "tokenizer_config.json"

    def read(**content: Any) -> ChatTemplate:
        settings.write_text(json.dumps({"eos_token": {"content": "<e>"}, **content}))
        return ChatTemplate.from_directory(tmp_path)

    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert read(chat_template="one").text == "one"
    assert read(chat_template=named).text == "d"
    with pytest.raises(ConfigError, match="no chat template"):
        read()
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read().text == "file"
    assert read().special == {"bos_token": "", "eos_token": "<e>", "pad_token": "", "unk_token": ""}
