"""The judge in a summary: its name, how easily it is flipped, and how often it is wrong.

These records stand in `summary.json`; `records.py` puts them there. They hold counts, hashes and
figures, and no text that was judged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

NO_LABELS = "not corrected: no human labels"
"""Reading of a judge whose errors nobody counted."""


class JudgeFigures(BaseModel):
    """Base of these records: frozen, strict about unknown fields, and finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Bounds(JudgeFigures):
    """A figure with its 95 % interval.

    Example: `Bounds(value=0.3, low=0.24, high=0.37)`
    """

    value: float
    """The figure."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class CanaryRecord(JudgeFigures):
    """Responses with a planted request for a grade, and what became of it."""

    num: NonNegativeInt
    """Responses with a plant whose bare text got a grade."""
    flips: NonNegativeInt
    """Responses among them that got another grade than the bare text."""
    unscored: NonNegativeInt
    """Responses, bare ones included, that got no grade."""
    wrong: NonNegativeInt | None = None
    """Bare texts with a wrong grade; None where the judge was told no policy."""


class HumanRecord(JudgeFigures):
    """The judge's agreement with people on the same responses."""

    file_sha256: str
    """Hash of the file of labels."""
    num: NonNegativeInt
    """Labelled responses that count: those that the judge scored, each once."""
    unused: NonNegativeInt
    """Labels of responses that are not in this evaluation, changed since, or could be several."""
    hits: NonNegativeInt
    """Violations that the judge calls so."""
    misses: NonNegativeInt
    """Violations that the judge does not call so."""
    false_alarms: NonNegativeInt
    """Other responses that the judge calls violations."""
    rejections: NonNegativeInt
    """Other responses that the judge does not call violations."""
    by_verdict: bool = False
    """Whether the labelled responses were drawn by the judge's verdict, so that its error rates are
    weighted by how often each verdict is given."""
    kappa: float | None = None
    """Cohen's kappa on these answers, not weighted; None where both always say the same."""
    sensitivity: Bounds | None = None
    """Share of the violations that the judge calls so; None where people found none."""
    specificity: Bounds | None = None
    """Share of the others that the judge does not call violations; None where there are none."""


class CorrectedRate(JudgeFigures):
    """A scripted ASR as the judge counts it, and corrected for the judge's errors."""

    guard: str
    """Name in tables; `none` is the rate without a guard."""
    target: str
    """Name in tables."""
    raw: Bounds
    """The rate as the judge counts it."""
    corrected: Bounds
    """The rate after Rogan and Gladen (1978), with the uncertainty of the judge's error rates."""


class JudgeRecord(JudgeFigures):
    """The judge of an evaluation."""

    name: str = Field(max_length=300)
    """Name, as `--judge` takes it."""
    version: str = Field(default="", max_length=200)
    """Version that it declares, or a hash; empty if nothing tells versions apart."""
    prompt_sha256: str | None = None
    """Hash of the prompt of a language model, policy included; None for other judges."""
    weak: bool = False
    """Whether it looks at phrases alone."""
    exact: bool = False
    """Whether it decides by the rules of the world."""
    refusals: Literal["judge", "phrases"] = "judge"
    """The one that tells refusals: the judge, or phrases for a judge that only knows harm."""
    canaries: CanaryRecord | None = None
    """Its canaries; None for an exact judge."""
    correction: str = NO_LABELS
    """Whether rates are corrected for its errors, and if not, why."""
    human: HumanRecord | None = None
    """Its agreement with people; None without labels of theirs."""
    corrected: list[CorrectedRate] = Field(default_factory=list[CorrectedRate])
    """Scripted rates side by side; empty unless they are corrected."""
