"""One tokenizer interface for a closed word list and for a pretrained model.

User text is encoded apart from the template around it and never parsed for special tokens, so a
prompt cannot forge a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tsgb.errors import ConfigError
from tsgb.types import GuardTemplate, Message, Messages, TokenizerSpec

_SLOT = "\u241e"  # stands for the user's text while a template is rendered


class _Words(dict[str, int]):
    """Word to id; an unknown word is the padding, as in the transformers tokenizer."""

    def __missing__(self, word: str) -> int:
        return 0


class Tokenizer:
    """Text to ids and back, and chat messages to text."""

    def __init__(self, fast: Any) -> None:
        """Wrap a transformers fast tokenizer with a chat template."""
        self._fast = fast
        self.size = len(fast)
        self.pad_id: int = fast.pad_token_id if fast.pad_token_id is not None else 0
        self.eos_id: int = fast.eos_token_id
        self._rendered: dict[Any, tuple[list[int], list[int], str, str]] = {}
        self._words: _Words | None = None
        self._names: list[str] = []
        self._template = ""

    @classmethod
    def from_words(cls, spec: TokenizerSpec) -> Tokenizer:
        """A word-level tokenizer; the first word pads, `EOS` ends.

        Words need no library: importing transformers costs every worker 2 CPU seconds.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._fast = None
        tokenizer.size = len(spec.words)
        tokenizer._words = _Words({word: index for index, word in enumerate(spec.words)})
        tokenizer._names = list(spec.words)
        tokenizer.pad_id = 0
        tokenizer.eos_id = tokenizer._words["EOS"]
        tokenizer._rendered = {}
        tokenizer._template = spec.chat_template
        return tokenizer

    def transformers(self) -> Any:
        """The transformers tokenizer, to be saved beside exported weights."""
        if self._words is None:
            return self._fast
        from tokenizers import Tokenizer as FastTokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        pad = self._names[0]
        plain = FastTokenizer(WordLevel(dict(self._words), unk_token=pad))
        plain.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        fast = PreTrainedTokenizerFast(
            tokenizer_object=plain,
            pad_token=pad,
            eos_token=self._names[self.eos_id],
            unk_token=pad,
        )
        fast.chat_template = self._template
        return fast

    def encode(self, text: str) -> list[int]:
        """Ids of template text; special tokens are recognised, none are added."""
        if self._words is not None:
            return list(map(self._words.__getitem__, text.split()))
        ids: list[int] = self._fast(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode_user(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of user text: what looks like a special token stays plain text."""
        if self._words is not None:
            return [self.encode(text) for text in texts]
        ids: list[list[int]] = self._fast(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        if self._words is not None:
            return " ".join(map(self._names.__getitem__, ids))
        return str(self._fast.decode(ids, skip_special_tokens=True))

    def single(self, word: str) -> int:
        """Id of a text that must be one token.

        Raises:
            ConfigError: it is not.
        """
        if self._words is not None and word in self._words:
            return self._words[word]
        ids = self.encode(word)
        if len(ids) != 1:
            raise ConfigError(
                f"verdict word {word!r} is {len(ids)} tokens of this tokenizer, it must be one: "
                "name another word in the environment's guard_template"
            )
        return ids[0]

    def render(self, messages: Messages) -> tuple[list[int], list[int], str]:
        """Split a chat at its last user message.

        Returns:
            Ids before and after that message's content, and the content itself.
        """
        before, after, _, _, content = self._split(messages)
        return before, after, content

    def _split(self, messages: Messages) -> tuple[list[int], list[int], str, str, str]:
        last = len(messages) - 1
        while messages[last]["role"] != "user":
            last -= 1
        key = tuple(
            [(m["role"], _SLOT if i == last else m["content"]) for i, m in enumerate(messages)]
        )
        parts = self._rendered.get(key)
        if parts is None:
            # Rendering costs a hundred times the rest; what surrounds the slot rarely changes.
            text = self._apply([{"role": role, "content": content} for role, content in key])
            before, _, after = text.partition(_SLOT)
            parts = (self.encode(before), self.encode(after), before, after)
            self._rendered[key] = parts
        return (*parts, messages[last]["content"])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        if self._words is not None:
            template = ImmutableSandboxedEnvironment().from_string(self._template)
            return template.render(messages=messages, add_generation_prompt=True)
        return str(
            self._fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def chat_text(self, messages: Messages) -> str:
        """Text of a whole chat, ready for the answer (for training texts that we wrote)."""
        _, _, before, after, content = self._split(messages)
        return f"{before}{content}{after}"

    def encode_chat(self, messages: Messages) -> list[int]:
        """Ids of a whole chat, ready for the answer."""
        before, after, content = self.render(messages)
        return [*before, *self.encode_user([content])[0], *after]

    def guard_parts(self, template: GuardTemplate) -> tuple[list[int], list[int]]:
        """Ids before and after the prompt in the guard's template."""
        messages: list[Message] = [{"role": "user", "content": ""}]
        if template.system:
            messages.insert(0, {"role": "system", "content": template.system})
        before, after, _ = self.render(messages)
        return before, [*after, *self.encode(template.answer)]
