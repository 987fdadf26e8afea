"""Black boxes that are pretrained chat models, asked as they are: no recipe trains them.

It knows their names in tables and the hashes of their files. It imports no torch, because reports
are made where no model is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tsgb.envs import Environment, customise
from tsgb.errors import ConfigError, UsageError
from tsgb.models.files import identity, sha256_of
from tsgb.types import TargetSpec

OPTION = "--black-box"
_GGUF = "gguf:"
_LONGEST_NAME = 100


def with_black_boxes(env: Environment, models: Sequence[str]) -> Environment:
    """Return the world with pretrained models among its targets.

    They get the world's usual system prompt, and answers as long as those of its surrogate.

    Args:
        env: The world.
        models: Names of the models, as a configuration stores them.

    Raises:
        ConfigError: The targets of the world are no chat models.
        UsageError: Two models are the same, or have one name in tables, or that of a target.
    """
    if not models:
        return env
    targets = env.targets()
    limit = next(spec.max_new_tokens for spec in targets.values() if spec.role == "surrogate")
    if not limit:
        raise ConfigError(
            f"{OPTION} {models[0]!r}: the world {env.name!r} trains its own models, so name none"
        )
    taken = dict.fromkeys(targets, f"a target of the world {env.name!r}")
    specs: dict[str, TargetSpec] = {}
    for model in models:
        name = table_name(model)
        if taken.get(name) == model:
            raise UsageError(f"{OPTION} {model!r} is given twice: name each model once")
        if name in taken:
            raise UsageError(
                f"{OPTION} {model!r} is called {name!r} in tables, as is {taken[name]}: name it by "
                "a directory with another name"
            )
        taken[name] = model
        specs[name] = TargetSpec(
            name=name,
            role="black_box",
            arch=f"{_label(model)} as it is, no holes planted",
            max_new_tokens=limit,
            pretrained=model,
        )
    return customise(env, specs, None)


def table_name(model: str) -> str:
    """Return the name in tables and of cells: the repository without its owner, or the file name.

    >>> table_name("HuggingFaceTB/SmolLM2-360M-Instruct@a10cc15")
    'SmolLM2-360M-Instruct'
    """
    label = _label(model)
    last = label if _is_path(model) else Path(label.partition("@")[0]).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last)[:_LONGEST_NAME]


def file_hashes(
    models: Sequence[str], hash_file: Callable[[Path], str] = sha256_of
) -> dict[str, str]:
    """Hash the files of models of this machine, whose names do not say what they hold.

    Args:
        models: Names of models; repositories with a commit and packaged models are left out.
        hash_file: Returns the hex digest of a file's content.

    Returns:
        Hex digests by name.

    Raises:
        ConfigError: A file is missing.
    """
    hashes: dict[str, str] = {}
    for model in models:
        path = Path(model.removeprefix(_GGUF))
        if not _is_path(model):
            continue
        try:
            is_gguf = path.is_file()
            hashes[model] = hash_file(path) if is_gguf else identity(path, hash_file).sha256
        except OSError as error:
            raise ConfigError(f"model {model} cannot be read ({error})") from None
    return hashes


def _is_path(model: str) -> bool:
    return Path(model.removeprefix(_GGUF)).is_absolute()


def _label(model: str) -> str:
    """Return a short name that holds no path of this machine."""
    if _is_path(model):
        return Path(model).name
    repository, at, revision = model.partition("@")
    return f"{repository}{at}{revision[:12]}"
