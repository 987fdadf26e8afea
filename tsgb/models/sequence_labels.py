"""Labels of a pretrained classifier, and which of them means harmful, by its configuration alone.

It imports neither torch nor transformers, so that a flow can refuse a model before anything starts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tsgb.errors import ConfigError, UsageError
from tsgb.models.files import CONFIG, read_json
from tsgb.models.hub import ModelHub
from tsgb.models.source import ModelSource, SourceKind
from tsgb.setting_groups import HubSettings

HARMFUL = ("unsafe", "harmful", "jailbreak", "injection", "malicious", "toxic", "label_1", "1")
"""Names of the label of harmful texts that are recognised, the first one that a model has."""


def labels_of(directory: Path) -> dict[str, int]:
    """Return the labels of a classifier's configuration, with the positions of their logits."""
    config = read_json(directory / CONFIG)
    named: Any = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return {str(name): int(index) for index, name in named.items()}


def check_labels(directory: Path, label: str = "") -> str:
    """Return the label of harmful texts; reads the configuration alone.

    Raises:
        ConfigError: It is no classifier, or which label is meant cannot be told.
    """
    config = read_json(directory / CONFIG)
    architectures: list[Any] = config.get("architectures") or []
    own = [str(name) for name in architectures]
    if not any(name.endswith("ForSequenceClassification") for name in own):
        found = own[0] if own else "no architecture"
        raise ConfigError(
            f"classifier {directory.name} is a {found}: name a model with a head for sequence "
            "classification"
        )
    if "auto_map" in config:
        raise ConfigError(
            f"classifier {directory.name} needs code from its repository (auto_map), which is "
            "never run: name one of a family that transformers has"
        )
    names = list(labels_of(directory))
    for wanted in (label,) if label else HARMFUL:
        for name in names:
            if name.lower() == wanted.lower():
                return name
    told = f"has no label {label!r}" if label else "does not say which label is harmful"
    raise ConfigError(
        f"classifier {directory.name} {told}: name one of {', '.join(names)} behind a #"
    )


def pinned_classifier(name: str, label: str, hub: HubSettings, asked: str) -> str:
    """Return a classifier's name in a form that stays the same: a commit, or a full path.

    Args:
        name: Repository of the hub, or directory.
        label: Label of harmful texts; empty for a usual one.
        hub: Settings of the hub.
        asked: The option as the user gave it, for messages.

    Raises:
        UsageError: There is no such model or label, or it is no classifier.
    """
    source = ModelSource.parse(name)
    if source.kind is SourceKind.HUB:
        found = ModelHub(hub).describe(source.location, source.revision)
        check_labels(found.directory, label)
        return replace(source, revision=found.commit).name
    if source.kind is not SourceKind.DIRECTORY:
        raise UsageError(f"{asked}: a classifier is a repository of the hub or a directory")
    check_labels(Path(source.location), label)
    return source.location
