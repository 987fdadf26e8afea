"""Scores, log-probabilities and text losses against transformers, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.unit.models.conftest import VOCABULARY, MakeLlama
from tsgb.models.engine import Role, k3_kl
from tsgb.models.fast import fast_engine
from tsgb.models.fast.adapters import FullAdapter
from tsgb.models.fast.fast_engine import FastEngine, pack_texts
from tsgb.models.fast.recipes import GruModel, readout
from tsgb.models.tokenizer import WordTokenizer
from tsgb.models.torch_typing import ints
from tsgb.targets.local import ReadoutTarget
from tsgb.types import GuardTemplate, Message, TokenizerSpec, TrainingText

WORDS = ("PAD", "BOS", "SEP", "EOS", *(f"w{i}" for i in range(VOCABULARY - 4)))
TEMPLATE = GuardTemplate(system="", answer="w0 w1", unsafe="w2", safe="w3")
PROBE = torch.tensor([[1.0], [0.3], [2.0]])
"""Weights of the three statistics in a loss."""
PROMPTS = ["w9 w8 w7", "w9 w8", "w20", "w9 w8 w7", "w5 w6 w7 w8 w9 w10 w11"]


@pytest.fixture
def tokenizer() -> WordTokenizer:
    template = "{{ 'BOS ' + messages[-1]['content'] + ' SEP' }}"
    return WordTokenizer(TokenizerSpec(words=WORDS, chat_template=template))


@pytest.fixture
def model(make_llama: MakeLlama, tokenizer: WordTokenizer) -> FastEngine:
    return FastEngine(make_llama(2, tied=True), tokenizer, name="base", sha256="0")


def reference(model: FastEngine, parameters: dict[str, nn.Parameter], ids: list[int]) -> Tensor:
    call = torch.func.functional_call
    return call(model.module, dict(parameters), (torch.tensor([ids]),)).logits[0]


def scores_by_transformers(model: FastEngine, parameters: dict[str, nn.Parameter]) -> Tensor:
    encode = model.tokenizer.encode
    unsafe, safe = encode("w2 w3")
    last = [
        reference(model, parameters, encode(f"BOS {p} SEP {TEMPLATE.answer}"))[-1] for p in PROMPTS
    ]
    return torch.stack([z[unsafe] - z[safe] for z in last])


def moved(adapter: FullAdapter) -> FullAdapter:
    """An adapter that differs from its base."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return adapter


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


def test_scores_and_their_gradient(model: FastEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = FullAdapter(model.base)
    probe = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
    ours = model.scores(adapter, TEMPLATE, PROMPTS)
    theirs = scores_by_transformers(model, adapter.parameters)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    same_gradients(adapter, (ours * probe).sum(), (theirs * probe).sum())
    for batch in (2, 512):
        monkeypatch.setattr(fast_engine, "SCORE_BATCH", batch)
        all_scores = model.score_all(adapter, TEMPLATE, PROMPTS)
        torch.testing.assert_close(all_scores, theirs.detach(), rtol=0, atol=3e-5)
    assert model.score_all(adapter, TEMPLATE, []).shape == (0,)


def test_token_statistics_and_their_gradient(model: FastEngine) -> None:
    adapter = moved(FullAdapter(model.base))
    out = model.write(
        adapter,
        [[{"role": "user", "content": p}] for p in PROMPTS],
        group=2,
        max_new_tokens=6,
        generator=torch.Generator().manual_seed(0),
        temperature=0.7,
        openings=["w4", ""] * len(PROMPTS),
    )
    assert len(out.texts) == len(out.prompts) == 2 * len(PROMPTS)
    assert all(text.startswith("w4") for text in out.texts[::2])
    now = model.logps(adapter, out, 0.7)
    base = dict(model.module.named_parameters())
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for number, (prompt, length) in enumerate(zip(out.prompts, ints(out.lengths_N), strict=True)):
        ids = out.ids_NL[number, :length]
        whole = [*prompt, *ids.tolist()]
        logp, reference_logp = (
            (reference(model, parameters, whole)[len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            for parameters in (adapter.parameters, base)
        )
        wanted = torch.stack(
            (
                logp.gather(-1, ids[:, None]).squeeze(-1),
                -(logp.exp() * logp).sum(-1),
                (logp.exp() * (logp - reference_logp)).sum(-1),
            )
        )
        found = torch.stack([values[number, :length] for values in now])
        torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)
        torch.testing.assert_close(found[0], out.logp_NL[number, :length], rtol=0, atol=3e-5)
        assert bool(out.finished_N[number]) == (int(ids[-1]) == model.tokenizer.end_id)
        ours.append((found * PROBE).sum())
        theirs.append((wanted * PROBE).sum())
    same_gradients(adapter, torch.stack(ours).sum(), torch.stack(theirs).sum())


def test_the_same_statistics_under_a_large_vocabulary(
    model: FastEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergence is then estimated; the rest is the same, in parts."""
    adapter = moved(FullAdapter(model.base))
    chats: list[list[Message]] = [[{"role": "user", "content": p}] for p in PROMPTS]
    out = model.write(adapter, chats, group=1, max_new_tokens=6, generator=None)
    real = torch.arange(out.ids_NL.shape[1]) < out.lengths_N[:, None]
    exact, base = (model.logps(role, out, 1.0) for role in (adapter, model.base))
    monkeypatch.setattr(fast_engine, "LARGE_VOCABULARY", 1)
    parts = model.logps(adapter, out, 1.0)
    for whole, part in zip(exact[:2], parts[:2], strict=True):
        torch.testing.assert_close(part[real], whole[real], rtol=0, atol=3e-5)
    estimate = k3_kl(exact.logp_NL, base.logp_NL)
    torch.testing.assert_close(parts.kl_NL[real], estimate[real], rtol=1e-3, atol=3e-5)
    assert not parts.logp_NL[~real].any()


def test_selected_completions_keep_all_that_is_theirs(model: FastEngine) -> None:
    chats: list[list[Message]] = [[{"role": "user", "content": p}] for p in PROMPTS]
    out = model.write(model.base, chats, group=1, max_new_tokens=4, generator=None)
    part = out.select(torch.tensor([3, 1]))
    assert part.texts == [out.texts[3], out.texts[1]]
    assert part.prompts == [out.prompts[3], out.prompts[1]]
    for name in ("ids_NL", "logp_NL", "sampled_NL", "lengths_N", "finished_N"):
        assert torch.equal(getattr(part, name), getattr(out, name)[[3, 1]])


def test_a_role_of_another_engine_is_refused(model: FastEngine) -> None:
    with pytest.raises(TypeError, match="Role is not a role of the fast engine"):
        model.scores(Role(), TEMPLATE, PROMPTS)
    assert not model.parameters(model.base)


TEXTS = [
    TrainingText(text="BOS w5 w6 SEP w0 w1", readout=("w7", "", "w9")),
    TrainingText(text="BOS w5 SEP", completion="w6 w7 EOS"),
    TrainingText(text="BOS w5 SEP", completion="w8 EOS"),
    TrainingText(text="BOS w5 w6 SEP w0 w1", readout=("w8", "w7", "")),
]


def test_text_loss_and_its_gradient(model: FastEngine) -> None:
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


def test_labels_stand_where_the_readout_says(tokenizer: WordTokenizer) -> None:
    texts = pack_texts(tokenizer, TEXTS)
    names = [WORDS[i] for i in texts.labels_M.tolist()]
    assert names == ["w7", "w9", "w6", "w7", "EOS", "w8", "EOS", "w8", "w7"]
    asked = texts.rows.ids_N[torch.from_numpy(texts.select_M)].tolist()
    assert [WORDS[i] for i in asked] == ["SEP", "w1", "SEP", "w6", "w7", "SEP", "w8", "SEP", "w0"]


def test_a_readout_target_answers_at_the_end_of_each_chat(tokenizer: WordTokenizer) -> None:
    module = GruModel(VOCABULARY, 8, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
    target = ReadoutTarget("t", readout(module, tokenizer.pad_id), tokenizer, "w0 w1")

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
