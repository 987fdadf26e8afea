"""A trainer as the five files of a checkpoint, and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tsgb.checkpoint.codec import TensorFile, decode_optimizer, decode_tensors, optimizer_content
from tsgb.config import ModelConfig
from tsgb.errors import CheckpointError
from tsgb.models.fast.adapters import load_parameters
from tsgb.models.fast.engine import LanguageModel
from tsgb.trainer.state import decode_state, encode_state, join, split
from tsgb.types import Buffer

if TYPE_CHECKING:
    from tsgb.trainer.loop import Trainer


class Stage:
    """Memory for one checkpoint, kept between saves."""

    def __init__(self) -> None:
        self._files: dict[str, TensorFile] = {}

    def fill(
        self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, object]
    ) -> memoryview:
        """Copy the tensors of one file in."""
        return self._files.setdefault(name, TensorFile()).fill(tensors, about)


def checkpoint_files(trainer: Trainer, now: datetime, stage: Stage) -> dict[str, Buffer]:
    """The five files; equal states give equal bytes, the timestamp apart.

    Args:
        trainer: between two updates.
        now: goes into `trainer_state.json`.
        stage: holds the files, until it is filled again.
    """
    state = trainer.state
    about = {
        "base": trainer.model.name,
        "base_sha256": trainer.model.sha256,
        "adapter": trainer.config.model.adapter,
        "rank": trainer.config.model.rank,
        "selected": state.guards[state.best_guard] if state.guards else "",
    }
    content = encode_state(state, trainer.rng, trainer.generator)
    content["timestamp"] = now.isoformat()
    files: dict[str, Buffer] = {}
    for role, player, kept in (
        ("attacker", trainer.attacker, trainer.starts),
        ("guard", trainer.guard, trainer.columns),
    ):
        weights = player.adapter.parameters
        name = f"{role}.safetensors"
        files[name] = stage.fill(name, join({"current": weights, **kept}), about)
        name = f"optim_{role}.safetensors"
        files[name] = stage.fill(name, *optimizer_content(player.optimizer, weights))
    files["trainer_state.json"] = json.dumps(content, indent=1, sort_keys=True).encode()
    return files


def check_base(about: Mapping[str, Any], model: LanguageModel, what: str) -> None:
    """Refuse adapters of another base model.

    Raises:
        CheckpointError: `about`, the metadata of `what`, names other base weights than `model`'s.
    """
    if about.get("base_sha256") != model.sha256:
        raise CheckpointError(
            f"{what} was trained on base {about.get('base')} "
            f"{str(about.get('base_sha256'))[:12]}, this machine has {model.sha256[:12]}: "
            "use the same environment, profile, world seed and torch version"
        )


def read_role(
    data: Buffer, model: LanguageModel, config: ModelConfig, what: str
) -> tuple[dict[str, dict[str, Tensor]], str]:
    """The weights in a role's file of a checkpoint.

    Returns:
        The tensors by group, `current` among them, and the name of the guard that was selected
        (`current` as long as there is none).

    Raises:
        CheckpointError: they belong to another base, or to adapters of another kind.
    """
    tensors, about = decode_tensors(data)
    check_base(about, model, what)
    kind = (about.get("adapter"), about.get("rank"))
    if kind != (config.adapter, config.rank):
        raise CheckpointError(
            f"{what} has adapters of kind {kind[0]!r} and rank {kind[1]!r}, its config.json says "
            f"{config.adapter!r} and {config.rank}: one of the two is of another run"
        )
    return split(tensors), str(about.get("selected") or "current")


def restore(trainer: Trainer, files: Mapping[str, Buffer]) -> None:
    """Put the state of five files into a fresh trainer.

    Raises:
        CheckpointError: they belong to another base model or another version.
    """
    attacker, about = decode_tensors(files["attacker.safetensors"])
    guard, _ = decode_tensors(files["guard.safetensors"])
    check_base(about, trainer.model, "the checkpoint")
    starts, columns = split(attacker), split(guard)
    load_parameters(trainer.attacker.adapter, starts.pop("current"))
    load_parameters(trainer.guard.adapter, columns.pop("current"))
    trainer.starts, trainer.columns = starts, columns
    trainer.attacker.restart_optimizer()
    decode_optimizer(
        files["optim_attacker.safetensors"],
        trainer.attacker.optimizer,
        trainer.attacker.adapter.parameters,
    )
    decode_optimizer(
        files["optim_guard.safetensors"], trainer.guard.optimizer, trainer.guard.adapter.parameters
    )
    trainer.state = decode_state(files["trainer_state.json"], trainer.rng, trainer.generator)
