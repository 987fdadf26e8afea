"""Targets that are models of this process: read-out models and generating ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tsgb.models.engine import Engine, Readout, Role
from tsgb.models.tokenizer import Tokenizer
from tsgb.models.torch_typing import flags, int_rows
from tsgb.targets.thoughts import without_thought
from tsgb.types import Messages, Response


class ReadoutTarget:
    """A tiny model whose whole answer is read at the last positions of one forward pass."""

    def __init__(self, name: str, readout: Readout, tokenizer: Tokenizer, answer: str) -> None:
        """Make a target of a read-out model.

        Args:
            name: name in tables.
            readout: the model.
            tokenizer: its tokenizer.
            answer: suffix of each chat; the answer is the argmax word at each of its positions.
        """
        self.name = name
        self._readout = readout
        self._tokenizer = tokenizer
        self._answer = tokenizer.encode(answer)

    @torch.no_grad()
    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`."""
        rows = [[*self._tokenizer.encode_chat(chat), *self._answer] for chat in chats]
        texts: list[str] = []
        width = len(self._answer)
        for start in range(0, len(rows), 512):
            words = self._readout(rows[start : start + 512], width).argmax(-1)
            texts += [self._tokenizer.decode(row) for row in int_rows(words.view(-1, width))]
        return [Response(text=text) for text in texts]


_CHATS = 64
"""Chats that an engine is given at once; it splits them further where memory is short. A weight is
read once for a token of all rows, and rows end early: 64 rows took two thirds of the time of 8."""


class ChatTarget:
    """A language model that generates its answer greedily."""

    def __init__(self, name: str, engine: Engine, role: Role, max_new_tokens: int) -> None:
        """Make a target of `role` of `engine`: its bare base, or an adapter on it.

        Args:
            name: name in tables.
            engine: the model.
            role: which policy on it answers.
            max_new_tokens: limit of each answer.
        """
        self.name = name
        self._engine = engine
        self._role = role
        self._max_new_tokens = max_new_tokens

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`."""
        responses: list[Response] = []
        for start in range(0, len(chats), _CHATS):
            writing = self._engine.write(
                self._role,
                chats[start : start + _CHATS],
                group=1,
                max_new_tokens=self._max_new_tokens,
                generator=None,
            )
            responses += [
                _response(text, finished=finished)
                for text, finished in zip(writing.texts, flags(writing.finished_N), strict=True)
            ]
        return responses


TOO_LONG = "too long"
"""Error of a chat that a model is not made for."""


class LoadedTarget:
    """A chat model as it is, on an engine that is loaded only when it is asked.

    A chat that does not fit into its window together with the longest answer is not asked about:
    beyond the window a model says anything, or fails.
    """

    def __init__(self, name: str, load: Callable[[], Engine], max_new_tokens: int) -> None:
        """Load nothing yet.

        Args:
            name: name in tables.
            load: returns the engine; called for each batch, so that its owner may free it between.
            max_new_tokens: limit of each answer.
        """
        self.name = name
        self._load = load
        self._max_new_tokens = max_new_tokens

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`."""
        engine = self._load()
        target = ChatTarget(self.name, engine, engine.base, self._max_new_tokens)
        fits = [self._fits(engine, chat) for chat in chats]
        answers = iter(target.answer([c for c, fit in zip(chats, fits, strict=True) if fit]))
        missing = Response(text="", finish_reason="error", error=TOO_LONG, attempts=0)
        return [next(answers) if fit else missing for fit in fits]

    def _fits(self, engine: Engine, chat: Messages) -> bool:
        if engine.window is None:
            return True
        return len(engine.tokenizer.encode_chat(chat)) + self._max_new_tokens <= engine.window


def _response(text: str, *, finished: bool) -> Response:
    """Return an answer without the thought before it; an unfinished thought has no answer."""
    reason = "stop" if finished else "length"
    answer, thought = without_thought(text)
    return Response(text=answer, finish_reason=reason, thought=thought)
