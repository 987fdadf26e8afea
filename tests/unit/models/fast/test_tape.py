"""An update with a tape is the update without it: the same numbers, and the same gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fakes.chat_model import save_chat_model
from tests.unit.models.fast.conftest import moved_adapter
from tsgb.models import sampling
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.engine import Writing
from tsgb.models.fast.adapters import LoraAdapter
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.pretrained import load_pretrained
from tsgb.models.fast.tape import Tape
from tsgb.models.torch_typing import flags
from tsgb.types import Message

CHATS: list[list[Message]] = [
    [{"role": "user", "content": text}]
    for text in ("What is the badge code?", "Say it.", "Please tell me the vault word, now.")
]
GROUP, LIMIT = 4, 9


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny")


def engine(saved: Path, memory: int | None = 10**10) -> FastEngine:
    torch.set_num_threads(1)
    tokenizer = ChatTokenizer(saved)
    tokenizer.stop_ids = tuple(range(0, tokenizer.size, 9))  # rows end early, at different times
    return FastEngine(load_pretrained(saved), tokenizer, name="t", sha256="0", memory=memory)


def write(model: FastEngine, adapter: LoraAdapter, *, learns: bool = True) -> Writing:
    return model.write(
        adapter,
        CHATS,
        group=GROUP,
        max_new_tokens=LIMIT,
        generator=torch.Generator().manual_seed(5),
        temperature=0.7,
        learns=learns,
    )


def real(writing: Writing) -> Tensor:
    return torch.arange(writing.ids_NL.shape[1]) < writing.lengths_N[:, None]


def learn(model: FastEngine, adapter: LoraAdapter, writing: Writing) -> tuple[Tensor, list[Tensor]]:
    """Statistics of real tokens, and the gradient of a loss that weighs all of them differently."""
    statistics = torch.stack(list(model.logps(adapter, writing, 0.7)))[:, real(writing)]
    probe = torch.randn(statistics.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(adapter.parameters.values())
    return statistics.detach(), list(torch.autograd.grad((statistics * probe).sum(), parameters))


@pytest.mark.parametrize("drop_below", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("kept", ["all", "some", "one group"])
def test_statistics_and_gradients_are_those_without_a_tape(
    saved: Path, monkeypatch: pytest.MonkeyPatch, drop_below: float, kept: str
) -> None:
    monkeypatch.setattr(sampling, "DROP_BELOW", drop_below)
    model = engine(saved)
    adapter = moved_adapter(model)
    writing = write(model, adapter)
    assert len(set(writing.lengths_N.tolist())) > 3
    if kept != "all":
        numbers = [11, 0, 5, 6, 9] if kept == "some" else [8, 9, 10, 11]
        writing = writing.select(torch.tensor(numbers))
    assert isinstance(writing.tape, Tape)
    assert writing.tape.is_of(adapter.merged())
    found, gradients = learn(model, adapter, writing)
    assert not writing.tape.is_of(adapter.merged())  # used up
    wanted, others = learn(model, adapter, writing)
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)
    for mine, other in zip(gradients, others, strict=True):
        assert float((mine - other).norm() / other.norm()) < 4e-5
    small = engine(saved, None)  # plain operations of torch, rows packed in another way
    plain, plain_gradients = learn(small, moved_adapter(small), replace(writing, tape=None))
    torch.testing.assert_close(found[:2], plain[:2], rtol=0, atol=3e-5)
    for mine, other in zip(gradients, plain_gradients, strict=True):
        assert float((mine - other).norm() / other.norm()) < 4e-5


def test_a_tape_is_not_used_for_another_policy(saved: Path) -> None:
    model = engine(saved)
    adapter = moved_adapter(model)
    writing = write(model, adapter)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.mul_(1.5)
    found = learn(model, adapter, writing)
    wanted = learn(model, adapter, replace(writing, tape=None))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert (found[0][0] - writing.logp_NL[real(writing)]).abs().max() > 1e-3


@pytest.mark.parametrize(("memory", "learns"), [(10**10, False), (1, True), (None, True)], ids=str)
def test_without_memory_or_an_update_there_is_no_tape(
    saved: Path, memory: int | None, learns: bool
) -> None:
    model = engine(saved, memory)
    writing = write(model, moved_adapter(model), learns=learns)
    assert writing.tape is None
    taped = engine(saved)
    same = write(taped, moved_adapter(taped))
    assert writing.texts == same.texts
    assert flags(writing.finished_N) == flags(same.finished_N)
    torch.testing.assert_close(writing.logp_NL, same.logp_NL, rtol=0, atol=3e-5)
