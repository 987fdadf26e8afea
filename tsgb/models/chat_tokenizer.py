"""The tokenizer of a pretrained chat model, as transformers loads it.

A chat's ids are those of `apply_chat_template`, also at the edges of the user's text, and this is
checked on stored chats when a tokenizer is loaded. The one difference is meant: what looks like a
special token in a user's text stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import ConfigError
from tsgb.logging import get_logger
from tsgb.models.chat_template import ChatTemplate
from tsgb.models.continuation import Continuation, VerdictTokens
from tsgb.models.tokenizer import Slot, Tokenizer
from tsgb.types import GuardTemplate, Message, Messages

_SLOT = "\u241e"
"""Stands for the user's text while a template is rendered."""
_SPACE = " \n"
"""Tells whether a template trims the user's text."""
_PROBES = (
    "plain",
    " leading",
    "trailing \n",
    "\nlines\n\nand \ttabs",
    "Ünïcode 漢字 🙂",
    "{'a': \"<b>\"}",
)


class ChatTokenizer(Tokenizer):
    """The tokenizer of a model's directory, with its chat template."""

    def __init__(self, directory: Path) -> None:
        """Load what `save_pretrained` wrote, and check it on stored chats.

        Args:
            directory: Files of the tokenizer, and `generation_config.json` if there is one.

        Raises:
            ConfigError: A file is missing, or its chat template cannot be used here.
        """
        self._directory = directory
        self._real, self._template = _load(directory)
        self._backend: Any = self._real.backend_tokenizer
        added = cast("dict[int, Any]", self._real.added_tokens_decoder)
        self._chat = Continuation(self._backend, self._template, added, str(directory))
        self._slots: dict[Any, Slot] = {}
        self._verdicts: dict[GuardTemplate, VerdictTokens] = {}
        if self._chat.folds_system:
            get_logger().warning(
                "the chat template has no system role: system texts go before the first user "
                "message",
                model=directory.name,
            )
        self.size = len(self._real)
        ends = self._find_turn_end()
        eos: int | None = self._real.eos_token_id
        own = [] if eos is None else [eos]
        stops = [*ends, *own, *_generation_stops(directory)]
        if not stops:
            raise ConfigError(
                f"{directory}: neither the tokenizer nor its chat template has a token that ends a "
                "turn: set eos_token in tokenizer_config.json"
            )
        self.end_id = stops[0]
        self.stop_ids = tuple(sorted(set(stops)))
        pad = self._real.pad_token_id
        self.pad_id = 0 if pad is None else int(pad)
        self._check()

    # -- the interface ---------------------------------------------------------------------

    def transformers(self) -> Any:
        """See `Tokenizer`."""
        return self._real

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._chat.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def slot(self, messages: Messages, answer: str = "") -> Slot:
        """See `Tokenizer`."""
        chat, last, head = self._chat.arrange(messages)
        chat[last] = {"role": "user", "content": f"{head}{_SPACE}{_SLOT}{_SPACE}"}
        key = (answer, *((m["role"], m["content"]) for m in chat))
        found = self._slots.get(key)
        if found is None:
            found = self._slots[key] = self._cut(*self._around(chat), answer)
        return found

    def encode_in(self, slot: Slot, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`; text that reads as a special token is encoded as plain text."""
        placed = [slot.place(text) for text in texts]
        # Special tokens on both sides give the text its context, then they are left out.
        start, end = self._mark(slot.before[-1:]), self._mark(slot.after[:1])
        self._backend.encode_special_tokens = False
        encoded = self._backend.encode_batch(
            [f"{start}{text}{end}" for text in placed], add_special_tokens=False
        )
        rows: list[list[int]] = []
        for one, text in zip(encoded, placed, strict=True):
            ids = list(one.ids)[bool(start) : len(one.ids) - bool(end)]
            rows.append(
                ids if self._chat.special.isdisjoint(ids) else self._chat.encode_plain(text)
            )
        return rows

    def encode_answer(self, messages: Messages, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._chat.ids_after(self.chat_text(messages), text)

    def encode_turn(self, messages: Messages) -> tuple[list[int], list[int]]:
        """See `Tokenizer`; the last message is the assistant's or a user's."""
        text = messages[-1]["content"]
        if messages[-1]["role"] == "assistant":
            context = messages[:-1]
            return self.encode_chat(context), [*self.encode_answer(context, text), self.end_id]
        slot = self.slot(messages)
        ids, empty = self.encode_in(slot, [text, ""])
        pairs = enumerate(zip(ids, empty, strict=False))
        common = next((i for i, (one, other) in pairs if one != other), min(len(ids), len(empty)))
        end = [index for index in slot.after[:1] if index in self._chat.special]
        return [*slot.before, *ids[:common]], [*ids[common:], *end]

    def single(self, word: str) -> int:
        """See `Tokenizer`."""
        ids = self.encode(word)
        if len(ids) != 1:
            raise ConfigError(f"{word!r} is {len(ids)} tokens of this tokenizer, it must be one")
        return ids[0]

    def verdict(self, template: GuardTemplate) -> VerdictTokens:
        """See `Tokenizer`; each word is read where it would stand, behind the answer's start."""
        # Every batch of prompts asks for it, and finding it renders the template.
        if template not in self._verdicts:
            self._verdicts[template] = self._chat.verdict(template)
        return self._verdicts[template]

    def chat_text(self, messages: Messages) -> str:
        """Return a whole chat as text, ready for the answer."""
        return self._chat.chat_text(messages)

    # -- the template ----------------------------------------------------------------------

    def _around(self, chat: Messages) -> tuple[str, str]:
        """Return the text before and after the slot of a chat.

        Raises:
            ConfigError: The template refuses the chat, or changes what a user wrote.
        """
        try:
            text = self._template.render(chat)
        except Exception as error:  # a template may raise anything
            raise ConfigError(
                f"{self._directory}: its chat template refuses a chat: {error}"
            ) from error
        if text.count(_SLOT) != 1:
            raise ConfigError(
                f"{self._directory}: its chat template writes a user's text as it is "
                f"{text.count(_SLOT)} times instead of once: such a model cannot be used here"
            )
        before, _, after = text.partition(_SLOT)
        return before, after

    def _find_turn_end(self) -> list[int]:
        """Return the special token that the template puts behind the assistant's text, if any."""
        chat: Messages = [
            {"role": "user", "content": "text"},
            {"role": "assistant", "content": _SLOT},
        ]
        try:
            text = self._template.render(chat, add_generation_prompt=False)
        except Exception:  # noqa: BLE001 - then the tokenizer's own end must do
            return []
        _, _, after = text.partition(_SLOT)
        at, mark = self._first_mark(after)
        return [self._chat.marks[mark]] if mark and not after[:at].strip() else []

    # -- ids -------------------------------------------------------------------------------

    def _first_mark(self, text: str) -> tuple[int, str]:
        """Return where the first special token of a text begins, and the token; "" if none."""
        found = [
            (at, -len(mark), mark) for mark in self._chat.marks if (at := text.find(mark)) >= 0
        ]
        at, _, mark = min(found, default=(len(text), 0, ""))
        return at, mark

    def _cut(self, before: str, after: str, answer: str) -> Slot:
        """Cut a chat at the special tokens next to the user's text."""
        trim_start, trim_end = not before.endswith(_SPACE), not after.startswith(_SPACE)
        before, after = before.removesuffix(_SPACE), after.removeprefix(_SPACE) + answer
        at = self._chat.last_mark(before)
        head = self.encode(before[at:])[:1] if at >= 0 else []
        start = at + len(self._mark(head))
        behind, _ = self._first_mark(after)
        return Slot(
            before=self.encode(before[:start]) if at >= 0 else [],
            prefix=before[start:] if at >= 0 else before,
            suffix=after[:behind],
            after=self.encode(after[behind:]),
            trim_start=trim_start,
            trim_end=trim_end,
        )

    def _mark(self, ids: Sequence[int]) -> str:
        """Return the text of one special token, "" for no id."""
        return next(
            (mark for mark, number in self._chat.marks.items() if [number] == list(ids)), ""
        )

    def _check(self) -> None:
        """Compare the ids of stored chats with those of transformers.

        Raises:
            ConfigError: They differ.
        """
        self.slot([{"role": "user", "content": ""}])
        contexts: list[list[Message]] = [
            [],
            [{"role": "system", "content": "Be brief."}],
            [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
        ]
        for context in contexts:
            for text in _PROBES:
                chat: list[Message] = [*context, {"role": "user", "content": text}]
                arranged, last, head = self._chat.arrange(chat)
                arranged[last] = {"role": "user", "content": head + text}
                try:
                    wanted = self._real.apply_chat_template(
                        [dict(message) for message in arranged],
                        tokenize=True,
                        return_dict=False,
                        add_generation_prompt=True,
                        chat_template=self._template.text,
                        enable_thinking=False,  # those that can think are asked not to
                    )
                except Exception:  # noqa: BLE001, S112 - refused when such a chat is used
                    continue
                if self.encode_chat(chat) != list(wanted):
                    raise ConfigError(
                        f"{self._directory}: the ids of a chat with {text!r} differ from those of "
                        "transformers: its chat template or tokenizer cannot be used here"
                    )


def _load(directory: Path) -> tuple[Any, ChatTemplate]:
    """Load the tokenizer without running code of the directory's, and its chat template.

    Raises:
        ConfigError: There is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    factory: Any = AutoTokenizer  # transformers types its factories in part only
    needs = (
        "it needs tokenizer.json, tokenizer_config.json and a chat template, as `save_pretrained` "
        "writes them"
    )
    try:
        real = factory.from_pretrained(
            directory,
            config=_config_for_tokenizer(directory),
            local_files_only=True,
            trust_remote_code=False,
        )
        _check_encodes(real)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{directory} holds no chat tokenizer ({reason}): {needs}") from error
    if not getattr(real, "is_fast", False):
        raise ConfigError(f"{directory} holds no fast tokenizer (tokenizer.json): {needs}")
    try:
        template = ChatTemplate.choose(real.chat_template, real.special_tokens_map)
    except ConfigError as error:
        raise ConfigError(f"{directory}: {error}") from None
    return real, template


def _check_encodes(real: Any) -> None:
    """Encode a text: a class that does not fit its vocabulary is noticed only then."""
    try:
        real.encode("\n".join(_PROBES))
    except Exception as error:
        raise ValueError(f"it cannot encode text: {error}") from error


def _config_for_tokenizer(directory: Path) -> Any:
    """Return what `AutoTokenizer` asks of a configuration; None where it has to read its own.

    The configuration class of a family imports torch's compiler, which takes 6 s of a process that
    never compiles. A tokenizer that names its class needs the model's type alone.
    """
    from transformers import PreTrainedConfig

    try:
        model = parse_json_object((directory / "config.json").read_text("utf-8"))
        tokenizer = parse_json_object((directory / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    kind = model.get("model_type")
    if not isinstance(kind, str) or "auto_map" in tokenizer:
        return None
    if not isinstance(tokenizer.get("tokenizer_class"), str):
        return None
    factory: Any = PreTrainedConfig  # transformers types its fields in part only
    config = factory(name_or_path=str(directory))
    config.model_type = kind
    return config


def _generation_stops(directory: Path) -> list[int]:
    """Return the ids that end a text by `generation_config.json`; none without one."""
    try:
        given = parse_json_object((directory / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    found = given.get("eos_token_id")
    ids = cast("list[object]", found) if isinstance(found, list) else [found]
    return [index for index in ids if isinstance(index, int)]
