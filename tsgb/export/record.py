"""The published format `guard.json`: all that is needed to use an exported guard, weights apart.

It holds no path and no address of the machine or the store that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from pydantic import Field, NonNegativeInt, TypeAdapter, model_validator

from tsgb.config import TrainingDataConfig
from tsgb.eval.records import Identifier, Record, Sha256
from tsgb.models import smollm2

SCHEMA_VERSION = 2
Dtype = Literal["float32", "bfloat16"]
"""Dtype of the frozen weights while a guard computes; adapters are in float32 always."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
"""All of them."""
RunDtype = Literal["auto", "float32", "bfloat16"]
"""Dtype that a run's configuration asks for; `auto` leaves it to each machine."""
SELF_TEST_TOLERANCE: Mapping[Dtype, float] = {"float32": 0.01, "bfloat16": 0.5}
"""Difference of two scores of one prompt that is put down to rounding."""
RUN_PRESET = "run"
"""The operating point that the run trained and was evaluated at."""


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return value == []


class WordList(Record):
    """How a tokenizer of whole words reads user text."""

    reserved_ids: list[NonNegativeInt]
    """Words of the template; in user text they count as unknown, so that it cannot forge them."""
    unknown_id: NonNegativeInt
    """Stands for every word that the list lacks."""


class Template(Record):
    """How the input is built from a prompt.

    Example: `Template(input="BOS {prompt} SEP Q1 Q2 V", before_ids=[1], after_ids=[3, 4, 5, 6],
    words=WordList(reserved_ids=[1, 2, 3], unknown_id=0))`
    """

    input: str
    """The input as text, for people; the ids count, since the parts are encoded apart."""
    before_ids: list[NonNegativeInt]
    """Token ids in front of the prompt's part."""
    prefix: str = ""
    """Text in front of the prompt that is encoded together with it."""
    suffix: str = ""
    """Text behind the prompt that is encoded together with it."""
    after_ids: list[NonNegativeInt]
    """Token ids behind the prompt's part."""
    trim_start: bool = False
    """Whether white space at the prompt's start is left out."""
    trim_end: bool = False
    """Whether white space at the prompt's end is left out."""
    words: WordList | None
    """None for a tokenizer of parts of words."""


class Verdict(Record):
    """A verdict token."""

    token: str
    """The token as text."""
    id: NonNegativeInt
    """Its id in the vocabulary."""


class CalibrationFile(Record):
    """A user's file on whose benign prompts a threshold was chosen."""

    name: str
    """Name of the file, without its folder."""
    format: str
    """Format that its columns have, or `map` where the user named them."""
    sha256: Sha256
    """Hash of the file."""
    drawn: NonNegativeInt
    """Benign prompts that were to be scored."""
    split_sha256: Sha256
    """Hash of these prompts, their labels and groups."""


class OwnCalibration(Record):
    """Sample of an operating point that was chosen after the export, on a user's prompts."""

    delta: float
    """P(false-positive rate > alpha) is at most this, over draws of these prompts."""
    n: NonNegativeInt
    """Benign scores, each text once."""
    groups: NonNegativeInt
    """Groups of these prompts, by which false alarms were counted."""
    correlation: float
    """Correlation of scores within a group that was reckoned with."""
    too_long: NonNegativeInt
    """Prompts that the guard does not read as a whole, which have no score."""
    all_splits: bool
    """Whether prompts of every split of the files calibrate, so that none is left to measure on."""
    files: list[CalibrationFile]
    """Where the prompts are from."""


class OperatingPoint(Record):
    """Unsafe iff `score > value`."""

    value: float
    """Threshold, in units of the score."""
    alpha: float
    """False-positive budget."""
    order: NonNegativeInt
    """`value` is the order-th smallest calibration score, counted from 1."""
    fpr_upper: float
    """Upper 1 - delta bound of the false-positive rate on the calibration's stream."""
    own: OwnCalibration | None = Field(default=None, exclude_if=_is_none)
    """Sample of a point that `tsgb recalibrate` added; None for those of the run."""


class Calibration(Record):
    """Sample of the thresholds; alpha, order and bound are those of the run's own threshold."""

    alpha: float
    """False-positive budget of the run."""
    delta: float
    """P(false-positive rate > alpha) is at most this, over draws of the calibration prompts."""
    n: NonNegativeInt
    """Benign calibration scores."""
    order: NonNegativeInt
    """Rank of the threshold among the calibration scores, counted from 1."""
    fpr_upper: float
    """Upper 1 - delta bound of the false-positive rate."""
    stream: str
    """Description of the prompts; the bound holds for benign traffic like it, only."""
    prompts_sha256: Sha256
    """sha256 of the prompts as a JSON list."""


class Base(Record):
    """The base model that training started from."""

    name: str
    """Name of the base model."""
    sha256: Sha256
    """sha256 of its weights, as the checkpoint names it."""
    source: str
    """Origin of the base; a hub id if it has one."""
    revision: str | None = None
    """Commit on the hub; None if it is not from there, or is another version."""
    directory: str | None
    """Its directory in the export; None if an adapter needs it from elsewhere, or nothing does."""
    file_sha256: Sha256 | None
    """sha256 of the `model.safetensors` below an adapter; None with whole weights, and where the
    base has several files of weights."""

    @property
    def model_name(self) -> str | None:
        """Name by which the base is fetched; None for one that lies in the export, or nowhere."""
        if self.directory is not None:
            return None
        if self.revision is not None:
            return f"{self.source}@{self.revision}"
        return smollm2.NAME if self.source == smollm2.HUB_ID else None


class Checkpoint(Record):
    """The checkpoint that was exported."""

    run_id: str
    """Id of the run."""
    name: str
    """Name of the checkpoint's directory."""
    step: NonNegativeInt
    """Updates that were done."""
    total_steps: NonNegativeInt
    """Updates of the whole run."""
    sha256: Sha256
    """sha256 of its manifest."""
    column: str
    """The guard's name within: the state after that round, selected on the payoff matrix."""


class SelfTest(Record):
    """A prompt by which a loader finds that a base or an adapter is another one."""

    prompt: str
    """The prompt."""
    score: float
    """Its score when the guard was exported."""
    tolerance: float = Field(gt=0)
    """Largest difference of the score that is put down to rounding."""


_SELF_TESTS = TypeAdapter(list[SelfTest])


class DtypeCalibration(Record):
    """Scores differ from dtype to dtype by rounding, so each has operating points of its own."""

    thresholds: dict[str, OperatingPoint] = Field(min_length=1)
    """Operating points by name, of scores in this dtype."""
    temperature: float = Field(gt=0)
    """Divides the score in the probability; fitted on held-out prompts."""
    self_test: list[SelfTest] = Field(default_factory=list[SelfTest])
    """Prompts with their scores; none in some exports of earlier versions."""
    deciles: list[float] = Field(default_factory=list[float], exclude_if=_is_empty)
    """Nine bounds between tenths of the benign calibration scores, by which `tsgb serve` tells that
    its traffic is another one; none in exports of earlier versions."""


class GuardFile(Record):
    """`guard.json`."""

    schema_version: Literal[2] = SCHEMA_VERSION
    """Version of this format."""
    adapter: Literal["full", "lora"]
    """Kind of the weights: whole ones, or LoRA on the base."""
    template: Template
    """Input format."""
    unsafe: Verdict
    """Verdict token of a harmful prompt."""
    safe: Verdict
    """Verdict token of a benign prompt."""
    score: str = "logit(unsafe) - logit(safe), both read after the last token of the input"
    """Definition of the score."""
    rule: str = "unsafe iff score > threshold; p_unsafe = sigmoid(score / temperature)"
    """Definition of the decision and of the probability."""
    default: str = RUN_PRESET
    """Name of the threshold to use unless another is wanted."""
    omitted: dict[str, str]
    """Presets that the calibration is too small for, and why."""
    dtype: Dtype
    """Dtype to compute in unless another is wanted: that of the run, or the exporting machine's."""
    run_dtype: RunDtype = "auto"
    """Dtype of the run; with `auto` each of its machines chose one, and `dtype` is the choice of
    the machine that exported. Exports of earlier versions do not tell."""
    dtypes: dict[Dtype, DtypeCalibration] = Field(min_length=1)
    """What was measured in each dtype that the guard may be computed in."""
    uncalibrated: dict[Dtype, str] = Field(default_factory=dict[Dtype, str])
    """Dtypes that nothing was measured in, and why."""
    calibration: Calibration
    """Sample that the thresholds were chosen on."""
    base: Base
    """Base model of the weights."""
    checkpoint: Checkpoint
    """Checkpoint that the guard was read from."""
    env: str
    """World of the run."""
    world_seed: NonNegativeInt
    """Seed of the world."""
    seed: NonNegativeInt
    """Seed of the run."""
    profile: str
    """Profile of the run."""
    arm: Identifier
    """Arm of the run."""
    config_sha256: Sha256
    """sha256 of the run's configuration."""
    train_data: TrainingDataConfig | None = Field(default=None, exclude_if=_is_none)
    """Prompts of a user's that it learned from too; None without any."""
    versions: dict[str, str]
    """Versions of Python and of the libraries, by name."""

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, found: Any) -> Any:
        """Read a file of version 1, which knew one dtype and told it by its tolerance only."""
        if not isinstance(found, dict):
            return found
        content = dict(cast("dict[str, Any]", found))
        if content.get("schema_version") != 1:
            return content
        moved = ("thresholds", "temperature", "self_test")
        measured = {name: content.pop(name) for name in moved if name in content}
        tests = _SELF_TESTS.validate_python(measured.get("self_test", []))
        coarse = any(test.tolerance == SELF_TEST_TOLERANCE["bfloat16"] for test in tests)
        dtype: Dtype = "bfloat16" if coarse else "float32"
        return content | {
            "schema_version": SCHEMA_VERSION,
            "dtype": dtype,
            "dtypes": {dtype: measured},
        }
