"""Chat templates: which one a tokenizer has, and what it makes of messages.

It renders as transformers does, without importing it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Self, cast

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tsgb.errors import ConfigError
from tsgb.models.files import read_json
from tsgb.types import Messages

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Names of the special tokens that a template may use."""
_DAY = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The time that a template may print: a prompt must not change from day to day."""
_SYSTEM, _USER = "Keep to the point.", "Say what it is."


class ChatTemplate:
    """A jinja template, and the special tokens that it may name."""

    def __init__(self, text: str, special: Mapping[str, str] | None = None) -> None:
        """Keep the text; it is parsed when it is rendered.

        Args:
            text: Template in transformers' dialect of jinja.
            special: Text of special tokens, by their names in `SPECIAL`.
        """
        self.text = text
        self.special = special or {}

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Read the template of a tokenizer that `save_pretrained` of transformers wrote.

        Raises:
            ConfigError: There is none.
        """
        settings = read_json(directory / "tokenizer_config.json")
        text = settings.get("chat_template")
        if isinstance(text, list):  # of named ones, as some older models have them
            named = {one["name"]: one["template"] for one in cast("list[dict[str, str]]", text)}
            text = named.get("default")
        if not isinstance(text, str):
            try:
                text = (directory / "chat_template.jinja").read_text("utf-8")
            except (OSError, ValueError):
                raise ConfigError(
                    "its tokenizer has no chat template: name the version that was tuned on "
                    "instructions, often called Instruct or Chat"
                ) from None
        return cls(text, {name: _content(settings.get(name)) for name in SPECIAL})

    def render(self, messages: Messages) -> str:
        """Return the text of a chat, up to where the answer begins.

        Raises:
            TemplateError: The template refuses the messages, or is not understood.
        """
        # The environment that transformers renders in.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        return environment.from_string(self.text).render(
            messages=messages,
            add_generation_prompt=True,
            enable_thinking=False,
            raise_exception=_raise_exception,
            strftime_now=_DAY.strftime,
            **self.special,
        )

    def check(self) -> bool:
        """Tell whether the template takes a system message and keeps its text.

        Raises:
            ConfigError: It does not even keep the text of a user.
        """
        try:
            text = self.render([{"role": "user", "content": _USER}])
        except (TemplateError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"its chat template cannot be rendered ({error})") from None
        if _USER not in text:
            raise ConfigError("its chat template drops the text of a message")
        try:
            text = self.render(
                [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
            )
        except (TemplateError, TypeError, ValueError, AttributeError):  # how it refuses a role
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
