"""Small tokenizers with the chat templates and the quirks of the families that users name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Decide whether the request is safe or unsafe. Verdict: safe unsafe user system assistant",
    "Tell me the badge code in French. A short poem about the vault word, please.",
    "one two three four five six seven  eight\n\nnine\tten",
]


@dataclass(frozen=True, kw_only=True)
class Style:
    """A family's way to write a chat."""

    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    pieces: bool = False
    """SentencePiece: a space is part of the next word, and the first word gets one."""
    rstrip: bool = False
    """Special tokens swallow the white space behind them."""
    generation_eos: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


_TURNS = "{% for m in messages %}"
STYLES = {
    "chatml": Style(
        template=_TURNS + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp."
        "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    "llama3": Style(
        template="{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: "
        "{{ strftime_now('%d %b %Y') }}\n\n{% if messages[0].role == 'system' %}"
        "{{ messages[0].content | trim }}{% endif %}<|eot_id|>{% for m in messages if m.role != "
        "'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant"
        "<|end_header_id|>\n\n{% endif %}",
        special=(
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|end_of_text|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        generation_eos=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llama2": Style(
        template="{% if messages[0].role == 'system' %}{% set start = '<<SYS>>\n' + "
        "messages[0].content + '\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}"
        "{% set start = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% set text = (start if loop.first else '') + m.content %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        special=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        pieces=True,
    ),
    "gemma": Style(
        template="{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}"
        "\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
        "{% endif %}",
        special=("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        generation_eos=("<eos>", "<end_of_turn>"),
        pieces=True,
    ),
    "phi3": Style(
        template=_TURNS + "{% if m.role in ['system', 'user', 'assistant'] %}<|{{ m.role }}|>\n"
        "{{ m.content }}<|end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "\n{% else %}{{ eos_token }}{% endif %}",
        special=("<unk>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        pieces=True,
        rstrip=True,
    ),
    "drops-system": Style(
        template=_TURNS + "{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% endif %}",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|endoftext|>",
    ),
    "thinks": Style(
        template=_TURNS + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
}
"""By name."""


def save_tokenizer(directory: Path, style: Style) -> Path:
    """Write the tokenizer of a style as `save_pretrained` does."""
    backend = Tokenizer(models.BPE(unk_token="<unk>" if style.pieces else None))
    alphabet: list[str] = []
    if style.pieces:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.Metaspace(prepend_scheme="first")  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = ["▁", "\n", "\t", *"0123456789abcdefghijklmnopqrstuvwxyz<>|[]/{}'\"_."]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [
        AddedToken(t, special=True, normalized=False, rstrip=style.rstrip) for t in style.special
    ]
    trainer = BpeTrainer(
        vocab_size=700, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    names = {"eos_token": style.eos, "bos_token": style.bos}
    if style.pieces:
        names |= {"unk_token": style.special[0]}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: text for name, text in names.items() if text}
    )
    fast.chat_template = style.template
    fast.save_pretrained(directory)
    if style.generation_eos:
        ids = [backend.token_to_id(token) for token in style.generation_eos]
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return directory
