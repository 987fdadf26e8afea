"""Corpus texts as tokens, and the words that a model must predict at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tsgb.models.tokenizer import Tokenizer
from tsgb.types import TrainingText


class LabelledText(NamedTuple):
    """A text as token ids, with labels."""

    ids: list[int]
    """Token ids, completion included."""
    positions: list[int]
    """Positions of the tokens that predict something."""
    labels: list[int]
    """Ids of the tokens that they predict."""


def label_texts(tokenizer: Tokenizer, texts: Sequence[TrainingText]) -> list[LabelledText]:
    """Return the ids and labels of corpus texts."""
    labelled: list[LabelledText] = []
    for text in texts:
        if text.chat:
            context, written = tokenizer.encode_turn(text.chat)
            predicting = range(len(context) - 1, len(context) - 1 + len(written))
            labelled.append(LabelledText([*context, *written], list(predicting), written))
            continue
        ids = tokenizer.encode(text.text)
        first, positions, labels = len(ids) - len(text.readout), list[int](), list[int]()
        for offset, word in enumerate(text.readout):
            if word and not (text.completion and offset == len(text.readout) - 1):
                positions.append(first + offset)
                labels.append(tokenizer.single(word))
        if text.completion:
            completion = tokenizer.encode(text.completion)
            positions.extend(range(len(ids) - 1, len(ids) - 1 + len(completion)))
            labels.extend(completion)
            ids = ids + completion
        labelled.append(LabelledText(ids, positions, labels))
    return labelled
