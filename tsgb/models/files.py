"""Files of a model in a directory, as `save_pretrained` of transformers writes them.

It knows names, completeness and hashes of files. It imports no torch and computes nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import ConfigError

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
"""Name of the file with a model's weights, where it is one file."""
INDEX = "model.safetensors.index.json"
"""Name of the file that says which file has a tensor, where the weights are several files."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Names of the files that a tokenizer may consist of."""
DESCRIPTION = (CONFIG, GENERATION, INDEX, *TOKENIZER)
"""Names of all files but the weights; a few MB."""
NOT_COMPUTED = frozenset(
    {
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
"""Keys of config.json that no pass of any model depends on; others may enter the arithmetic."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Hashes by which a checkpoint names the base that it belongs to.

    Example: `identity(Path("models/tiny")).sha256`
    """

    sha256: str
    """Hex digest of the list of weight, tokenizer and configuration files, each with its own."""
    weights_sha256: str
    """Hex digest of `model.safetensors`; empty where the weights are several files."""
    earlier_sha256: str = ""
    """Hex digest of the list without configurations, which earlier versions used; or empty."""


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(directory: Path, hash_file: Callable[[Path], str] = sha256_of) -> ModelIdentity:
    """Hash all of a model that its outputs depend on; shards have one identity.

    These are the weights, the tokenizer with its chat template, the keys of `config.json` that may
    enter the arithmetic, and the tokens of `generation_config.json` that end a turn.

    Args:
        directory: Directory of the model.
        hash_file: Returns the hex digest of a file's content.

    Raises:
        ConfigError: A weight file or `config.json` is missing.
    """
    weights = weight_files(directory)
    names = [*weights, *(name for name in TOKENIZER if (directory / name).is_file())]
    digests = {name: hash_file(directory / name) for name in names}
    return ModelIdentity(
        _digest_of({**digests, **_configurations(directory)}),
        digests[WEIGHTS] if weights == [WEIGHTS] else "",
        _digest_of(digests),
    )


def _configurations(directory: Path) -> dict[str, str]:
    """Return the digests of what a model's configurations say of its outputs, by file name."""
    config = read_json(directory / CONFIG)
    facts: dict[str, dict[str, Any]] = {
        CONFIG: {k: config[k] for k in config.keys() - NOT_COMPUTED}
    }
    if (directory / GENERATION).is_file():
        ends = read_json(directory / GENERATION).get("eos_token_id")
        facts |= {} if ends is None else {GENERATION: {"eos_token_id": ends}}
    return {
        name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()
        for name, fact in facts.items()
    }


def _digest_of(digests: Mapping[str, str]) -> str:
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def weight_files(directory: Path, present: Collection[str] | None = None) -> list[str]:
    """Return the names of the files with the weights of a model.

    Args:
        directory: Directory with the index, if the weights are several files.
        present: Names of all files of the model; without it those in the directory.

    Raises:
        ConfigError: The weights are missing, or the index names a shard that is not there.
    """
    if present is None:
        present = {path.name for path in directory.iterdir()}
    if WEIGHTS in present:
        return [WEIGHTS]
    if INDEX not in present:
        raise ConfigError(
            f"there is neither {WEIGHTS} nor {INDEX}: weights must be in the safetensors format"
        )
    shards = _shards(directory)
    missing = [name for name in shards if name not in present]
    if missing:
        raise ConfigError(f"{INDEX} names {len(missing)} absent file(s), such as {missing[0]}")
    return shards


def _shards(directory: Path) -> list[str]:
    shards = read_json(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(f"{INDEX} has no weight_map")
    names = sorted({str(name) for name in shards.values()})  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if any(Path(name).name != name for name in names):
        raise ConfigError(f"{INDEX} names a file outside of its directory")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model.

    Raises:
        ConfigError: The file is missing, or holds something else.
    """
    try:
        return parse_json_object(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read ({error})") from None


def tensor_counts(path: Path) -> dict[str, int]:
    """Count the numbers in a safetensors file by their type, from its header alone.

    Returns:
        Number of weights by dtype, as in `{"BF16": 134515008}`.

    Raises:
        ConfigError: The file is damaged or cut short.
    """
    counts: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name[:1] != "_")
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + prod(tensor["shape"])
        size = path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(f"{path.name} is no safetensors file ({error})") from None
    if size != 8 + length + end:
        raise ConfigError(f"{path.name} has {size} bytes and should have {8 + length + end}")
    return counts
