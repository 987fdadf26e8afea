"""Post-training of an adapter on a pretrained model: a target that is made, not found.

It knows texts, an engine and a recipe. What the texts teach is the world's business.
Training may be interrupted at any update, and goes on from the last one that was saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from tsgb.checkpoint.codec import (
    decode_tensors,
    encode_tensors,
    optimizer_content,
    restore_optimizer,
)
from tsgb.errors import ConfigError
from tsgb.models.cache import Unfinished, cache_key, cached_file
from tsgb.models.engine import Engine, Role
from tsgb.models.optimizer import AdamW, clip_norm, one_cycle
from tsgb.models.torch_typing import backward, flags
from tsgb.models.weights import load_parameters, snapshot
from tsgb.types import Message, Messages, ModelRecipe, TrainingText

Report = Callable[[int], None]
"""Called with the updates that are done; may raise to stop."""
ANSWER_TOKENS = 32
"""Most tokens of an answer that the bare model gives."""
ASKED_AT_ONCE = 16
"""Chats that the bare model is asked before its answers are saved."""
SAVED_EVERY = 5
"""Updates after which the state is saved."""
_ADAPTER, _OPTIMIZER, _DONE = "adapter/", "optimizer/", "done"
"""Names in a saved state: of parameters, of the optimizer's tensors, and of its metadata."""
_SENTENCE = re.compile(r".*?\w\w[\"')\]]?[.!?](?=\s|$)", re.DOTALL)
_EXCUSE = re.compile(r"\bsorry\b|\bapologi[sz]e\b", re.IGNORECASE)
"""An answer with an excuse would teach a target to refuse where it should answer."""
_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")


def digest(texts: Sequence[TrainingText]) -> str:
    """Return a hash of a corpus: two worlds with equal texts teach the same."""
    return cache_key({"texts": [[text.chat, text.answered] for text in texts]})


def answer_questions(
    engine: Engine, texts: Sequence[TrainingText], cache: Path, *, first: int, report: Report
) -> list[TrainingText | None]:
    """Let the bare model answer, greedily, the texts that lack an answer.

    Its first sentence is the answer. Answers are cached, so that targets on one model share them,
    and in small groups, so that processes which begin with different groups share the work.

    Args:
        engine: the model.
        texts: a corpus.
        cache: directory of the cache.
        first: number that decides which group is asked first.
        report: told after each group; may raise to stop.

    Returns:
        All texts in order; None where the model gave no answer, or excused itself.
    """
    chats = {_name(text.answered): text.answered for text in texts if text.answered}
    asked = list(chats.values())
    groups = [asked[i : i + ASKED_AT_ONCE] for i in range(0, len(asked), ASKED_AT_ONCE)]
    answers: dict[str, str] = {}
    for turn in range(len(groups)):
        answers |= _answers(engine, groups[(first + turn) % len(groups)], cache)
        report(0)
    return [
        _with_answer(text, answers[_name(text.answered)]) if text.answered else text
        for text in texts
    ]


def _name(chat: Messages) -> str:
    return json.dumps(chat)


def _with_answer(text: TrainingText, answer: str) -> TrainingText | None:
    if not answer or _EXCUSE.search(answer):
        return None
    said: Message = {"role": "assistant", "content": answer}
    return TrainingText(chat=(*text.chat, said))


def _answers(engine: Engine, chats: Sequence[Messages], cache: Path) -> dict[str, str]:
    key = cache_key({"asked": engine.sha256, "chats": chats, "tokens": ANSWER_TOKENS})

    def build() -> bytes:
        writing = engine.write(
            engine.base, chats, group=1, max_new_tokens=ANSWER_TOKENS, generator=None
        )
        finished = flags(writing.finished_N)
        answers = map(_first_sentence, writing.texts, finished)
        return json.dumps(list(answers)).encode()

    data, _ = cached_file(cache, key, "answers.json", build)
    return dict(zip(map(_name, chats), json.loads(data), strict=True))


def _first_sentence(text: str, finished: bool) -> str:
    """Return the first sentence; nothing if the limit came before its end."""
    found = _SENTENCE.match(text.strip())
    if found is not None:
        return found[0]
    return text.strip() if finished else ""


def post_train(
    engine: Engine,
    role: Role,
    texts: Sequence[TrainingText | None],
    recipe: ModelRecipe,
    *,
    unfinished: Unfinished,
    report: Report,
) -> dict[str, Tensor]:
    """Train an adapter on a corpus with AdamW and a one-cycle learning rate.

    Args:
        engine: the model.
        role: a fresh adapter on it, or one that has learned something already.
        texts: what it learns, in order; None where a text is missing.
        recipe: gives batch, learning rate, and the share of the layers that stay as they are.
        unfinished: where the state of an interrupted training is, and is kept.
        report: told after each update; may raise to stop.

    Returns:
        The adapter's parameters, by the names under which they are saved.

    Raises:
        ConfigError: The loss is no number.
    """
    parameters = engine.parameters(role)
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    optimizer = AdamW(list(trained.values()), lr=recipe.lr)
    done = _restore(trained, optimizer, unfinished.read())
    batches = [
        [text for text in texts[i : i + recipe.batch] if text is not None]
        for i in range(0, len(texts), recipe.batch)
    ]
    with _one_thread():
        for step in range(done, len(batches)):
            if batches[step]:
                lr = one_cycle(step, len(batches), recipe.lr)
                loss = _update(engine, role, optimizer, batches[step], lr)
                if not isfinite(loss):
                    raise ConfigError(
                        f"post-training of {recipe.corpus} gave a loss of {loss} at update "
                        f"{step + 1}: {engine.name} holds values that are no numbers, or the "
                        f"recipe's learning rate {recipe.lr:g} is too high for it"
                    )
            if (step + 1) % SAVED_EVERY == 0 and step + 1 < len(batches):
                unfinished.write(_state(trained, optimizer, step + 1))
            report(step + 1)
    return snapshot(parameters)


def _update(
    engine: Engine, role: Role, optimizer: AdamW, batch: Sequence[TrainingText], lr: float
) -> float:
    parameters = optimizer.param_groups[0]["params"]

    def passes() -> float:
        loss = engine.text_loss(role, batch)
        optimizer.zero_grad()
        backward(loss)
        return float(loss.detach())

    loss = engine.within_memory(passes)
    clip_norm(parameters, 1.0)
    optimizer.step(lr)
    engine.tidy()
    return loss


def freeze_lower_layers(parameters: Mapping[str, nn.Parameter], share: float) -> None:
    """Let the adapters of the lowest layers stay as they are: there is no backward pass there.

    Args:
        parameters: an adapter's, by the names under which they are saved.
        share: share of the layers, from the lowest one.
    """
    numbers = {name: int(found[1]) for name in parameters if (found := _LAYER.search(name))}
    first = share * (max(numbers.values(), default=-1) + 1)
    for name, number in numbers.items():
        parameters[name].requires_grad_(number >= first)


def _state(parameters: Mapping[str, nn.Parameter], optimizer: AdamW, done: int) -> bytes:
    moments, layout = optimizer_content(optimizer, parameters)
    tensors: dict[str, Tensor] = {f"{_ADAPTER}{name}": p for name, p in parameters.items()}
    tensors |= {f"{_OPTIMIZER}{name}": tensor for name, tensor in moments.items()}
    return encode_tensors(tensors, {**layout, _DONE: done})


def _restore(parameters: Mapping[str, nn.Parameter], optimizer: AdamW, data: bytes | None) -> int:
    """Put a saved state back, bit for bit, and return the number of updates that it holds."""
    if data is None:
        return 0
    tensors, about = decode_tensors(data)
    load_parameters(parameters, {name: tensors[f"{_ADAPTER}{name}"] for name in parameters})
    moments = {
        name.removeprefix(_OPTIMIZER): tensor
        for name, tensor in tensors.items()
        if name.startswith(_OPTIMIZER)
    }
    restore_optimizer(moments, about, optimizer, parameters)
    return int(about[_DONE])


@contextmanager
def _one_thread() -> Generator[None]:
    """Sums depend on the number of threads; equal recipes are to give equal weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
