"""The probe of a rented machine's card: what it found, and whether that is the card promised.

The machine probes its card before any training (`tsgb/worker/card_probe.py`) and tells the result
in its heartbeats. A host may write anything there, so every value is bounded when it is read, and a
probe that is missing or says something absurd counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tsgb.checkpoint.documents import printable

MEMORY_SHARE = 0.95
"""Share of the promised memory that a card must have: services round, and count in other units."""
FREE_SHARE = 0.85
"""Share of the promised memory that must be free: CUDA's own context takes up to 0.8 GB of 8."""
_MAX_TEXT = 80
_MAX_GB = 10_000.0
_MODEL = re.compile(r"[A-Za-z]*\d+")


def _shown(value: object) -> object:
    return printable(" ".join(value.split()))[:_MAX_TEXT] if isinstance(value, str) else value


_Text = Annotated[str, BeforeValidator(_shown)]
_Number = Annotated[float, Field(ge=0, le=_MAX_GB, allow_inf_nan=False, strict=True)]


class CardProbe(BaseModel):
    """What a machine found when it used its card for some seconds.

    Example: `CardProbe(gpu_name="NVIDIA GeForce RTX 4090", cuda="13.0", torch_cuda="13.0", ...)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    gpu_name: Annotated[_Text, Field(min_length=1)]
    """Name of the card by its driver."""
    driver: _Text = ""
    """Version of the driver, such as `580.65.06`; empty if it does not tell."""
    cuda: _Text
    """Highest CUDA version that the driver carries."""
    torch_cuda: _Text
    """CUDA version that torch was built for."""
    memory_gb: _Number
    """Memory of the card, GB of 10^9 bytes."""
    free_gb: _Number
    """Memory that was free before the product."""
    seconds: _Number
    """Seconds that the products took."""
    tflops: _Number
    """Speed of the products, 10^12 operations a second, in the type that training uses."""

    @classmethod
    def read(cls, heartbeat: Mapping[str, Any]) -> CardProbe | None:
        """Return the probe in a heartbeat or an attempt's document; None if it says nothing."""
        try:
            return cls.model_validate(heartbeat.get("probe"))
        except ValidationError:
            return None

    def lacking(self, card_gb: float) -> str:
        """Return what the card lacks, in one line; empty if it will do.

        Args:
            card_gb: Memory that was promised, GB.
        """
        if self.memory_gb < MEMORY_SHARE * card_gb:
            return f"{self.gpu_name} has {self.memory_gb:.1f} GB, and {card_gb:g} GB were promised"
        if self.free_gb < FREE_SHARE * card_gb:
            return (
                f"{self.gpu_name} has {self.free_gb:.1f} GB free of {self.memory_gb:.1f} GB, and "
                f"{card_gb:g} GB were promised: something else uses it"
            )
        return "" if self.tflops > 0 else f"{self.gpu_name} computes nothing"


def objection(probe: CardProbe | None, *, gpu_name: str, card_gb: float) -> str:
    """Return why a machine that should have a card is not accepted; empty if it is.

    Args:
        probe: What its heartbeat says; None if that is nothing.
        gpu_name: Name of the card in the offer, as the service writes it.
        card_gb: Memory that the card must have, GB; 0 if the work needs no card.
    """
    if not card_gb:
        return ""
    if probe is None:
        return "its heartbeat has no probe of the card"
    if not _same_model(gpu_name, probe.gpu_name):
        return f"its card is {probe.gpu_name!r}, and {gpu_name!r} was offered"
    return probe.lacking(card_gb)


def _same_model(offered: str, found: str) -> bool:
    """Return whether two names may be of the same card.

    Services and drivers write the same card in different words, but both with its number: `H100
    SXM` is `NVIDIA H100 80GB HBM3`, `Q RTX 8000` is `Quadro RTX 8000`. A name without a number says
    nothing.
    """
    model = _MODEL.search(offered)
    return model is None or model[0].upper() in {one.upper() for one in _MODEL.findall(found)}
