"""The published format `guard.json`: all that is needed to use an exported guard, weights apart.

It holds no path and no address of the machine or the store that it comes from.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from tsgb.eval.records import Identifier, Record, Sha256

SCHEMA_VERSION = 1
RUN_PRESET = "run"
"""The operating point that the run trained and was evaluated at."""


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
    """For people. The ids count: the parts are encoded apart."""
    before_ids: list[NonNegativeInt]
    after_ids: list[NonNegativeInt]
    """Between both stands the prompt, encoded with `split_special_tokens`, none added."""
    words: WordList | None
    """None for a tokenizer of parts of words."""


class Verdict(Record):
    """A verdict token."""

    token: str
    id: NonNegativeInt


class OperatingPoint(Record):
    """Unsafe iff `score > value`."""

    value: float
    alpha: float
    """False-positive budget."""
    order: NonNegativeInt
    """`value` is the order-th smallest calibration score, counted from 1."""
    fpr_upper: float
    """Upper 1 - delta bound of the false-positive rate on the calibration's stream."""


class Calibration(Record):
    """What the thresholds were chosen on; alpha, order and bound are those of the run's own."""

    alpha: float
    delta: float
    """P(false-positive rate > alpha) is at most this, over draws of the calibration prompts."""
    n: NonNegativeInt
    """Benign calibration scores."""
    order: NonNegativeInt
    fpr_upper: float
    stream: str
    """What the prompts were, in words; the bound holds for benign traffic like it, only."""
    prompts_sha256: Sha256
    """Of the prompts as a JSON list."""


class Base(Record):
    """The base model that training started from."""

    name: str
    sha256: Sha256
    """Of its weights, as the checkpoint names it."""
    source: str
    """Where it comes from; a hub id where it has one."""
    directory: str | None
    """Where it lies in the export; None if an adapter needs it from elsewhere, or nothing does."""
    file_sha256: Sha256 | None
    """Of the `model.safetensors` that an adapter belongs on; None with whole weights."""


class Checkpoint(Record):
    """Which checkpoint was exported."""

    run_id: str
    name: str
    step: NonNegativeInt
    total_steps: NonNegativeInt
    sha256: Sha256
    """Of its manifest."""
    column: str
    """The guard's name within: the state after that round, selected on the payoff matrix."""


class GuardFile(Record):
    """`guard.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    adapter: Literal["full", "lora"]
    template: Template
    unsafe: Verdict
    safe: Verdict
    score: str = "logit(unsafe) - logit(safe), both read after the last token of the input"
    rule: str = "unsafe iff score > threshold; p_unsafe = sigmoid(score / temperature)"
    default: str = RUN_PRESET
    thresholds: dict[str, OperatingPoint] = Field(min_length=1)
    omitted: dict[str, str]
    """Presets that the calibration is too small for, and why."""
    temperature: float = Field(gt=0)
    calibration: Calibration
    base: Base
    checkpoint: Checkpoint
    env: str
    world_seed: NonNegativeInt
    seed: NonNegativeInt
    profile: str
    arm: Identifier
    config_sha256: Sha256
    versions: dict[str, str]
