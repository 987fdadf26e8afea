"""Targets that are models of this process: read-out models and generating ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tsgb.models.fast.engine import LanguageModel
from tsgb.models.fast.generation import generate
from tsgb.models.fast.packing import Rows
from tsgb.models.tokenizer import Tokenizer
from tsgb.models.torch_typing import int_rows, ints
from tsgb.types import Messages, Response


class ReadoutTarget:
    """A tiny model whose whole answer is read at the last positions of one forward pass."""

    def __init__(
        self, name: str, forward: Callable[[Rows, int], Tensor], tokenizer: Tokenizer, answer: str
    ) -> None:
        """Wrap a function from token rows and a width W to logits [B * W, V] of their ends."""
        self.name = name
        self._forward = forward
        self._tokenizer = tokenizer
        self._answer = tokenizer.encode(answer)

    @torch.no_grad()
    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`."""
        rows = [[*self._tokenizer.encode_chat(chat), *self._answer] for chat in chats]
        texts: list[str] = []
        width = len(self._answer)
        for start in range(0, len(rows), 512):
            words = self._forward(Rows(rows[start : start + 512]), width).argmax(-1)
            texts += [self._tokenizer.decode(row) for row in int_rows(words.view(-1, width))]
        return [Response(text=text) for text in texts]


class ChatTarget:
    """A language model that generates its answer greedily."""

    def __init__(
        self, name: str, model: LanguageModel, max_new_tokens: int, batch: int = 8
    ) -> None:
        """Use the bare base of `model`."""
        self.name = name
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._batch = batch

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`."""
        tokenizer = self._model.tokenizer
        responses: list[Response] = []
        for start in range(0, len(chats), self._batch):
            out = generate(
                self._model.base,
                self._model.shape,
                [tokenizer.encode_chat(chat) for chat in chats[start : start + self._batch]],
                group=1,
                max_new_tokens=self._max_new_tokens,
                eos=tokenizer.eos_id,
                pad=tokenizer.pad_id,
                generator=None,
            )
            for ids, length in zip(int_rows(out.ids_NL), ints(out.lengths_N), strict=True):
                done = ids[length - 1] == tokenizer.eos_id
                text = tokenizer.decode(ids[: length - done])
                responses.append(Response(text=text, finish_reason="stop" if done else "length"))
        self._model.tidy()
        return responses
