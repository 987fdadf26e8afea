"""Chat templates: which one a tokenizer has, and what it makes of messages.

It renders as transformers does, without importing it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self, cast

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tsgb.errors import ConfigError
from tsgb.models.files import read_json
from tsgb.types import Messages

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Names of the special tokens that a template may use."""
_DAY = (
    "{%- macro strftime_now(form) -%}{{ form | replace('%d', '01') | replace('%b', 'Jan') "
    "| replace('%B', 'January') | replace('%m', '01') | replace('%Y', '2026') "
    "| replace('%y', '26') | replace('%H', '12') | replace('%M', '00') | replace('%S', '00') }}"
    "{%- endmacro %}"
)
"""Put before a template that asks for the time: a prompt must not change from day to day."""
_SYSTEM, _USER = "Keep to the point.", "Say what it is."


class ChatTemplate:
    """A jinja template, and the special tokens that it may name."""

    def __init__(self, text: str, special: Mapping[str, str] | None = None) -> None:
        """Keep the text; it is parsed when it is rendered.

        Args:
            text: Template in transformers' dialect of jinja.
            special: Text of special tokens, by their names in `SPECIAL`.
        """
        self.text = f"{_DAY}{text}" if "strftime_now" in text else text
        self.special = special or {}

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Read the template of a tokenizer that `save_pretrained` of transformers wrote.

        Raises:
            ConfigError: There is none.
        """
        settings = read_json(directory / "tokenizer_config.json")
        given: Any = settings.get("chat_template")
        if isinstance(given, list):
            given = {one["name"]: one["template"] for one in cast("list[dict[str, str]]", given)}
        if given is None:
            try:
                given = (directory / "chat_template.jinja").read_text("utf-8")
            except (OSError, ValueError):
                given = ""
        return cls.choose(given, {name: _content(settings.get(name)) for name in SPECIAL})

    @classmethod
    def choose(cls, given: str | Mapping[str, str] | None, special: Mapping[str, str]) -> Self:
        """Choose the template of a tokenizer, which has one, or several by name.

        Raises:
            ConfigError: It has none, or none that is named default.
        """
        if isinstance(given, Mapping) and "default" not in given:
            raise ConfigError(
                f"its tokenizer has no chat template named default among {', '.join(given)}: name "
                "one of them so in tokenizer_config.json"
            )
        text = given["default"] if isinstance(given, Mapping) else given
        if not isinstance(text, str) or not text:
            raise ConfigError(
                "its tokenizer has no chat template: name the version that was tuned on "
                "instructions, often called Instruct or Chat"
            )
        return cls(text, special)

    @cached_property
    def _compiled(self) -> Template:
        # The environment that transformers renders in.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        return environment.from_string(self.text)

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """Return the text of a chat, as a rule up to where the answer begins.

        Args:
            messages: The chat.
            add_generation_prompt: Whether the start of an answer follows the last message.

        Raises:
            TemplateError: The template refuses the messages, or is not understood.
        """
        return self._compiled.render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,  # those that can think are asked not to
            raise_exception=_raise_exception,
            **self.special,
        )

    def check(self) -> bool:
        """Return whether the template keeps a system message; it must keep the text of a user.

        Raises:
            ConfigError: It does not keep that.
        """
        try:
            text = self.render([{"role": "user", "content": _USER}])
        except (TemplateError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"its chat template cannot be rendered ({error})") from None
        if _USER not in text:
            raise ConfigError("its chat template drops the text of a message")
        return self.keeps_system()

    def keeps_system(self) -> bool:
        """Return whether the template takes a system message and keeps its text."""
        try:
            text = self.render(
                [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
            )
        except Exception:  # noqa: BLE001 - a template may refuse a role in any way
            return False
        return _SYSTEM in text


def _content(token: Any) -> str:
    """Return a special token's text, which is written as such or as an object."""
    if isinstance(token, dict):
        return str(cast("dict[str, Any]", token)["content"])
    return str(token or "")


class _GenerationTag(Extension):
    """Takes `{% generation %}`, with which some templates mark what an assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        """Return what is between the tags, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    """Write JSON as transformers does: without jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    """Refuse messages; templates call it by this name."""
    raise TemplateError(message)
