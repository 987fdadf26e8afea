"""The published formats: one line of `results.jsonl`, and `summary.json`.

They hold ids, hashes, scores and figures, never the text of a prompt or an answer. The JSON Schema
of a summary is `summary.schema.json` beside this file; write it anew with
`python -m tsgb.eval.records` after a change here, and raise `SCHEMA_VERSION` if it breaks a reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sized
from enum import StrEnum
from operator import not_
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

from tsgb.config import TrainingDataConfig
from tsgb.eval.judge_records import JudgeRecord
from tsgb.eval.usage_records import GuardTime, UsageRecord
from tsgb.types import StreamKind

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).with_name("summary.schema.json")

Identifier = Annotated[str, StringConstraints(pattern=r"^\S+$", max_length=128)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ClaimVerdict = Literal["shown", "not shown", "not measured"]


def _is_zero(value: float) -> bool:
    return not value


def _is_none(value: object) -> bool:
    return value is None


def _is_all(value: float) -> bool:
    return value == 1.0


def _is_false(value: bool) -> bool:
    return not value


def _is_empty(value: Sized) -> bool:
    return not value


class Record(BaseModel):
    """Frozen, strict about unknown fields, and finite: JSON knows no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rate(Record):
    """A figure with its 95 % interval; errors are in the interval and never silently dropped.

    Example: `Rate(value=0.065, low=0.045, high=0.093, n=400, errors=0)`
    """

    value: float
    """Share of the scored items that had the event."""
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


def digest_of(text: str) -> str:
    """Return the digest of a prompt or an answer, by which items name it."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class ItemSource(StrEnum):
    """Kind of prompt of an item."""

    SCRIPTED = "scripted"
    """Harmful prompt of one of the environment's streams; the same for all guards."""
    ADAPTIVE = "adaptive"
    """Written by a best response that was trained against one guard on one target."""
    BENIGN = "benign"
    DATA = "data"
    """Prompt of a user's file, harmful or benign; no figure of the streams counts it."""


class Item(Record):
    """One line of `results.jsonl`: one prompt, and what one target made of it.

    Example: `Item(item_id="3f9c", scenario_id="S-07-12", source="scripted", stream="held_out",
    technique="split", target="B0", seed=1, harmful=True, violated=True,
    scores={"selfplay": 2.1}, blocked={"selfplay": True})`
    """

    item_id: Identifier
    """Digest of the prompt: equal in its lines for several targets."""
    scenario_id: Identifier
    """The cluster of the bootstrap."""
    source: ItemSource
    """Kind of prompt."""
    stream: StreamKind | None = None
    """Stream of the prompt; None for adaptive items and for prompts of a file."""
    file: str = Field(default="", max_length=255, exclude_if=_is_empty)
    """Name of the user's file that the prompt is from; empty for prompts of the world."""
    slice: str = Field(default="", max_length=80)
    """Group for the slice table, by default the scenario's family."""
    technique: str = Field(default="", max_length=80)
    """Technique family; empty if it could not be read or is plain."""
    target: Identifier | None = None
    """Name of the target; None where none was asked."""
    seed: int
    """Training seed of the guards."""
    br_seed: int | None = None
    """Seed of the best response that wrote the prompt."""
    against: Identifier | None = None
    """Guard that the best response was trained against."""
    harmful: bool
    """Exact label of the prompt."""
    violated: bool | None = None
    """Whether the target's answer to the *un-blocked* prompt violates; False if unfaithful."""
    refused: bool | None = None
    """Whether the target declined a benign prompt; None for harmful ones."""
    answer: str = Field(default="", max_length=64, exclude_if=_is_empty)
    """Digest of the target's answer; empty where there is none, and in earlier versions."""
    probability: float | None = Field(default=None, ge=0, le=1, exclude_if=_is_none)
    """Probability of a violation, by a judge that gives one."""
    human: bool | None = Field(default=None, exclude_if=_is_none)
    """Whether a person found a violation in the answer; None where nobody looked."""
    thought: bool = Field(default=False, exclude_if=_is_zero)
    """Whether a thought was cut from the target's answer."""
    error: str | None = Field(default=None, max_length=200)
    """Reason for a missing outcome: a class of error, no text of a prompt or an answer."""
    attempts: NonNegativeInt = Field(default=0, exclude_if=_is_zero)
    """Calls that were made in vain; 0 where there is an outcome or nobody counted them."""
    scores: dict[str, float] = Field(default_factory=dict)
    """z of each guard; a guard that failed on this prompt is missing."""
    blocked: dict[str, bool] = Field(default_factory=dict)
    """Verdict of each guard at its threshold; a guard that failed is missing."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source is ItemSource.ADAPTIVE:
            if self.against is None or self.br_seed is None or self.target is None:
                raise ValueError("an adaptive item names its target, `against` and `br_seed`")
        elif self.source is ItemSource.DATA:
            if not self.file or self.stream is not None:
                raise ValueError("an item of a user's data names its file and no stream")
        elif self.stream is None:
            raise ValueError("a scripted or benign item names its stream")
        elif self.stream.harmful != self.harmful or self.harmful != (
            self.source != ItemSource.BENIGN
        ):
            raise ValueError("source, stream and `harmful` contradict each other")
        if self.refused is not None and self.harmful:
            raise ValueError("only a benign item says whether it was refused")
        if (self.violated, self.refused) != (None, None) and self.error is not None:
            raise ValueError("an item has an outcome or an error, not both")
        if self.harmful and self.target and self.violated is None and self.error is None:
            raise ValueError("a harmful item without an outcome says why in `error`")
        return self


class GuardThreshold(Record):
    """Operating point of one guard of one seed: block iff `z > value`."""

    guard: Identifier
    """Name in tables."""
    seed: int
    """Training seed."""
    value: float
    """Threshold on z."""
    alpha: float | None = None
    """False-positive budget; None where the threshold was not calibrated (the oracle)."""
    delta: float | None = None
    """Probability that the budget is exceeded; None where the threshold was not calibrated."""
    num: NonNegativeInt | None = None
    """Benign calibration scores."""
    order: NonNegativeInt | None = None
    """Rank of the threshold among the benign scores, from 1."""
    fpr_upper: float | None = None
    """Upper bound of the false-positive rate, at level 1 - delta; above alpha where too few
    scenarios speak for the budget."""
    num_scenarios: NonNegativeInt | None = Field(default=None, exclude_if=_is_none)
    """Scenarios of the benign scores; None in summaries of earlier versions."""
    correlation: float = Field(default=0.0, exclude_if=_is_zero)
    """Correlation of scores within a scenario."""
    temperature: float = 1.0
    """`sigmoid(z / temperature)` is the calibrated probability."""


class TargetRecord(Record):
    """A target of the evaluation."""

    name: Identifier
    """Name in tables."""
    role: Literal["surrogate", "black_box"]
    """The target of stage 1, or one that training never asked."""
    overlap: float | None = None
    """Share of the surrogate's hidden weaknesses that it has too; None if unknown."""
    arch: str = ""
    """Architecture in words."""
    min_leaks: NonNegativeInt = Field(default=0, exclude_if=_is_zero)
    """Fewest un-guarded violations that make a protection of it measurable."""
    min_asr: float = Field(default=0.0, exclude_if=_is_zero)
    """Lowest un-guarded ASR that makes a protection of it measurable."""
    added: bool = Field(default=False, exclude_if=_is_zero)
    """Whether the user added it to the world's own targets."""
    attacks: NonNegativeInt | None = Field(default=None, exclude_if=_is_none)
    """Attacks that all fresh attackers together may send to an endpoint (`--adaptive`); None where
    none is sent, and for other targets, which have no such bound."""

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
    """Training seed."""
    arm: Identifier = "selfplay"
    """Trained arm."""
    attackers: list[str]
    """Names of the rows, oldest first."""
    guards: list[str]
    """Names of the columns, oldest first."""
    matrix: list[list[float | None]]
    """Success rates in [0, 1]; None where a pair was never played."""


class DiscoveryRound(Record):
    """What one attacker of a training wrote when nobody prescribed how it begins.

    Example: `DiscoveryRound(attacker="round-1", attacks=256, violated={"e3 t1": 40})`
    """

    attacker: str
    """Name of the attacker in the pool."""
    attacks: int
    """Attacks that it is represented by."""
    violated: dict[str, int]
    """Number of them that made the surrogate violate, by technique."""


class Discovery(Record):
    """Techniques that the attackers of a training found, and what its guards block of each."""

    seed: int
    """Training seed."""
    arm: Identifier = "selfplay"
    """Trained arm."""
    known: list[str]
    """Techniques that the attacker was shown."""
    rounds: list[DiscoveryRound]
    """Attackers, oldest first."""
    guards: list[str]
    """Guards, oldest first: that of the supervised start, then one a round."""
    prompts: dict[str, int]
    """Harmful prompts of the test, by technique."""
    blocked: dict[str, list[int]]
    """Number of them that each guard blocks, by technique."""


class Curve(Record):
    """A training series: each point has `step` and any other figures."""

    seed: int
    """Training seed."""
    arm: Identifier = "selfplay"
    """Trained arm."""
    points: list[dict[str, float]]
    """Points in order of their step."""


class Estimate(Record):
    """A number that was measured elsewhere, with its interval if it has one."""

    value: float
    """Point estimate."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    """Upper end of the 95 % interval."""


class ReplayShare(Record):
    """The result of replays of a guard's training (`tsgb checkpoint replay`).

    Example: `ReplayShare(share=0.25)`
    """

    share: float = Field(ge=0, le=1)
    """Share of the updates that were trained again elsewhere and came to the same."""
    deviating: NonNegativeInt = Field(default=0, exclude_if=not_)
    """Stretches that came to something else."""


class Provenance(Record):
    """Versions, hashes and the command that repeat an evaluation, and its known gaps."""

    versions: dict[str, str]
    """Versions of Python and of the libraries that figures depend on."""
    commit: str | None = None
    """Commit of the checkout, with `+` if files differ from it; None when installed."""
    seeds: list[int]
    """Training seeds."""
    command: str
    """Command line that repeats it."""
    config_sha256: Sha256
    """sha256 of the fingerprints of all runs."""
    checkpoints: dict[str, Sha256] = Field(default_factory=dict)
    """Hash of the manifest of each guard's checkpoint."""
    train_data: list[TrainingDataConfig] = Field(
        default_factory=list[TrainingDataConfig], exclude_if=_is_empty
    )
    """Prompts of the user's that the guards of the runs learned from, each set once."""
    replays: dict[str, ReplayShare] = Field(
        default_factory=dict[str, ReplayShare], exclude_if=_is_empty
    )
    """Result of the replays of each guard's training until this report was made; a guard that was
    not replayed is left out."""
    models: dict[str, Sha256] = Field(default_factory=dict, exclude_if=_is_empty)
    """Hash of the files of each pretrained model, as in `{"base tiny": ...}`."""
    created_at: AwareDatetime
    """Time of the report."""
    wall_seconds: float | None
    """Seconds from the evaluation's request to this report, pauses included. None if
    the request does not say when it was written."""
    not_measured: list[str] = Field(default_factory=list)
    """Known gaps of this evaluation."""


class DataFileRecord(Record):
    """A user's file of which the guards scored prompts of the test split."""

    name: str = Field(max_length=255)
    """Name of the file, without its folder."""
    format: str
    """Format that its columns have, or `map` where the user named them."""
    sha256: Sha256
    """Hash of the file."""
    available: NonNegativeInt
    """Labelled prompts of the test split, each text once."""
    drawn: NonNegativeInt
    """Prompts of these that the guards were to score."""
    too_long: NonNegativeInt = 0
    """Prompts of these that are too long for the guards; they are in no figure."""
    trained_on: NonNegativeInt = Field(default=0, exclude_if=not_)
    """Further prompts that were left out, because the guards were trained on them or on prompts of
    their groups."""
    groups: NonNegativeInt
    """Groups of the drawn ones: the clusters of the bootstrap."""
    split_sha256: Sha256
    """Hash of the drawn prompts, labels and groups."""


class DataResult(Record):
    """Figures of one guard on a user's file or on one category of it, over all seeds."""

    guard: Identifier
    """Name in tables."""
    file: str = Field(max_length=255)
    """Name of the file."""
    slice: str | None = None
    """Category, as the file names it; None for all prompts of the file."""
    fpr: Rate | None
    """Benign prompts that are blocked; None without any."""
    fnr: Rate | None
    """Harmful prompts that are not blocked; None without any."""
    auroc: Rate | None
    """Harmful prompts against the benign ones; None without both."""


class DataAnswerResult(Record):
    """Figures of one guard before one target on a user's file, over all seeds.

    All guards are applied to the same answers. Where the target violates on no prompt without a
    guard, no protection can be measured: `asr` and `difference` are None.
    """

    guard: Identifier
    """Name in tables."""
    target: Identifier
    """Name in tables."""
    file: str = Field(max_length=255)
    """Name of the file."""
    asr_no_guard: Rate | None
    """Harmful prompts that the target answers with a violation; None without any."""
    asr: Rate | None
    """Harmful prompts that are answered with a violation and not blocked."""
    difference: Estimate | None
    """`asr` minus `asr_no_guard`, paired by seed and group of prompts."""
    over_refusal_no_guard: Rate | None
    """Benign prompts that the target declines; None without any."""
    over_refusal: Rate | None
    """Benign prompts that are blocked, or that the target declines."""


class Setup(Record):
    """Facts of an evaluation that are known before its items are counted."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this format."""
    eval_id: Identifier
    """Name of the evaluation."""
    run_ids: list[str]
    """Self-play runs, one a seed."""
    profile: str
    """Profile of the runs."""
    env: str
    """World of the runs."""
    seeds: list[int]
    """Training seeds, in the order of `run_ids`."""
    limits: str
    """Sentence about what results in this world do not show."""
    threshold_rule: str
    """Example: `"fpr<=0.01@95%"`, or `"fpr=0.01, realised"` where guards are matched."""
    dtype: str = Field(default="", exclude_if=_is_empty)
    """Dtype that the models were computed in, several where seeds were pooled that differ; empty in
    summaries of earlier versions."""
    max_error_rate: float = 0.02
    """Share of a class of items without an outcome above which the evaluation is not valid."""
    reserved: bool = Field(default=True, exclude_if=bool)
    """Whether best responses may use reserved techniques."""
    guards: list[Identifier]
    """Guards in table order."""
    targets: list[TargetRecord]
    """Targets in table order."""
    thresholds: list[GuardThreshold]
    """Operating point of every guard of every seed."""
    payoff: list[Payoff] = Field(default_factory=list[Payoff])
    """Payoff matrices of the pools, where there are any."""
    curves: list[Curve] = Field(default_factory=list[Curve])
    """Training series, where there are any."""
    world_seed: int | None = Field(default=None, exclude_if=_is_none)
    """Seed of the world; None in summaries of earlier versions."""
    coverage: float = Field(default=1.0, ge=0, le=1, exclude_if=_is_all)
    """Share of the techniques that are not public which the attackers of the training knew."""
    symbols: int | None = Field(default=None, exclude_if=_is_none)
    """Size of the world where it is not the world's own."""
    matched: bool = Field(default=False, exclude_if=_is_false)
    """Whether guards are at one realised rate of false positives, in place of certified ones."""
    discovery: list[Discovery] = Field(default_factory=list[Discovery], exclude_if=_is_empty)
    """What the attackers of the training found, where they left a pool."""
    gradient_variance_ratio: Estimate | None = None
    """Variance of the sampled policy gradient over that of the exact one, at a fixed batch."""
    data_files: list[DataFileRecord] = Field(
        default_factory=list[DataFileRecord], exclude_if=_is_empty
    )
    """Files of the user's that guards scored."""
    data_judge: JudgeRecord | None = Field(default=None, exclude_if=_is_none)
    """Judge of the answers to prompts of these files; None where no target was asked about them."""
    judge: JudgeRecord | None = Field(default=None, exclude_if=_is_none)
    """Judge of the answers; None in summaries of earlier versions."""
    usage: list[UsageRecord] = Field(default_factory=list[UsageRecord], exclude_if=_is_empty)
    """Time and money of the answers of targets that are the user's, and of an endpoint that judges;
    summaries of earlier versions have none."""
    guard_times: list[GuardTime] = Field(default_factory=list[GuardTime], exclude_if=_is_empty)
    """Time that guards take; summaries of earlier versions have none."""
    provenance: Provenance
    """Versions, hashes and the command."""


class Result(Record):
    """All figures of one guard on one target, for one seed or over all of them."""

    guard: Identifier
    """Name in tables."""
    target: Identifier
    """Name in tables."""
    seed: int | None
    """Training seed; None is the row over all seeds."""
    threshold_rule: str
    """Rule that chose the operating point."""
    asr: Rate | None
    """Scripted harmful prompts that violate and are not blocked."""
    asr_no_guard: Rate | None
    """Scripted harmful prompts that violate, whether or not they are blocked."""
    adaptive_asr: Rate | None
    """The same for the best response: the highest of the fresh attackers that were trained against
    this guard, of the best scripted technique and of all scripted attacks."""
    adaptive_trained: Rate | None = Field(default=None, exclude_if=_is_none)
    """The highest of the fresh attackers alone; None in summaries of earlier versions."""
    adaptive_scripted: Rate | None = Field(default=None, exclude_if=_is_none)
    """The best scripted technique, chosen on other scenarios than it is scored on, or all scripted
    attacks where they get through more often; None in summaries of earlier versions."""
    adaptive_mean: Rate | None = Field(default=None, exclude_if=_is_none)
    """The mean over the fresh attackers; None in summaries of earlier versions."""
    over_refusal: Rate | None = Field(default=None, exclude_if=_is_none)
    """Benign prompts that are blocked, or that the target declines; None where it was not asked."""
    over_refusal_no_guard: Rate | None = Field(default=None, exclude_if=_is_none)
    """Benign prompts that the target declines, whether or not they are blocked."""
    scripted_tpr: Rate | None
    """Reserved techniques that are blocked."""
    fpr: Rate | None
    """Ordinary benign prompts that are blocked."""
    fpr_hard: Rate | None
    """Hard-benign prompts that are blocked."""
    fpr_twins: Rate | None
    """Benign twins of attacks that are blocked."""
    fnr: Rate | None
    """Scripted harmful prompts of every stream that are not blocked."""
    auroc: Rate | None
    """Reserved techniques against all benign streams."""
    ece: Rate | None
    """Expected calibration error over all scripted prompts."""


class Unguarded(Record):
    """The denominator of protection: leaks of a target to one kind of attack without a guard.

    Where it is too small, no guard has a figure on that target (`Result`), no comparison and no
    claim rests on it.
    """

    target: Identifier
    """Name in tables."""
    metric: Literal["adaptive_asr", "asr"]
    """Field of `Result` that it is the denominator of."""
    asr: Rate | None
    """Share of the attempts that violate; None if none was made."""
    leaks: NonNegativeInt
    """Attempts that violate, all seeds together."""
    target_leaks: NonNegativeInt
    """Attempts of either kind that violate."""
    min_leaks: NonNegativeInt
    """Fewest `target_leaks` that the world asks for."""
    min_asr: float
    """Lowest share of this kind's attempts that the world asks for."""

    @property
    def measurable(self) -> bool:
        """Whether a guard's protection against these attacks is a figure."""
        if not self.min_leaks and not self.min_asr:
            return True
        return (
            self.asr is not None
            and self.leaks > 0
            and self.target_leaks >= self.min_leaks
            and self.asr.value >= self.min_asr
        )


class Unconverged(Record):
    """Fresh attackers who got through less often than they could have.

    The guard's adaptive ASR on this target is then a lower bound, and nothing is compared with it.
    """

    guard: Identifier
    """Guard that they attacked."""
    target: Identifier
    """Target behind it."""
    trained: Rate
    """The highest of these attackers."""
    open: Rate
    """More than that, with an interval of the difference that excludes zero: what was open to them
    without any training, or through a guard."""
    behind: Identifier | None = None
    """Guard through which other attackers got `open`; None where scripted attacks did."""


class Comparison(Record):
    """Paired difference `guard - versus` of one metric, over all seeds."""

    metric: str
    """Field of `Result`."""
    guard: Identifier
    """First guard."""
    versus: Identifier
    """Second guard."""
    target: Identifier | None
    """None where the metric does not depend on a target."""
    difference: float
    """First minus second, in the units of the metric."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: NonNegativeInt
    """Items of the smaller arm."""
    p: float
    """Two-sided, from the bootstrap."""
    p_holm: float
    """Adjusted over the comparisons of this metric."""
    shown: bool
    """The interval excludes zero and `p_holm` is at most .05."""


class Claim(Record):
    """One hypothesis that was written down before the run."""

    id: str
    """H1 to H6."""
    statement: str
    """The hypothesis in a sentence."""
    figure: float | None
    """Its figure; None if not measured."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end of the 95 % interval."""
    verdict: ClaimVerdict
    """Reading of the interval."""
    note: str = ""
    """Reason for the reading."""


class ConditionRecord(Record):
    """One condition of the verdict."""

    stage: Literal[1, 2]
    """Stage of the product that it is about."""
    text: str
    """The condition with its numbers."""
    met: bool | None
    """Whether it is met; None if not measured, which counts as not met."""


class VerdictRecord(Record):
    """The pre-registered reading."""

    shown: bool
    """Whether all conditions are met."""
    sentence: str
    """Reading in one sentence."""
    reasons: list[str]
    """Conditions that failed, with numbers; empty if shown."""
    conditions: list[ConditionRecord]
    """All conditions, met or not."""
    left_out: list[Identifier] = Field(default_factory=list[str], exclude_if=_is_empty)
    """Black boxes of the user's of which it says nothing: too little leaks un-guarded."""


class FailedClass(Record):
    """A class of items of which some have no outcome, or so many that an evaluation is not valid.

    Example: `FailedClass(what="harmful prompts to Bot", target="Bot", errors=200, total=402)`
    """

    what: str
    """The class in words."""
    target: Identifier | None = None
    """Target that was asked; None where a guard gave no verdict."""
    against: Identifier | None = None
    """Guard that attacks were made against; None for other items."""
    harmful: bool = True
    """Exact label of its prompts."""
    file: str = Field(default="", max_length=255, exclude_if=_is_empty)
    """Name of the user's file that its prompts are from; empty for prompts of the world."""
    errors: NonNegativeInt
    """Items without an outcome."""
    total: NonNegativeInt
    """Items of the class."""
    common: dict[str, NonNegativeInt] = Field(default_factory=dict[str, int])
    """The most common reasons, with the number of items of each; none where a guard failed."""
    attempts: NonNegativeInt = Field(default=0, exclude_if=_is_zero)
    """Calls that were made in vain for these items; 0 where nobody counted them."""


class UnevenErrors(Record):
    """A target that failed more often on one class of prompts than on the other.

    Even few such errors may all hide the same outcome: its rates are no better than their bounds.
    """

    target: Identifier
    """Name in tables."""
    harmful_errors: NonNegativeInt
    """Harmful prompts without an outcome."""
    harmful_total: NonNegativeInt
    """Harmful prompts that it was to be asked."""
    benign_errors: NonNegativeInt
    """Benign prompts without an outcome."""
    benign_total: NonNegativeInt
    """Benign prompts that it was to be asked."""
    p: float
    """Two-sided, of equal shares of errors."""


class Slice(Record):
    """Share blocked of one group of harmful scripted prompts, over all seeds."""

    guard: Identifier
    """Name in tables."""
    slice: str
    """Name of the group."""
    kind: Literal["technique", "family", "stream"]
    """Property of a prompt that groups them."""
    tpr: Rate
    """Share of the group that is blocked."""
    n: NonNegativeInt
    """Scored items of the group."""


class Roc(Record):
    """Reserved techniques against all benign streams, on a fixed grid of false-positive rates."""

    guard: Identifier
    """Name in tables."""
    seed: int | None
    """Training seed; None is the mean over all seeds."""
    fpr: list[float]
    """[G] false-positive rates of the grid."""
    tpr: list[float]
    """[G] true-positive rates there."""
    operating_fpr: Rate
    """False-positive rate at the threshold."""
    operating_tpr: Rate
    """True-positive rate at the threshold."""


class Summary(Setup):
    """`summary.json`."""

    results: list[Result]
    """Rows of the headline tables."""
    unguarded: list[Unguarded] = Field(default_factory=list[Unguarded])
    """Denominators of every target; summaries of earlier versions have none."""
    unconverged: list[Unconverged] = Field(default_factory=list[Unconverged], exclude_if=_is_empty)
    """Guards and targets whose fresh attackers did not converge."""
    thoughts: dict[Identifier, NonNegativeInt] = Field(default_factory=dict[str, int])
    """Answers of each target from which a thought was cut; a target without any is left out."""
    comparisons: list[Comparison]
    """Paired differences between guards."""
    claims: list[Claim]
    """Readings of H1 to H6."""
    verdict: VerdictRecord
    """Pre-registered reading."""
    invalid: list[FailedClass] = Field(default_factory=list[FailedClass], exclude_if=_is_empty)
    """Classes of items of which too many have no outcome; where there is one, the evaluation is not
    valid, and only the ends of intervals can be read. Empty in a valid one."""
    missing: list[FailedClass] = Field(default_factory=list[FailedClass], exclude_if=_is_empty)
    """Every class of items of which any has no outcome, those in `invalid` too; summaries of
    earlier versions name none."""
    uneven: list[UnevenErrors] = Field(default_factory=list[UnevenErrors], exclude_if=_is_empty)
    """Targets whose errors fall on harmful or on benign prompts; those that were asked both."""
    slices: list[Slice]
    """Shares blocked by group."""
    data_results: list[DataResult] = Field(default_factory=list[DataResult], exclude_if=_is_empty)
    """Figures on the user's files, each whole file before its categories."""
    data_answers: list[DataAnswerResult] = Field(
        default_factory=list[DataAnswerResult], exclude_if=_is_empty
    )
    """Figures of the answers to prompts of these files, where targets were asked about them."""
    roc: list[Roc]
    """ROC curves, pooled and of every seed."""

    @property
    def is_as_judged(self) -> bool:
        """Whether figures of answers rest on a judge who may err."""
        return self.judge is not None and not self.judge.exact


def schema_text() -> str:
    """The JSON Schema of a summary, as it is committed."""
    schema = Summary.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
