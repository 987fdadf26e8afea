"""The interface of tokenizers, and the one of a closed word list.

User text is never parsed for special tokens (nor, in a word list, for the words of the template),
so a prompt cannot forge a turn. `tsgb.models.chat_tokenizer` implements the interface for
pretrained models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tsgb.errors import ConfigError
from tsgb.models.continuation import VerdictTokens
from tsgb.types import GuardTemplate, Message, Messages, TokenizerSpec


class GuardRows(NamedTuple):
    """The guard's input for some prompts, and the tokens between which it decides."""

    opening: list[int]
    """Ids by which nearly every row of any prompt begins: the template up to the user's text."""
    rows: list[list[int]]
    """Ids of the whole input, one row a prompt."""
    unsafe_id: int
    """Id of the unsafe verdict."""
    safe_id: int
    """Id of the safe verdict."""


class Slot(NamedTuple):
    """The place of a user's text in a chat.

    The ids of the chat are `before`, those of `prefix + text + suffix` there, and `after`.
    """

    before: list[int]
    """Ids up to the last special token before the text."""
    prefix: str
    """Plain text between that token and the user's text."""
    suffix: str
    """Plain text behind the user's text, up to the next special token."""
    after: list[int]
    """Ids from that token on."""
    trim_start: bool = False
    """Whether white space at the start of the user's text is left out."""
    trim_end: bool = False
    """Whether white space at its end is left out."""

    def place(self, text: str) -> str:
        """Return a user's text with the plain text around it."""
        text = text.lstrip() if self.trim_start else text
        text = text.rstrip() if self.trim_end else text
        return f"{self.prefix}{text}{self.suffix}"


class Tokenizer(ABC):
    """Text to ids and back, and chats to ids."""

    size: int
    """Number of ids."""
    pad_id: int
    """Id that fills rows up."""
    stop_ids: tuple[int, ...]
    """Ids of which each ends a completion."""
    end_id: int
    """Id that ends a turn in training."""

    @abstractmethod
    def transformers(self) -> Any:
        """Return the transformers tokenizer, to be saved beside exported weights."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of text of ours; special tokens are recognised, none are added."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""

    @abstractmethod
    def slot(self, messages: Messages, answer: str = "") -> Slot:
        """Return the place of the last user message in a chat that is ready for its answer.

        Args:
            messages: The chat.
            answer: Start of the answer, at the end of `Slot.after`.
        """

    @abstractmethod
    def encode_in(self, slot: Slot, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of user texts in a slot, without `Slot.before` and `Slot.after`."""

    @abstractmethod
    def encode_answer(self, messages: Messages, text: str) -> list[int]:
        """Return the ids by which an answer to a chat begins, as a model would write it."""

    @abstractmethod
    def encode_turn(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Return the ids of a chat up to its last message, and of that message with its end."""

    @abstractmethod
    def single(self, word: str) -> int:
        """Return the id of a text that must be one token.

        Raises:
            ConfigError: It is not.
        """

    @abstractmethod
    def verdict(self, template: GuardTemplate) -> VerdictTokens:
        """Return the first pair of words of which each is one token after the answer's start.

        Raises:
            ConfigError: No pair of the template is.
        """

    def reserved_ids(self) -> list[int]:
        """Return ids that user text becomes the padding instead of; none by default."""
        return []

    def encode_chat(self, messages: Messages) -> list[int]:
        """Return the ids of a whole chat, ready for the answer."""
        last = next(m for m in reversed(messages) if m["role"] == "user")
        slot = self.slot(messages)
        return [*slot.before, *self.encode_in(slot, [last["content"]])[0], *slot.after]

    def encode_openings(
        self, chats: Sequence[Messages], group: int, openings: Sequence[str] | None
    ) -> list[list[int]] | None:
        """Return the ids of forced starts of answers, `group` of them a chat; None without any."""
        if openings is None:
            return None
        # The completions of a chat usually share their opening.
        starts = [(number // group, text) for number, text in enumerate(openings)]
        encoded = {
            (chat, text): self.encode_answer(chats[chat], text) if text else []
            for chat, text in dict.fromkeys(starts)
        }
        return [encoded[start] for start in starts]

    def guard_slot(self, template: GuardTemplate) -> Slot:
        """Return the place of the prompt in the guard's template."""
        messages: list[Message] = [{"role": "user", "content": ""}]
        if template.system:
            messages.insert(0, {"role": "system", "content": template.system})
        return self.slot(messages, template.answer)

    def guard_rows(self, template: GuardTemplate, prompts: Sequence[str]) -> list[list[int]]:
        """Return the guard's whole input for each prompt, as ids."""
        return self.rows_in(self.guard_slot(template), prompts)

    def rows_in(self, slot: Slot, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the whole chat for each user text in a slot."""
        return [[*slot.before, *ids, *slot.after] for ids in self.encode_in(slot, texts)]

    def guard_input(self, template: GuardTemplate, prompts: Sequence[str]) -> GuardRows:
        """Return the guard's input for prompts."""
        words = self.verdict(template)
        return self.input_in(self.guard_slot(template), prompts, words.unsafe_id, words.safe_id)

    def input_in(
        self, slot: Slot, prompts: Sequence[str], unsafe_id: int, safe_id: int
    ) -> GuardRows:
        """Return the guard's input for prompts in a slot, with the verdicts' ids."""
        # Plain text before the prompt is in the opening as far as two prompts share it; rare ones
        # that join with it begin otherwise.
        one, other, *rows = self.rows_in(slot, ["a", "0", *prompts])
        pairs = enumerate(zip(one, other, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), len(slot.before))
        return GuardRows(one[:common], rows, unsafe_id, safe_id)


class _Words(dict[str, int]):
    """Word to id; an unknown word is the padding, as in the transformers tokenizer."""

    def __missing__(self, word: str) -> int:
        return 0


_SLOT = "\u241e"  # stands for the user's text while a template is rendered


class WordTokenizer(Tokenizer):
    """A closed word list: the first word pads, `EOS` ends."""

    def __init__(self, spec: TokenizerSpec) -> None:
        """Read the list.

        Args:
            spec: Words and chat template.
        """
        self._names = list(spec.words)
        self._words = _Words({word: index for index, word in enumerate(spec.words)})
        self._template = spec.chat_template
        self.size = len(spec.words)
        self.pad_id = 0
        self.end_id = self._words["EOS"]
        self.stop_ids = (self.end_id,)
        self._slots: dict[Any, Slot] = {}
        chat = self._render([("user", _SLOT)])
        reserved = {"EOS", *chat.split()}
        self._user_words = _Words(
            {word: index for word, index in self._words.items() if word not in reserved}
        )

    def transformers(self) -> Any:
        """See `Tokenizer`."""
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        pad = self._names[0]
        plain = Backend(WordLevel(dict(self._words), unk_token=pad))
        plain.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        fast = PreTrainedTokenizerFast(
            tokenizer_object=plain,
            pad_token=pad,
            eos_token=self._names[self.end_id],
            unk_token=pad,
        )
        fast.chat_template = self._template
        return fast

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`; an unknown word is the padding."""
        return list(map(self._words.__getitem__, text.split()))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return " ".join(map(self._names.__getitem__, ids))

    def slot(self, messages: Messages, answer: str = "") -> Slot:
        """See `Tokenizer`; words have no context, so nothing lies between."""
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        key = (
            answer,
            *((m["role"], _SLOT if i == last else m["content"]) for i, m in enumerate(messages)),
        )
        found = self._slots.get(key)
        if found is None:
            # Rendering costs a hundred times the rest; what surrounds the slot rarely changes.
            before, _, after = self._render(key[1:]).partition(_SLOT)
            found = Slot(self.encode(before), "", "", [*self.encode(after), *self.encode(answer)])
            self._slots[key] = found
        return found

    def encode_in(self, slot: Slot, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`; words of the template are the padding in user text."""
        del slot
        look_up = self._user_words.__getitem__
        return [list(map(look_up, text.split())) for text in texts]

    def encode_answer(self, messages: Messages, text: str) -> list[int]:
        """See `Tokenizer`; words have no context."""
        del messages
        return self.encode(text)

    def encode_turn(self, messages: Messages) -> tuple[list[int], list[int]]:
        """See `Tokenizer`; an end that is written out is not written again."""
        ids = self.encode(messages[-1]["content"])
        return self.encode_chat(messages[:-1]), [
            *ids,
            *([] if ids[-1:] == [self.end_id] else [self.end_id]),
        ]

    def single(self, word: str) -> int:
        """See `Tokenizer`."""
        if word not in self._words:
            raise ConfigError(
                f"{word!r} is no word of this tokenizer: a verdict stands in the environment's "
                "guard_template, a read-out in its corpus"
            )
        return self._words[word]

    def verdict(self, template: GuardTemplate) -> VerdictTokens:
        """See `Tokenizer`; a word list has the words that its world wrote."""
        unsafe, safe = template.unsafe, template.safe
        return VerdictTokens(unsafe, safe, self.single(unsafe), self.single(safe))

    def reserved_ids(self) -> list[int]:
        """Return the ids of words of the template, and of `EOS`."""
        return sorted(set(self._words.values()) - set(self._user_words.values()))

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self._template).render(
            messages=[{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
        )
