"""Rotary positions: the angles by which queries and keys are turned (Su et al. 2021).

Plain frequencies, those that are all divided by one factor, and those of Llama 3.1, where only the
slow ones are. A configuration says which, in the form of transformers 5 (`rope_parameters`) or in
the earlier one (`rope_scaling` beside `rope_theta`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from sys import float_info
from typing import Any, cast

import torch
from torch import Tensor

_THETA = 10_000.0
"""Base of the frequencies where a configuration names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """The frequencies of a model.

    Example: `Rotary.read({"rope_theta": 1e6}).table(64, 128, torch.float32)`
    """

    theta: float
    """Base of the frequencies."""
    factor: float = 1.0
    """Number that frequencies are divided by."""
    low: float = math.inf
    """Turns in the context of pre-training below which a frequency is divided by the factor."""
    high: float = math.inf
    """Turns above which it stays as it is; in between it goes over from one to the other."""
    context: float = math.inf
    """Tokens of the context of pre-training."""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Rotary:
        """Read a configuration as transformers does.

        Args:
            settings: Keys and values of a `config.json`.

        Raises:
            ValueError: It names a kind of frequencies, or a number, that is not computed here.
        """
        given: Any = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
        fields: dict[str, Any] = {"rope_type": given}
        if isinstance(given, Mapping):
            fields = dict(cast("Mapping[str, Any]", given))
        kind = fields.pop("type", "default")
        kind = str(fields.pop("rope_type", kind))
        fields.setdefault("rope_theta", settings.get("rope_theta", _THETA))
        if kind == "llama3":
            longest = settings.get("max_position_embeddings")
            fields.setdefault("original_max_position_embeddings", longest)
        names = _FIELDS.get(kind)
        if (
            names is None
            or fields.keys() != names.keys()
            or not all(map(_is_number, fields.values()))
        ):
            raise ValueError(f"rope_parameters = {given!r} with theta {fields['rope_theta']!r}")
        found = cls(**{name: float(fields[key]) for key, name in names.items()})
        if kind == "llama3" and found.low >= found.high:
            raise ValueError(f"rope_parameters = {given!r}")
        return found

    def table(self, dim: int, longest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [L, dim] of all positions below `longest` (and some more)."""
        return _table(self, dim, 1 << max(longest - 1, 63).bit_length(), dtype)

    def frequencies(self, dim: int) -> Tensor:
        """Return the angles [dim / 2] between two positions."""
        plain = self.theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        if self.factor == 1:
            return plain
        slow = plain / self.factor
        if self.low == math.inf:
            return slow
        turns = self.context / (2 * math.pi) * plain
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return slow + share * (plain - slow)


_FIELDS: Mapping[str, Mapping[str, str]] = {
    "default": {"rope_theta": "theta"},
    "linear": {"rope_theta": "theta", "factor": "factor"},
    "llama3": {
        "rope_theta": "theta",
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "context",
    },
}
"""Keys of each kind of frequencies, all of which are needed, and the fields that they give."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= float_info.max


@lru_cache(maxsize=16)
def _table(rotary: Rotary, dim: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.arange(length, dtype=torch.float32)[:, None] * rotary.frequencies(dim)
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)
