"""Scores, log-probabilities and text losses against transformers, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.unit.models.conftest import VOCABULARY, MakeLlama
from tsgb.models.fast.adapters import FullAdapter
from tsgb.models.fast.engine import LanguageModel, label_texts
from tsgb.models.fast.packing import Rows
from tsgb.models.fast.recipes import GruModel
from tsgb.models.tokenizer import Tokenizer
from tsgb.targets.local import ReadoutTarget
from tsgb.types import GuardTemplate, TokenizerSpec, TrainingText

WORDS = ("PAD", "BOS", "SEP", "EOS", *(f"w{i}" for i in range(VOCABULARY - 4)))
TEMPLATE = GuardTemplate(system="", answer="w0 w1", unsafe="w2", safe="w3")
PROMPTS = ["w9 w8 w7", "w9 w8", "w20", "w9 w8 w7", "w5 w6 w7 w8 w9 w10 w11"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    template = "{{ 'BOS ' + messages[-1]['content'] + ' SEP' }}"
    return Tokenizer.from_words(TokenizerSpec(words=WORDS, chat_template=template))


@pytest.fixture
def model(make_llama: MakeLlama, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(make_llama(2, tied=True), tokenizer, name="base", sha256="0")


def reference(model: LanguageModel, parameters: dict[str, nn.Parameter], ids: list[int]) -> Tensor:
    call = torch.func.functional_call
    return call(model.module, dict(parameters), (torch.tensor([ids]),)).logits[0]


def scores_by_transformers(model: LanguageModel, parameters: dict[str, nn.Parameter]) -> Tensor:
    encode = model.tokenizer.encode
    unsafe, safe = encode("w2 w3")
    last = [
        reference(model, parameters, encode(f"BOS {p} SEP {TEMPLATE.answer}"))[-1] for p in PROMPTS
    ]
    return torch.stack([z[unsafe] - z[safe] for z in last])


def same_gradients(adapter: FullAdapter, ours: Tensor, theirs: Tensor) -> None:
    parameters = list(adapter.parameters.values())
    pairs = zip(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(theirs, parameters),
        adapter.parameters,
        strict=True,
    )
    for mine, other, name in pairs:
        assert float((mine - other).norm() / other.norm()) < 4e-5, name


def test_scores_and_their_gradient(model: LanguageModel) -> None:
    adapter = FullAdapter(model.base)
    probe = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
    ours = model.scores(adapter, TEMPLATE, PROMPTS)
    theirs = scores_by_transformers(model, adapter.parameters)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    same_gradients(adapter, (ours * probe).sum(), (theirs * probe).sum())
    for batch in (2, 512):
        all_scores = model.score_all(adapter, TEMPLATE, PROMPTS, batch)
        torch.testing.assert_close(all_scores, theirs.detach(), rtol=0, atol=3e-5)
    assert model.score_all(adapter, TEMPLATE, []).shape == (0,)


def test_completion_logits_and_their_gradient(model: LanguageModel) -> None:
    adapter = FullAdapter(model.base)
    prompts, out, texts = model.write(
        adapter,
        [[{"role": "user", "content": p}] for p in PROMPTS],
        group=2,
        max_new_tokens=6,
        generator=torch.Generator().manual_seed(0),
        openings=["w4", ""] * len(PROMPTS),
    )
    assert len(texts) == 2 * len(PROMPTS)
    assert all(text.startswith("w4") for text in texts[::2])
    rows = [prompt for prompt in prompts for _ in range(2)]
    out_logits = model.completion_logits(adapter, rows, out)
    assert out_logits.shape == (*out.ids_NL.shape, VOCABULARY)
    losses: list[Tensor] = []
    wanted: list[Tensor] = []
    for number, (prompt, length) in enumerate(zip(rows, out.lengths_N.tolist(), strict=True)):
        ids = out.ids_NL[number, :length]
        whole = reference(model, adapter.parameters, [*prompt, *ids.tolist()])
        theirs = whole[len(prompt) - 1 : -1].log_softmax(-1)
        ours = out_logits[number, :length].log_softmax(-1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
        recorded = out.logp_NL[number, :length]
        again = ours.gather(-1, ids[:, None]).squeeze(-1)
        torch.testing.assert_close(again, recorded, rtol=0, atol=3e-5)
        assert not out_logits[number, length:].any()
        losses.append(again.sum())
        wanted.append(theirs.gather(-1, ids[:, None]).sum())
    same_gradients(adapter, torch.stack(losses).sum(), torch.stack(wanted).sum())


TEXTS = [
    TrainingText(text="BOS w5 w6 SEP w0 w1", readout=("w7", "", "w9")),
    TrainingText(text="BOS w5 SEP", completion="w6 w7 EOS"),
    TrainingText(text="BOS w5 SEP", completion="w8 EOS"),
    TrainingText(text="BOS w5 w6 SEP w0 w1", readout=("w8", "w7", "")),
]


def test_text_loss_and_its_gradient(model: LanguageModel) -> None:
    adapter, encode = FullAdapter(model.base), model.tokenizer.encode
    parts: list[Tensor] = []
    for text in TEXTS:
        prompt, completion = encode(text.text), encode(text.completion)
        logp = reference(model, adapter.parameters, [*prompt, *completion]).log_softmax(-1)
        parts += [-logp[len(prompt) - 1 + i, word] for i, word in enumerate(completion)]
        first = len(prompt) - len(text.readout)
        parts += [
            -logp[first + i, model.tokenizer.single(word)]
            for i, word in enumerate(text.readout)
            if word
        ]
    ours, theirs = model.text_loss(adapter, TEXTS), torch.stack(parts).mean()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    same_gradients(adapter, ours, theirs)


def test_labels_stand_where_the_readout_says(tokenizer: Tokenizer) -> None:
    texts = label_texts(tokenizer, TEXTS)
    names = [WORDS[i] for i in texts.labels_M.tolist()]
    assert names == ["w7", "w9", "w6", "w7", "EOS", "w8", "EOS", "w8", "w7"]
    asked = texts.rows.ids_N[torch.from_numpy(texts.select_M)].tolist()
    assert [WORDS[i] for i in asked] == ["SEP", "w1", "SEP", "w6", "w7", "SEP", "w8", "SEP", "w0"]


def test_a_readout_target_answers_at_the_end_of_each_chat(tokenizer: Tokenizer) -> None:
    module = GruModel(VOCABULARY, 8, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)

    def forward(rows: Rows, width: int) -> Tensor:
        slots = torch.from_numpy(rows.grid.owned_N[rows.last(width)])
        return module(rows.padded(tokenizer.pad_id), slots)

    target = ReadoutTarget("t", forward, tokenizer, "w0 w1")

    def answer(prompts: list[str]) -> list[str]:
        responses = target.answer([[{"role": "user", "content": p}] for p in prompts])
        return [response.text for response in responses]

    together = answer(PROMPTS)
    assert together == [answer([prompt])[0] for prompt in PROMPTS]
    ids = tokenizer.encode(f"BOS {PROMPTS[0]} SEP w0 w1")
    with torch.no_grad():
        assert together[0] == tokenizer.decode(
            module(torch.tensor([ids]))[0, -2:].argmax(-1).tolist()
        )
