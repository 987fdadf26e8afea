"""GGUF files as directories that transformers would have written, converted once into a cache.

    <cache_dir>/<name>-<first 12 of the file's sha256>/
        config.json model.safetensors tokenizer.json ...
        SHA256SUMS          of every other file; checked at each read, see `hash_cache.py`

The directory is renamed into place when it is complete. Two processes may convert at once: both
do the work, one rename wins and both read the winner's files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgb.errors import UsageError
from tsgb.models import smollm2
from tsgb.models.files import WEIGHTS, sha256_of
from tsgb.models.gguf_file import open_gguf, transformers_name, value
from tsgb.models.hash_cache import HashCache

SUMS = "SHA256SUMS"


def find_smollm2(cache_dir: Path) -> Path:
    """Return the directory of SmolLM2 in float32; with a filled cache the extra is not needed.

    Args:
        cache_dir: where the converted files are kept (540 MB); made if it does not exist.

    Raises:
        UsageError: nothing cached and the extra is not installed, or its file is damaged.
    """
    return _converted(smollm2.directory(cache_dir), smollm2.find_gguf)


def find_converted(gguf: Path, cache_dir: Path) -> tuple[Path, str]:
    """Return the directory of the model in a GGUF file, in float32, and the file's sha256.

    Raises:
        UsageError: The file cannot be converted.
    """
    digest = HashCache(cache_dir).sha256_of(gguf)
    return _converted(cache_dir / f"{gguf.stem}-{digest[:12]}", lambda: gguf), digest


def _converted(cached: Path, find: Callable[[], Path]) -> Path:
    hash_file = HashCache(cached.parent).sha256_of
    if not verified(cached, hash_file):
        convert(find(), cached)
        if not verified(cached, hash_file):
            raise UsageError(f"{cached} does not match its {SUMS}: remove it and try again")
    return cached


def convert(gguf: Path, cached: Path) -> None:
    """Write `gguf` as safetensors and tokenizer files to `cached`, all or nothing."""
    import transformers  # only here: it takes seconds, and a filled cache does without it

    # transformers types its factories in part only
    configs: Any = transformers.AutoConfig
    tokenizers: Any = transformers.AutoTokenizer
    cached.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{cached.name}-", dir=cached.parent))
    try:
        write_safetensors(gguf, scratch / WEIGHTS)
        settings = configs.from_pretrained(gguf.parent, gguf_file=gguf.name).to_dict()
        settings |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
        config: Any = transformers.LlamaConfig(**settings)
        config.save_pretrained(scratch)
        tokenizers.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
        files = sorted(path for path in scratch.iterdir() if path.is_file())
        lines = [f"{sha256_of(path)}  {path.name}\n" for path in files]
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
        damaged = Path(tempfile.mkdtemp(prefix=f".damaged-{cached.name}-", dir=cached.parent))
        cached.rename(damaged / cached.name)
        shutil.rmtree(damaged, ignore_errors=True)
        scratch.rename(cached)


def verified(cached: Path, hash_file: Callable[[Path], str] = sha256_of) -> bool:
    """Whether every file listed in `SHA256SUMS` is there with that content, by `hash_file`."""
    try:
        entries = sums(cached)
        return bool(entries) and all(
            hash_file(cached / name) == digest for name, digest in entries.items()
        )
    except (OSError, ValueError):
        return False


def sums(cached: Path) -> dict[str, str]:
    """Read `SHA256SUMS`: file name to hex digest."""
    lines = (cached / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


Array = NDArray[np.float32]


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
        gguf: the file.
        target: a new file.

    Raises:
        ConfigError: a tensor of another architecture.
    """
    reader = open_gguf(gguf)
    library: Any = import_module("gguf")  # of the extra
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
        "attn_q": int(value(reader, "llama.attention.head_count", 0)),
        "attn_k": int(value(reader, "llama.attention.head_count_kv", 0)),
    }
    for tensor in reader.tensors:
        name, kind = transformers_name(tensor.name)
        # GGUF counts dimensions from the innermost one.
        shape = tuple(int(n) for n in reversed(tensor.shape))
        yield _Stored(name, shape, heads.get(kind, 0), tensor)


def _rotary_halves(weights: Array, heads: int) -> Array:
    """Reorder rotary pairs within each head to the two halves that transformers rotates."""
    if not heads:
        return weights
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weights.shape)
