"""The state of a trainer as the five files of a checkpoint, and back, bit for bit.

What never changes once it is there are parts of a file: weights to restart from, guards of past
rounds, attacks of earlier attackers. The part P of file F is named `F/P`; a store writes it once.
Checkpoints of the first version hold all of that in the five files themselves, and are still read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from random import Random
from typing import Any, cast

import torch
from torch import Tensor

from tsgb.checkpoint.codec import (
    FrozenTensors,
    TensorFile,
    decode_optimizer,
    decode_tensors,
    generator_state,
    optimizer_content,
    set_generator_state,
)
from tsgb.checkpoint.documents import canonical_json, parse_json_object
from tsgb.checkpoint.layout import STATE_FILE
from tsgb.config import ModelConfig
from tsgb.envs.pool import PoolAttack, PoolMember
from tsgb.errors import CheckpointError, TSGBError
from tsgb.logging import get_logger
from tsgb.models.engine import Engine
from tsgb.models.weights import load_parameters
from tsgb.trainer.players import Player
from tsgb.types import Buffer, StreamKind

STATE_VERSION = 2
"""Version of the content of `trainer_state.json`; 1 holds the members of the pool itself."""


@dataclass(slots=True)
class TrainerState:
    """All that the next update depends on, weights, optimizers and generators apart."""

    step: int = 0
    """Updates done."""
    episode: int = 0
    """Games played."""
    threshold: float = 0.0
    """tau: the guard's operating point, in units of the score."""
    prices: dict[str, float] = field(default_factory=dict[str, float])
    """Dual variables mu: extra price of a false positive, in units of the reward, by slice of the
    benign traffic."""
    successes: Counter[str] = field(default_factory=Counter)
    """Violations by attack signature, for the novelty bonus."""
    buffer: list[PoolAttack] = field(default_factory=list)
    """Attacks of this round, newest last."""
    pool: list[PoolMember] = field(default_factory=list)
    """Earlier attackers, oldest first: the rows of the payoff."""
    payoff: list[list[float]] = field(default_factory=list)
    """[attackers][guards] ASR at each guard's own threshold, in [0, 1]."""
    guards: list[str] = field(default_factory=list)
    """Names of the payoff's columns."""
    thresholds: list[float] = field(default_factory=list)
    """tau of each column, in units of the score."""
    best_guard: int = -1
    """Column with the lowest worst case; -1 before the first one."""


@dataclass(frozen=True, slots=True)
class SavedRole:
    """A role of a run, as two files of a checkpoint hold it."""

    name: str
    """`attacker` or `guard`: part of the names of the files."""
    player: Player
    """The role's current weights and its optimizer."""
    kept: dict[str, FrozenTensors]
    """Further weights of the role, by group: starts of the attacker, columns of the guard."""

    @property
    def weights_file(self) -> str:
        """Name of the file with the weights."""
        return f"{self.name}.safetensors"

    @property
    def optimizer_file(self) -> str:
        """Name of the file with the optimizer's moments."""
        return f"optim_{self.name}.safetensors"


class CheckpointBuffers:
    """Memory for the tensors of one checkpoint, reused by the next one."""

    def __init__(self) -> None:
        self._files: dict[str, TensorFile] = {}

    def fill(
        self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, object]
    ) -> memoryview:
        """Copy the tensors of one file in; the view is valid until the next `fill` of it."""
        return self._files.setdefault(name, TensorFile()).fill(tensors, about)


def checkpoint_files(
    engine: Engine,
    config: ModelConfig,
    state: TrainerState,
    roles: Sequence[SavedRole],
    *,
    rng: Random,
    generator: torch.Generator,
    now: datetime,
    buffers: CheckpointBuffers,
    target: Engine | None = None,
) -> dict[str, Buffer]:
    """Return the five files and their parts; equal states give equal bytes, the timestamp apart.

    Args:
        engine: names the base that the roles belong to.
        config: kind and rank of the adapters.
        state: all other state, between two updates.
        roles: attacker and guard.
        rng: generator of the game.
        generator: generator of the models.
        now: timestamp of `trainer_state.json`.
        buffers: holds the files until it is filled again.
        target: the model of the targets, if it is one of its own.
    """
    about = {
        "base": engine.name,
        "base_sha256": engine.sha256,
        "adapter": config.adapter,
        "rank": config.rank,
        "selected": state.guards[state.best_guard] if state.guards else "",
        **({"dtype": engine.dtype} if config.adapter == "lora" else {}),
        **({} if target is None else {"target": target.name, "target_sha256": target.sha256}),
    }
    files: dict[str, Buffer] = {}
    for role in roles:
        weights = role.player.parameters
        current = {f"current/{name}": parameter for name, parameter in weights.items()}
        files[role.weights_file] = buffers.fill(role.weights_file, current, about)
        files |= {f"{role.weights_file}/{name}": kept.data for name, kept in role.kept.items()}
        moments, layout = optimizer_content(role.player.optimizer, weights)
        files[role.optimizer_file] = buffers.fill(role.optimizer_file, moments, layout)
    members = [asdict(member) for member in state.pool]
    files |= {f"{STATE_FILE}/{member['name']}": canonical_json(member) for member in members}
    content = {
        "state_version": STATE_VERSION,
        "state": asdict(replace(state, pool=[]))
        | {
            "successes": dict(sorted(state.successes.items())),
            "pool": [member.name for member in state.pool],
        },
        "python_rng": generator_state(rng),
        "torch_rng": generator_state(generator),
        "timestamp": now.isoformat(),
    }
    files[STATE_FILE] = json.dumps(content, indent=1, sort_keys=True).encode()
    return files


def restore(
    files: Mapping[str, Buffer],
    engine: Engine,
    roles: Sequence[SavedRole],
    *,
    rng: Random,
    generator: torch.Generator,
    target: Engine | None = None,
    earlier_dtype: str = "float32",
) -> TrainerState:
    """Put what five files and their parts hold into fresh roles and generators.

    Args:
        files: the five files and their parts.
        engine: the base that they must belong to.
        roles: attacker and guard.
        rng: generator of the game.
        generator: generator of the models.
        target: the model of the targets, if it is one of its own.
        earlier_dtype: dtype of the base where adapters name none, as of earlier versions.

    Returns:
        The other state.

    Raises:
        CheckpointError: The files belong to another base model, another target or another version.
    """
    for role in roles:
        groups, about = read_weights(files, role.weights_file)
        check_base(about, engine, "the checkpoint")
        check_target(about, target, "the checkpoint")
        named = about.get("dtype")
        if about.get("adapter") == "lora" and (named or earlier_dtype) != engine.dtype:
            origin = named or f"{earlier_dtype} (by an earlier version, whose files name no dtype)"
            get_logger().warning(
                f"{role.weights_file} was trained on a base in {origin}, this machine has it in "
                f"{engine.dtype}, which moves its scores: the threshold is chosen anew when the "
                "next phase begins, and targets that are trained on the base are trained anew; to "
                "keep one dtype on all machines set model.dtype in new runs"
            )
        load_parameters(role.player.parameters, groups.pop("current"))
        role.kept.clear()
        role.kept.update({name: FrozenTensors(tensors) for name, tensors in groups.items()})
        role.player.restart_optimizer()
        decode_optimizer(files[role.optimizer_file], role.player.optimizer, role.player.parameters)
    return _decode_state(files, rng, generator)


def read_role(
    files: Mapping[str, Buffer], name: str, engine: Engine, config: ModelConfig, what: str
) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Read the weights in a role's file of a checkpoint.

    Args:
        files: the file and its parts.
        name: name of the file.
        engine: the base that the weights must belong to.
        config: kind and rank that the adapters must have.
        what: name of the file's owner, for messages.

    Returns:
        The tensors by group, `current` among them, and the name of the guard that was selected
        (`current` as long as there is none).

    Raises:
        CheckpointError: They belong to another base, or to adapters of another kind.
    """
    groups, about = read_weights(files, name)
    check_base(about, engine, what)
    kind = (about.get("adapter"), about.get("rank"))
    if kind != (config.adapter, config.rank):
        raise CheckpointError(
            f"{what} has adapters of kind {kind[0]!r} and rank {kind[1]!r}, its config.json says "
            f"{config.adapter!r} and {config.rank}: one of the two is of another run"
        )
    return groups, str(about.get("selected") or "current")


def check_base(about: Mapping[str, Any], engine: Engine, what: str) -> None:
    """Refuse adapters of another base model.

    Raises:
        CheckpointError: `about`, the metadata of `what`, names other base weights than `engine`'s.
    """
    earlier = {engine.weights_sha256, engine.earlier_sha256} - {""}
    if about.get("base_sha256") not in {engine.sha256, *earlier}:
        raise CheckpointError(
            f"{what} was trained on base {about.get('base')} "
            f"{str(about.get('base_sha256'))[:12]}, this machine has {engine.sha256[:12]}: "
            "use the same environment, profile, world seed and torch version"
        )


def check_target(about: Mapping[str, Any], target: Engine | None, what: str) -> None:
    """Refuse what was trained on a target with other files.

    Checkpoints of earlier versions do not name the target, and are accepted.

    Args:
        about: metadata of `what`.
        target: the model of the targets, if it is one of its own.
        what: name of the file's owner, for messages.

    Raises:
        CheckpointError: `about` names other files than those of `target`.
    """
    trained_on = about.get("target_sha256")
    if target is None or (target.earlier_sha256 and trained_on == target.earlier_sha256):
        return
    if trained_on not in {None, target.sha256}:
        raise CheckpointError(
            f"{what} was trained on target {about.get('target')} {str(trained_on)[:12]}, this "
            f"machine has {target.sha256[:12]}: put the files of that model back, or start another "
            "run"
        )


def read_weights(
    files: Mapping[str, Buffer], name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the weights in a role's file and its parts, by group, and the file's metadata.

    Raises:
        CheckpointError: One of them is not in the safetensors format.
    """
    tensors, about = decode_tensors(files[name])
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, parameter = key.partition("/")
        groups.setdefault(group, {})[parameter] = tensor
    for part in _parts_of(files, name):
        groups[part], _ = decode_tensors(files[f"{name}/{part}"])
    return groups, about


def stored_state(files: Mapping[str, Buffer]) -> dict[str, Any]:
    """Return the content of `trainer_state.json`, with the members of the pool from its parts.

    Raises:
        CheckpointError: It is not a JSON object, is nested too deep, or holds no `state`; or a part
            is missing or no JSON object.
    """
    content = _json_object(files, STATE_FILE)
    state: object = content.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{STATE_FILE} cannot be read: it holds no state")
    if content.get("state_version") == STATE_VERSION:
        pool = cast("dict[str, object]", state).get("pool")
        names = cast("list[object]", pool) if isinstance(pool, list) else []
        state["pool"] = [_json_object(files, f"{STATE_FILE}/{name}") for name in names]
    return content


def _json_object(files: Mapping[str, Buffer], name: str) -> dict[str, Any]:
    if name not in files:
        raise CheckpointError(f"{name} cannot be read: the checkpoint does not hold it")
    try:
        return parse_json_object(bytes(files[name]))
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error


def _parts_of(files: Mapping[str, Buffer], name: str) -> Sequence[str]:
    """Return the names of the parts of a file, in order."""
    return sorted(key.removeprefix(f"{name}/") for key in files if key.startswith(f"{name}/"))


def _decode_state(
    files: Mapping[str, Buffer], rng: Random, generator: torch.Generator
) -> TrainerState:
    """Read `trainer_state.json` and its parts, and set both generators."""
    content = stored_state(files)
    version = content.get("state_version")
    if version not in {1, STATE_VERSION}:
        raise CheckpointError(
            f"{STATE_FILE} has state_version {version!r}, this tsgb reads 1 and {STATE_VERSION}: "
            "resume the run with the version that wrote it"
        )
    raw: dict[str, Any] = content["state"]
    set_generator_state(rng, content["python_rng"])
    set_generator_state(generator, content["torch_rng"])
    pool = [
        PoolMember(name=m["name"], attacks=tuple(PoolAttack(**a) for a in m["attacks"]))
        for m in raw.pop("pool")
    ]
    successes: Counter[str] = Counter(raw.pop("successes"))
    buffer = [PoolAttack(**attack) for attack in raw.pop("buffer")]
    if "mu" in raw:  # earlier versions had one price for all slices
        raw["prices"] = {StreamKind.BENIGN.value: raw.pop("mu")}
    return TrainerState(**raw, successes=successes, buffer=buffer, pool=pool)


@contextmanager
def loading(url: str, way_out: str = "") -> Generator[None]:
    """Turn whatever keeps a checkpoint from being loaded into one line for people.

    Its bytes verify, and a stranger may have chosen them so that they are no checkpoint.

    Args:
        url: Address of the checkpoint.
        way_out: What to do about it.

    Raises:
        CheckpointError: What is done inside failed, and not for want of memory or an answer.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except CheckpointError as error:
        raise _not_loaded(url, str(error), way_out) from error
    except TSGBError:
        raise
    except Exception as error:
        raise _not_loaded(url, f"{type(error).__name__}: {error}", way_out) from error


def _not_loaded(url: str, why: str, way_out: str) -> CheckpointError:
    reason = " ".join(why.split())[:300]
    return CheckpointError(
        f"{url} cannot be loaded: {reason}" + (f"; {way_out}" if way_out else "")
    )
