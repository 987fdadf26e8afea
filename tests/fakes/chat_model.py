"""A random chat model on disk, as `save_pretrained` writes one: Llama with shared key heads.

It is small and says nothing sensible, but it is loaded, asked and trained as a real one is.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tsgb.envs.canary import CanaryEnvironment
from tsgb.types import Split, StreamKind

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}\n"
    "  {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, INNER, LAYERS, HEADS, KEY_HEADS, HEAD = 24, 40, 2, 3, 1, 8


def save_chat_model(
    directory: Path,
    *,
    words: int = 1200,
    window: int = 1024,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write config, weights and tokenizer; equal arguments give equal files."""
    directory.mkdir(parents=True)
    size = save_tokenizer(directory, words)
    _write(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": size,
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "head_dim": HEAD,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"},
            "max_position_embeddings": window,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
    )
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens": (size, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj": (HEADS * HEAD, WIDTH),
            f"{at}.self_attn.k_proj": (KEY_HEADS * HEAD, WIDTH),
            f"{at}.self_attn.v_proj": (KEY_HEADS * HEAD, WIDTH),
            f"{at}.self_attn.o_proj": (WIDTH, HEADS * HEAD),
            f"{at}.mlp.gate_proj": (INNER, WIDTH),
            f"{at}.mlp.up_proj": (INNER, WIDTH),
            f"{at}.mlp.down_proj": (WIDTH, INNER),
            f"{at}.input_layernorm": (WIDTH,),
            f"{at}.post_attention_layernorm": (WIDTH,),
        }
    tensors = {
        f"{name}.weight": (
            torch.ones(shape)
            if len(shape) == 1
            else torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        ).to(dtype)
        for name, shape in shapes.items()
    }
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    files = {
        n: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, n in enumerate(tensors)
    }
    for file in sorted(set(files.values())):
        part = {name: tensors[name] for name in tensors if files[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index: dict[str, object] = {"metadata": {"total_size": size}, "weight_map": files}
    _write(directory / "model.safetensors.index.json", index)
    return directory


def save_tokenizer(directory: Path, words: int) -> int:
    """Write a chat tokenizer and return the size of its vocabulary."""
    tokenizer = _tokenizer(words)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": {"content": "<|im_end|>", "special": True, "__type": "AddedToken"},
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "chat_template": TEMPLATE,
        },
    )
    return tokenizer.get_vocab_size()


def _tokenizer(words: int) -> Tokenizer:
    env, rng = CanaryEnvironment(world_seed=0), Random(0)
    kinds = (StreamKind.WIDE, StreamKind.BENIGN)
    texts = [p.text for kind in kinds for p in env.stream(kind, Split.TRAIN, rng, 300)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *["is unsafe safe"] * 200], trainer)
    return tokenizer


def enlarge(model: Path) -> Path:
    """Give a model 400 billion weights by its configuration; its file of 800 GB is a hole."""
    width, inner, layers, words = 16_384, 53_248, 126, 1200
    config = json.loads((model / "config.json").read_text())
    large = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": words,
    }
    _write(model / "config.json", config | large)
    shapes = [(words, width), (1, width)]
    for _ in range(layers):
        shapes += [(width, width)] * 2 + [(1024, width)] * 2 + [(inner, width)] * 3 + [(2, width)]
    header: dict[str, object] = {}
    end = 0
    for number, (rows, columns) in enumerate(shapes):
        start, end = end, end + 2 * rows * columns
        offsets = [start, end]
        header[f"{number}"] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": offsets}
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return model


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
