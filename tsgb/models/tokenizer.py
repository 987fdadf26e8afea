"""One tokenizer interface for a closed word list and for a pretrained model.

User text is encoded apart from the template around it and never parsed for special tokens (nor, in
a word list, for the words of the template), so a prompt cannot forge a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from tsgb.errors import ConfigError
from tsgb.models.chat_template import ChatTemplate
from tsgb.types import GuardTemplate, Message, Messages, TokenizerSpec

_SLOT = "\u241e"  # stands for the user's text while a template is rendered


class _Words(dict[str, int]):
    """Word to id; an unknown word is the padding, as in the transformers tokenizer."""

    def __missing__(self, word: str) -> int:
        return 0


class Tokenizer:
    """Text to ids and back, and chat messages to text."""

    def __init__(self, *, size: int, pad_id: int, eos_id: int, template: ChatTemplate) -> None:
        """Use `from_words` or `from_directory`; importing transformers would cost seconds."""
        self.size = size
        self.pad_id = pad_id
        self.eos_id = eos_id
        self._template = template
        self._rendered: dict[Any, tuple[list[int], list[int], str, str]] = {}
        self._fast: Any = None
        self._directory = Path()
        self._words: _Words | None = None
        self._user_words = _Words()
        self._names: list[str] = []

    @classmethod
    def from_words(cls, spec: TokenizerSpec) -> Tokenizer:
        """A word-level tokenizer; the first word pads, `EOS` ends."""
        words = _Words({word: index for index, word in enumerate(spec.words)})
        tokenizer = cls(
            size=len(spec.words),
            pad_id=0,
            eos_id=words["EOS"],
            template=ChatTemplate(spec.chat_template),
        )
        tokenizer._words = words
        tokenizer._names = list(spec.words)
        chat = tokenizer._template.render([{"role": "user", "content": _SLOT}])
        reserved = {"EOS", *chat.split()}
        tokenizer._user_words = _Words(
            {word: index for word, index in words.items() if word not in reserved}
        )
        return tokenizer

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """What `save_pretrained` of a transformers fast tokenizer wrote.

        Raises:
            ConfigError: a file is missing, or there is no chat template or end token.
        """
        try:
            fast = FastTokenizer.from_str((directory / "tokenizer.json").read_text("utf-8"))
            template = ChatTemplate.from_directory(directory)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{directory} holds no chat tokenizer ({error}): it needs tokenizer.json, "
                "tokenizer_config.json and a chat template, as `save_pretrained` writes them"
            ) from error
        eos_id = fast.token_to_id(template.special["eos_token"])
        if eos_id is None:
            raise ConfigError(f"{directory}/tokenizer_config.json names no eos_token")
        pad_id = fast.token_to_id(template.special["pad_token"])
        tokenizer = cls(
            size=fast.get_vocab_size(),
            pad_id=0 if pad_id is None else pad_id,
            eos_id=eos_id,
            template=template,
        )
        tokenizer._fast = fast
        tokenizer._directory = directory
        return tokenizer

    def transformers(self) -> Any:
        """The transformers tokenizer, to be saved beside exported weights."""
        if self._words is None:
            from transformers import AutoTokenizer

            factory: Any = AutoTokenizer  # transformers types its factories in part only
            return factory.from_pretrained(self._directory)
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
        fast.chat_template = self._template.text
        return fast

    def encode(self, text: str) -> list[int]:
        """Ids of template text; special tokens are recognised, none are added."""
        if self._words is not None:
            return list(map(self._words.__getitem__, text.split()))
        self._fast.encode_special_tokens = False
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_user(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of user text: what looks like a special token stays plain text."""
        if self._words is not None:
            look_up = self._user_words.__getitem__
            return [list(map(look_up, text.split())) for text in texts]
        self._fast.encode_special_tokens = True
        return [
            list(one.ids) for one in self._fast.encode_batch(list(texts), add_special_tokens=False)
        ]

    def reserved_ids(self) -> list[int]:
        """Ids of a word list that user text becomes the padding instead of; none elsewhere."""
        if self._words is None:
            return []
        return sorted(set(self._words.values()) - set(self._user_words.values()))

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
        ids = [] if self._words is not None else self.encode(word)
        if len(ids) != 1:
            raise ConfigError(
                f"{word!r} is {len(ids) or 'no'} tokens of this tokenizer, it must be one: "
                "a verdict stands in the environment's guard_template, a read-out in its corpus"
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
        chat = list(messages)
        chat[last] = Message(role="user", content=_SLOT)
        key = tuple([(message["role"], message["content"]) for message in chat])
        parts = self._rendered.get(key)
        if parts is None:
            # Rendering costs a hundred times the rest; what surrounds the slot rarely changes.
            text = self._template.render(chat)
            before, _, after = text.partition(_SLOT)
            parts = (self.encode(before), self.encode(after), before, after)
            self._rendered[key] = parts
        return (*parts, messages[last]["content"])

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
