"""Time and money in a summary: what answers took, and how long guards take.

These records stand in `summary.json`; `records.py` puts them there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt


class UsageFigures(BaseModel):
    """Base of these records: frozen, strict about unknown fields, and finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Milliseconds(UsageFigures):
    """A sample of durations.

    Example: `Milliseconds(n=402, median=210.5, p95=480.0)`
    """

    n: NonNegativeInt
    """Size of the sample."""
    median: NonNegativeFloat
    """Half of the sample takes no longer, in milliseconds."""
    p95: NonNegativeFloat
    """95 % of the sample take no longer, in milliseconds."""


class GuardTime(UsageFigures):
    """The time that a guard takes, on the machine that evaluated it."""

    guard: str = Field(max_length=128)
    """Name in tables."""
    prompt: Milliseconds
    """Time for one prompt alone."""


class UsageRecord(UsageFigures):
    """Time and money of the answers of one target, or of an endpoint that judges.

    An answer that an earlier evaluation asked for counts with what it took then.
    """

    name: str = Field(max_length=300)
    """Name in tables, or that of the judge."""
    role: Literal["target", "judge"] = "target"
    """Whether it was attacked, or judged."""
    answers: NonNegativeInt
    """Questions that it answered or refused."""
    errors: NonNegativeInt
    """Questions without an answer."""
    calls: NonNegativeInt
    """Calls that were made, repeated ones included."""
    untold: NonNegativeInt
    """Answers whose number of tokens the target does not tell."""
    tokens_in: NonNegativeInt
    """Tokens of the prompts of the others."""
    tokens_out: NonNegativeInt
    """Tokens of the other answers."""
    billed_unknown: NonNegativeInt
    """Calls that may have been billed although no answer came; they are not in `dollars`."""
    latency: Milliseconds | None
    """Time from the last call to its answer; None where nobody measured it."""
    dollars: NonNegativeFloat | None
    """Price of the answers; None where prices or tokens are not known."""
