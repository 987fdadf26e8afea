"""What a trainer knows besides weights, and how it becomes bytes and back, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from tsgb.checkpoint.codec import generator_state, set_generator_state
from tsgb.checkpoint.documents import parse_json_object
from tsgb.envs.pool import PoolAttack, PoolMember
from tsgb.errors import CheckpointError
from tsgb.types import Buffer

STATE_VERSION = 1


@dataclass(slots=True)
class TrainerState:
    """Everything that the next update depends on, weights and optimizers apart."""

    step: int = 0
    """Updates done."""
    episode: int = 0
    """Games played."""
    threshold: float = 0.0
    """tau: the guard's operating point, in units of the score."""
    mu: float = 0.0
    """Dual variable: extra price of a false positive."""
    successes: Counter[str] = field(default_factory=Counter)
    """Violations by attack signature, for the novelty bonus."""
    buffer: list[PoolAttack] = field(default_factory=list)
    """Attacks of this round, newest last."""
    pool: list[PoolMember] = field(default_factory=list)
    payoff: list[list[float]] = field(default_factory=list)
    """[attackers][guards] ASR at each guard's own threshold."""
    guards: list[str] = field(default_factory=list)
    """Names of the payoff's columns."""
    thresholds: list[float] = field(default_factory=list)
    """tau of each column."""
    best_guard: int = -1
    """Column with the lowest worst case; -1 before the first one."""


def encode_state(state: TrainerState, rng: Random, generator: torch.Generator) -> dict[str, Any]:
    """JSON-ready content of `trainer_state.json`."""
    return {
        "state_version": STATE_VERSION,
        "state": asdict(state) | {"successes": dict(sorted(state.successes.items()))},
        "python_rng": generator_state(rng),
        "torch_rng": generator_state(generator),
    }


def decode_state(data: Buffer, rng: Random, generator: torch.Generator) -> TrainerState:
    """Read `trainer_state.json` and set both generators.

    Raises:
        CheckpointError: written by another version.
    """
    try:
        content = parse_json_object(bytes(data))
    except ValueError as error:
        raise CheckpointError(f"trainer_state.json cannot be read: {error}") from error
    version = content.get("state_version")
    if version != STATE_VERSION:
        raise CheckpointError(
            f"trainer_state.json has state_version {version!r}, this tsgb reads {STATE_VERSION}: "
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
    return TrainerState(**raw, successes=successes, buffer=buffer, pool=pool)


def join(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Flatten named groups of tensors to `group/name`."""
    return {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}


def split(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `join`."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups
