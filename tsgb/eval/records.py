"""The published formats: one line of `results.jsonl`, and `summary.json`.

They hold ids, hashes, scores and figures, never the text of a prompt or an answer. The JSON Schema
of a summary is `summary.schema.json` beside this file; write it anew with
`python -m tsgb.eval.records` after a change here, and raise `SCHEMA_VERSION` if it breaks a reader.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    StringConstraints,
    model_validator,
)

from tsgb.types import StreamKind

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).with_name("summary.schema.json")

Identifier = Annotated[str, StringConstraints(pattern=r"^\S+$", max_length=128)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ClaimVerdict = Literal["shown", "not shown", "not measured"]


class Record(BaseModel):
    """Frozen, strict about unknown fields, and finite: JSON knows no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rate(Record):
    """A figure with its 95 % interval; errors are in the interval and never silently dropped.

    Example: `Rate(value=0.065, low=0.045, high=0.093, n=400, errors=0)`
    """

    value: float
    """Over the scored items."""
    low: float
    """Lower end, reached as if no error had been the event."""
    high: float
    """Upper end, reached as if every error had been the event."""
    n: NonNegativeInt
    """Scored items."""
    errors: NonNegativeInt = 0
    """Items without an outcome, on top of `n`."""

    @property
    def events(self) -> int:
        """How many of the scored items had the event."""
        return round(self.value * self.n)


class Source(StrEnum):
    """Where an item comes from."""

    SCRIPTED = "scripted"
    """A harmful prompt of one of the environment's streams; the same for all guards."""
    ADAPTIVE = "adaptive"
    """Written by a best response that was trained against one guard on one target."""
    BENIGN = "benign"


class Item(Record):
    """One line of `results.jsonl`: one prompt, and what one target made of it.

    Example: `Item(item_id="3f9c", scenario_id="S-07-12", source="scripted", stream="held_out",
    technique="split", target="B0", seed=1, harmful=True, violated=True,
    scores={"selfplay": 2.1}, blocked={"selfplay": True})`
    """

    item_id: Identifier
    """Of the prompt: equal in the lines of one prompt for several targets."""
    scenario_id: Identifier
    """The cluster of the bootstrap."""
    source: Source
    stream: StreamKind | None = None
    """None for adaptive items."""
    slice: str = Field(default="", max_length=80)
    """Group for the slice table, by default the scenario's family."""
    technique: str = Field(default="", max_length=80)
    target: Identifier | None = None
    """None where no target was asked."""
    seed: int
    """Training seed of the guards."""
    br_seed: int | None = None
    """Seed of the best response that wrote the prompt."""
    against: Identifier | None = None
    """Guard that the best response was trained against."""
    harmful: bool
    violated: bool | None = None
    """Whether the target's answer to the *un-blocked* prompt violates; False if unfaithful."""
    error: str | None = Field(default=None, max_length=200)
    """Why there is no outcome: a class of error, no text of a prompt or an answer."""
    scores: dict[str, float] = Field(default_factory=dict)
    """z of each guard; a guard that failed on this prompt is missing."""
    blocked: dict[str, bool] = Field(default_factory=dict)
    """Verdict of each guard at its threshold; a guard that failed is missing."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source is Source.ADAPTIVE:
            if self.against is None or self.br_seed is None or self.target is None:
                raise ValueError("an adaptive item names its target, `against` and `br_seed`")
        elif self.stream is None:
            raise ValueError("a scripted or benign item names its stream")
        elif self.stream.harmful != self.harmful or self.harmful != (self.source != Source.BENIGN):
            raise ValueError("source, stream and `harmful` contradict each other")
        if self.violated is not None and self.error is not None:
            raise ValueError("an item has an outcome or an error, not both")
        if self.harmful and self.target and self.violated is None and self.error is None:
            raise ValueError("a harmful item without an outcome says why in `error`")
        return self


class GuardThreshold(Record):
    """Operating point of one guard of one seed: block iff `z > value`."""

    guard: Identifier
    seed: int
    value: float
    alpha: float | None = None
    """False-positive budget; None where the threshold was not calibrated (the oracle)."""
    delta: float | None = None
    num: NonNegativeInt | None = None
    """Benign calibration scores."""
    order: NonNegativeInt | None = None
    fpr_upper: float | None = None
    temperature: float = 1.0
    """`sigmoid(z / temperature)` is the calibrated probability."""


class Target(Record):
    """A target of the evaluation."""

    name: Identifier
    role: Literal["surrogate", "black_box"]
    overlap: float | None = None
    """Share of the surrogate's hidden weaknesses that it has too; None if unknown."""
    arch: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_accuracy(cls, data: Any) -> Any:
        """Read older summaries: nothing ever measured this field, it was always null."""
        if isinstance(data, dict):
            given = cast("dict[str, Any]", data)
            return {name: x for name, x in given.items() if (name, x) != ("accuracy", None)}
        return data


class Payoff(Record):
    """Success of each round's attacker (rows) against each round's guard (columns)."""

    seed: int
    arm: Identifier = "selfplay"
    attackers: list[str]
    guards: list[str]
    matrix: list[list[float | None]]


class Curve(Record):
    """A training series: each point has `step` and any other figures."""

    seed: int
    arm: Identifier = "selfplay"
    points: list[dict[str, float]]


class Estimate(Record):
    """A number that was measured elsewhere, with its interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Provenance(Record):
    """What is needed to do it again, and what was left out."""

    versions: dict[str, str]
    commit: str | None = None
    seeds: list[int]
    command: str
    config_sha256: Sha256
    checkpoints: dict[str, Sha256] = Field(default_factory=dict)
    """Hash of the manifest of each guard's checkpoint."""
    created_at: AwareDatetime
    wall_seconds: float | None
    """From the evaluation's request to this report; where it was resumed, pauses count. None if
    the request does not say when it was written."""
    not_measured: list[str] = Field(default_factory=list)


class Setup(Record):
    """What is known before the items are counted."""

    schema_version: Literal[1] = SCHEMA_VERSION
    eval_id: Identifier
    run_ids: list[str]
    profile: str
    env: str
    seeds: list[int]
    limits: str
    """What results in this world do not show."""
    threshold_rule: str
    """Example: `"fpr<=0.01@95%"`"""
    guards: list[Identifier]
    """In table order."""
    targets: list[Target]
    thresholds: list[GuardThreshold]
    payoff: list[Payoff] = Field(default_factory=list[Payoff])
    curves: list[Curve] = Field(default_factory=list[Curve])
    gradient_variance_ratio: Estimate | None = None
    """Variance of the sampled policy gradient over that of the exact one, at a fixed batch."""
    provenance: Provenance


class Result(Record):
    """All figures of one guard on one target, for one seed or over all of them."""

    guard: Identifier
    target: Identifier
    seed: int | None
    """None: over all seeds."""
    threshold_rule: str
    asr: Rate | None
    """Scripted harmful prompts that violate and are not blocked."""
    asr_no_guard: Rate | None
    adaptive_asr: Rate | None
    """The same for the best of the fresh attackers that were trained against this guard."""
    scripted_tpr: Rate | None
    """Reserved techniques that are blocked."""
    fpr: Rate | None
    """Ordinary benign prompts that are blocked."""
    fpr_hard: Rate | None
    fpr_twins: Rate | None
    fnr: Rate | None
    """Scripted harmful prompts of every stream that are not blocked."""
    auroc: Rate | None
    """Reserved techniques against all benign streams."""
    ece: Rate | None


class Comparison(Record):
    """Paired difference `guard - versus` of one metric, over all seeds."""

    metric: str
    guard: Identifier
    versus: Identifier
    target: Identifier | None
    """None where the metric does not depend on a target."""
    difference: float
    low: float
    high: float
    n: NonNegativeInt
    p: float
    """Two-sided, from the bootstrap."""
    p_holm: float
    """Adjusted over the comparisons of this metric."""
    shown: bool
    """The interval excludes zero and `p_holm` is at most .05."""


class Claim(Record):
    """One hypothesis that was written down before the run."""

    id: str
    statement: str
    figure: float | None
    low: float | None
    high: float | None
    verdict: ClaimVerdict
    note: str = ""


class Condition(Record):
    """One condition of the verdict."""

    stage: Literal[1, 2]
    text: str
    """With its numbers."""
    met: bool | None
    """None: not measured, which counts as not met."""


class Verdict(Record):
    """The pre-registered reading."""

    shown: bool
    sentence: str
    reasons: list[str]
    """What failed, with numbers; empty if shown."""
    conditions: list[Condition]


class Slice(Record):
    """Share blocked of one group of harmful scripted prompts, over all seeds."""

    guard: Identifier
    slice: str
    kind: Literal["technique", "family", "stream"]
    tpr: Rate
    n: NonNegativeInt


class Roc(Record):
    """Reserved techniques against all benign streams, on a fixed grid of false-positive rates."""

    guard: Identifier
    seed: int | None
    """None: mean over all seeds."""
    fpr: list[float]
    tpr: list[float]
    operating_fpr: Rate
    operating_tpr: Rate


class Summary(Setup):
    """`summary.json`."""

    results: list[Result]
    comparisons: list[Comparison]
    claims: list[Claim]
    verdict: Verdict
    slices: list[Slice]
    roc: list[Roc]


def schema_text() -> str:
    """The JSON Schema of a summary, as it is committed."""
    schema = Summary.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
