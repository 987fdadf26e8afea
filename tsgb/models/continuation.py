"""A chat as its template writes it, and the tokens by which a text goes on after it.

It needs the tokenizer's file and the chat template only, not transformers: the verdict words of a
model are read by the same rule before anything starts and when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer as FastTokenizer

from tsgb.errors import ConfigError
from tsgb.models.chat_template import ChatTemplate
from tsgb.types import GuardTemplate, Message, Messages


class VerdictTokens(NamedTuple):
    """The tokens between which the guard decides."""

    unsafe: str
    """Text of the first one."""
    safe: str
    """Text of the other one."""
    unsafe_id: int
    """Id of the first one."""
    safe_id: int
    """Id of the other one."""


class Continuation:
    """A chat template with the tokenizer that its text is meant for."""

    def __init__(
        self, backend: FastTokenizer, template: ChatTemplate, added: Mapping[int, Any], owner: str
    ) -> None:
        """Look at the special tokens, and at whether the template keeps a system message.

        Args:
            backend: The tokenizer.
            template: The chat template.
            added: Tokens outside of the tokenizer's model, by id.
            owner: Name of the model, for messages.
        """
        self._backend: Any = backend  # the library types its methods in part only
        self._template = template
        self._owner = owner
        self.marks = {str(one.content): index for index, one in added.items() if one.special}
        """Ids of special tokens by their text."""
        unknown = backend.token_to_id(template.special.get("unk_token") or "")
        self.special = set(self.marks.values()) - {unknown}
        """Ids of special tokens that no plain text has."""
        self.folds_system = not template.keeps_system()
        """Whether a system text goes before the first user message."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, in which special tokens are read as such."""
        self._backend.encode_special_tokens = False
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Return ids without any special token, whatever the text looks like."""
        self._backend.encode_special_tokens = True
        try:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        finally:
            self._backend.encode_special_tokens = False
        return [index for index in ids if index not in self.special]

    def last_mark(self, text: str) -> int:
        """Return where the last special token of a text begins; -1 if there is none."""
        return max(
            ((at + len(mark), at) for mark in self.marks if (at := text.rfind(mark)) >= 0),
            default=(0, -1),
        )[1]

    def arrange(self, messages: Messages) -> tuple[list[Message], int, str]:
        """Put the system text where the template keeps it.

        Returns:
            The chat, the number of its last user message, and the text to put in front of that.
        """
        chat, head = list(messages), ""
        if self.folds_system and chat[0]["role"] == "system":
            head = f"{chat.pop(0)['content']}\n\n"
        users = [number for number, message in enumerate(chat) if message["role"] == "user"]
        first, last = users[0], users[-1]
        if head and first != last:
            chat[first] = {"role": "user", "content": head + chat[first]["content"]}
            head = ""
        return chat, last, head

    def chat_text(self, messages: Messages) -> str:
        """Return a whole chat as text, ready for the answer."""
        chat, last, head = self.arrange(messages)
        chat[last] = {"role": "user", "content": head + chat[last]["content"]}
        return self._template.render(chat)

    def ids_after(self, context: str, text: str) -> list[int]:
        """Return the ids by which a text goes on after a chat, as a model would write it."""
        tail = context[max(0, self.last_mark(context)) :]
        before, whole = self.encode(tail), self.encode(tail + text)
        if whole[: len(before)] == before and self.special.isdisjoint(whole[len(before) :]):
            return whole[len(before) :]
        return self.encode_plain(text)

    def verdict(self, asked: GuardTemplate) -> VerdictTokens:
        """Return the first pair of verdict words that are one token each where they would stand.

        Args:
            asked: The prompt in which the guard is asked.

        Raises:
            ConfigError: There is no such pair.
        """
        messages: list[Message] = [{"role": "user", "content": "prompt"}]
        if asked.system:
            messages.insert(0, {"role": "system", "content": asked.system})
        context = self.chat_text(messages) + asked.answer
        for unsafe, safe in asked.pairs:
            one, other = (self.ids_after(context, word) for word in (unsafe, safe))
            if len(one) == len(other) == 1 and one != other:
                return VerdictTokens(unsafe, safe, one[0], other[0])
        listed = ", ".join(f"{unsafe!r}/{safe!r}" for unsafe, safe in asked.pairs)
        raise ConfigError(
            f"{self._owner}: no pair of verdict words is one token each of its tokenizer after "
            f"{asked.answer!r} ({listed}): name another model, or give the world's guard_template "
            "another pair"
        )
