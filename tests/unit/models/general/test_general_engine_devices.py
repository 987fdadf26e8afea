"""Every forward path on tensors of a card that is not there: nothing is left on the CPU.

A tensor that is made without saying where would work on a CPU and fail on a card.
Fake tensors have shapes, types and devices but no content; an operation on two devices raises as
it does on a card. Backward passes do not run this way; the other tests run them on the CPU.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.fakes.families import FAMILIES, make_family
from tests.unit.models.general.conftest import LORA
from tsgb.models.general.cache_decoder import CacheDecoder
from tsgb.models.general.general_engine import GeneralEngine
from tsgb.models.tokenizer import WordTokenizer
from tsgb.targets.local import ChatTarget
from tsgb.types import GuardTemplate, Message, TokenizerSpec, TrainingText

WORDS = ("PAD", "BOS", "SEP", "EOS", *(f"w{i}" for i in range(93)))
TOKENIZER = WordTokenizer(
    TokenizerSpec(words=WORDS, chat_template="{{ 'BOS ' + messages[-1]['content'] + ' SEP' }}")
)
TEMPLATE = GuardTemplate(system="", answer="w0 w1", unsafe="w2", safe="w3")
PROMPTS = ["w5 w6 w7 w8 w9", "w5 w6 w7", " ".join(WORDS[4:40])]
TEXTS = [TrainingText(text="BOS w5 SEP", completion="w6 w7 EOS")]
WRITES = ("gemma3", "qwen2")
"""The families that write in the default run: with windows and with full attention."""
BFLOAT16 = [(family, torch.bfloat16) for family in FAMILIES]


def engine_of(family: str, dtype: torch.dtype) -> GeneralEngine:
    module = make_family(family, len(WORDS)).to(dtype)
    return GeneralEngine(module, TOKENIZER, name="tiny", sha256="0", directory=Path())


@contextmanager
def on_a_fake_card(module: nn.Module) -> Generator[None]:
    """Replace all tensors of a module by fake ones on CUDA, as `to("cuda")` would by real ones."""
    fakes: dict[Tensor, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in module.modules():
            for name, tensor in [*part.named_parameters(recurse=False)]:
                if tensor not in fakes:
                    fakes[tensor] = nn.Parameter(fake(tensor))
                setattr(part, name, fakes[tensor])
            for name, tensor in [*part.named_buffers(recurse=False)]:
                setattr(part, name, fake(tensor))
        yield


@pytest.mark.parametrize(("family", "dtype"), [*BFLOAT16, ("gemma3", torch.float32)], ids=str)
def test_every_forward_path(family: str, dtype: torch.dtype) -> None:
    engine = engine_of(family, dtype)
    role = engine.add_role(LORA, torch.Generator())
    chats: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    out = engine.write(role, chats, group=2, max_new_tokens=3, generator=None)
    with on_a_fake_card(engine.lm.module):
        scores = engine.scores(role, TEMPLATE, PROMPTS)
        statistics = engine.logps(role, out, 0.7)
        loss = engine.text_loss(role, TEXTS)
        calibration = [engine.score_all(who, TEMPLATE, PROMPTS) for who in (role, engine.base)]
        for found in (scores, *statistics, loss, *calibration):
            assert found.device.type == "cpu"
            assert found.dtype is torch.float32
        with torch.no_grad():
            decoder = CacheDecoder(engine.lm, role, out.prompts[::2], 2)
            decoder.feed(decoder.logits().argmax(-1))
            decoder.keep(torch.tensor([0, 3], device="cuda"))
            decoder.feed(torch.tensor([1, 2], device="cuda"))
            assert decoder.logits().shape == (2, len(WORDS))
            assert decoder.logits().device.type == "cuda"


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in WRITES else [pytest.mark.slow]) for f in FAMILIES],
)
def test_writing_and_answers_until_the_host_needs_a_value(family: str) -> None:
    """Whether all rows have ended is read after the first token; all before it is on the card."""
    engine = engine_of(family, torch.bfloat16)
    role = engine.add_role(LORA, torch.Generator())
    chats: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    openings = ["w5 w6", "", "", "", "w7", ""]
    with on_a_fake_card(engine.lm.module):
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
            engine.write(
                role,
                chats,
                group=2,
                max_new_tokens=3,
                generator=torch.Generator(),
                temperature=0.7,
                openings=openings,
            )
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
            ChatTarget("T_s", engine, engine.base, 3).answer(chats)


def test_a_tensor_on_the_cpu_would_be_found() -> None:
    engine = engine_of("qwen2", torch.float32)
    with on_a_fake_card(engine.lm.module):
        states = engine.lm.read(engine.base, [[1, 2]]).states_BE
        with pytest.raises(RuntimeError, match="same device"):
            states.index_select(0, torch.zeros(1, dtype=torch.long))
