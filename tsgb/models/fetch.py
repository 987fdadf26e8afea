"""Pretrained models with their weights: downloaded or converted when they are needed first."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from tsgb.models import conversion
from tsgb.models.files import WEIGHTS, ModelIdentity, identity, weight_files
from tsgb.models.hash_cache import HashCache
from tsgb.models.hub import ModelHub
from tsgb.models.pushed import pushed_models
from tsgb.models.source import ModelSource, SourceKind
from tsgb.setting_groups import HubSettings


class ModelFiles(NamedTuple):
    """A model whose files are all on this machine."""

    directory: Path
    """Directory with config.json, weights and tokenizer."""
    label: str
    """Short name for records and reports."""
    identity: ModelIdentity
    """Hashes of the files."""


def fetch(name: str, hub: HubSettings, cache_dir: Path) -> ModelFiles:
    """Return a model with its weights, downloaded or converted now if they are not here.

    Args:
        name: Name of the model, see `ModelSource`.
        hub: Settings of the hub.
        cache_dir: Directory of converted models.

    Raises:
        UsageError: There is no such model, or its weights cannot be had.
    """
    source = ModelSource.parse(name)
    match source.kind:
        case SourceKind.PACKAGE:
            directory = conversion.find_smollm2(cache_dir)
            digest = conversion.sums(directory)[WEIGHTS]
            return ModelFiles(directory, directory.name, ModelIdentity(digest, digest))
        case SourceKind.GGUF:
            directory, digest = conversion.find_converted(Path(source.location), cache_dir)
            # A conversion by another version may write other files; what they come from is equal.
            whole = hashlib.sha256(f"{digest}  gguf\n".encode()).hexdigest()
            return ModelFiles(directory, directory.name, ModelIdentity(whole, ""))
        case SourceKind.HUB:
            access = ModelHub(hub)
            found = access.describe(source.location, source.revision)
            weights = weight_files(found.directory, found.sizes)
            directory = access.download(source.location, found.commit, weights)
            source = ModelSource(source.kind, source.location, found.commit)
        case SourceKind.PUSHED:
            directory = pushed_models(hub, cache_dir).fetch(source.location, source.revision)
        case SourceKind.DIRECTORY:
            directory = Path(source.location)
    hashes = HashCache(cache_dir)
    return ModelFiles(directory, source.label, identity(directory, hashes.sha256_of))


def fetch_classifier(name: str, settings: HubSettings) -> Path:
    """Return the directory of a classifier with its weights, downloaded now if they are not here.

    Args:
        name: Repository of the hub, or directory.
        settings: Settings of the hub.

    Raises:
        UsageError: There is no such model, or its weights cannot be had.
    """
    source = ModelSource.parse(name)
    if source.kind is not SourceKind.HUB:
        return Path(source.location)
    hub = ModelHub(settings)
    found = hub.describe(source.location, source.revision)
    return hub.download(source.location, found.commit, weight_files(found.directory, found.sizes))
