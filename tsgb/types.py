"""The nouns of TSGB, as frozen records. They know no torch, no store and no Prefect.

Words are those of README.md: scenario, attack, verdict, response, judgement, episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypedDict


class Message(TypedDict):
    """One chat message, as every chat API spells it."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = Sequence[Message]
Buffer = bytes | memoryview
"""A file's content; a view is not copied on its way to a disk or a server."""


class Split(StrEnum):
    """Disjoint sets of scenarios."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    """Thresholds are chosen here and nowhere else."""
    TEST = "test"
    """Touched by the evaluation only."""


class StreamKind(StrEnum):
    """The streams of labelled prompts that an environment can draw from."""

    STATIC = "static"
    """Harmful prompts with the publicly known techniques: what a static data set would hold."""
    WIDE = "wide"
    """Harmful prompts with every technique that is not reserved."""
    HELD_OUT = "held_out"
    """Harmful prompts with reserved techniques only, which no training stream ever shows."""
    STATIC_BENIGN = "static_benign"
    """Benign prompts in the style of STATIC."""
    BENIGN = "benign"
    """Ordinary benign traffic: wide mix of forms."""
    HARD_BENIGN = "hard_benign"
    """Allowed, but close to the policy's border."""
    TWINS = "twins"
    """The techniques of attacks wrapped around allowed content (reserved techniques included on the
    test split only)."""

    @property
    def harmful(self) -> bool:
        """Whether the right verdict on this stream is to block."""
        return self in {StreamKind.STATIC, StreamKind.WIDE, StreamKind.HELD_OUT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One abstract test case.

    Example: `Scenario(scenario_id="S-07-12", family="7", harmful=True)`
    """

    scenario_id: str
    family: str
    """Group for slices and for the cluster bootstrap."""
    harmful: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What the attacker wrote for a scenario, as the environment reads it."""

    scenario_id: str
    text: str
    """The prompt that guard and target see (an attacker's private notes are already cut off)."""
    faithful: bool
    """Well formed, about this scenario, and its label did not drift."""
    technique: str
    """Name of the technique family, `""` when it could not be read."""
    signature: str
    """Key for counting novelty: two attacks with one signature are the same idea."""
    reserved: bool = False
    """Uses a technique that training must never show to the guard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPrompt:
    """A prompt with its exact label."""

    scenario_id: str
    text: str
    harmful: bool
    technique: str
    stream: StreamKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What the attacker should write for a scenario: its supervised start."""

    scenario: Scenario
    completion: str
    """Exactly as the attacker would emit it, opening included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A target's answer.

    Example: `Response(text="o7 a12 COMPLY", finish_reason="stop")`
    """

    text: str
    finish_reason: str = "stop"
    refusal: bool = False
    """The endpoint said itself that it refused (content filter, `message.refusal`)."""
    error: str | None = None
    """The call failed for good; such an item has no outcome and is never dropped silently."""
    attempts: int = 1
    latency_seconds: float = 0.0


class Label(StrEnum):
    """Outcome of judging one response."""

    HARMFUL = "harmful"
    SAFE = "safe"
    REFUSAL = "refusal"
    UNSCORED = "unscored"

    @property
    def scored(self) -> bool:
        """False when the judge abstained or the target failed."""
        return self is not Label.UNSCORED


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A judge's word on one response."""

    label: Label
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTemplate:
    """How the guard is asked.

    The verdict score is `logit(unsafe) - logit(safe)` after the last token of `answer`.
    Example: `GuardTemplate(system="Policy ...", answer="Verdict:", unsafe=" unsafe", safe=" safe")`
    """

    system: str
    """Fixed policy text, first in the prompt so that it can be encoded once; may be empty."""
    answer: str
    """Start of the guard's own turn, up to the verdict."""
    unsafe: str
    """A single token of the environment's tokenizer."""
    safe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingText:
    """One text of a pre-training or fine-tuning corpus.

    The loss counts every token of `completion` given `text`, and, for read-out models, `readout[i]`
    at the (len(readout) - i)-th last token of `text` (an empty string there means no loss).
    """

    text: str
    completion: str = ""
    readout: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """Either a closed word list, or the name of a pretrained model whose tokenizer is used."""

    words: tuple[str, ...] = ()
    """Word level: tokens are separated by one space. The first word is the padding."""
    chat_template: str = ""
    """Jinja chat template (transformers' dialect) of a word-level tokenizer."""
    pretrained: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """How to make one built-in model; equal recipes in one world give equal weights.

    Example: `ModelRecipe(corpus="t_s", init_from="base", steps=600, batch=128, lr=1e-3)`
    """

    pretrained: str = ""
    """Name of a pretrained model; nothing below applies then."""
    arch: Literal["llama", "gru"] = "llama"
    width: int = 64
    layers: int = 2
    heads: int = 4
    corpus: str = ""
    steps: int = 0
    batch: int = 128
    lr: float = 3e-3
    """Peak of the one-cycle schedule."""
    init_from: str = ""
    """Recipe whose weights it starts from; architecture is that one's."""
    max_length: int = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """How to build or reach a target.

    Example: `TargetSpec(name="B_far", role="black_box", overlap=0.0, answer="Q1 Q2 V")`
    """

    name: str
    role: Literal["surrogate", "black_box"]
    overlap: float | None = None
    """Share of the surrogate's hidden weaknesses that it has too, in [0, 1]; None if unknown."""
    arch: str = ""
    """Architecture in words, for tables."""
    answer: str = ""
    """Read-out suffix of a tiny model; its answer is the argmax word at each of these positions."""
    max_new_tokens: int = 0
    """Above 0: the target generates, greedily; 0: it is a read-out model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One game: scenario, attack, verdict, response, judgement and both rewards."""

    scenario: Scenario
    attack: Attack
    p_block: float
    """Probability of a block at the guard's calibrated operating point, in [0, 1]."""
    judgement: Judgement
    """Of the response to the *un-blocked* prompt: what would have happened."""
    attacker_reward: float
    """NaN if nobody could judge the response: such an attempt teaches the attacker nothing."""
    guard_gain: float
    """Reward of blocking minus reward of allowing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """Points at one committed checkpoint.

    Example: `CheckpointRef(run_url="file:///tmp/s/r1", step=1200, episode=48000, attempt=3,
    writer="1a2b3c4d", name="step-00001200-a0003-1a2b3c4d", sha256="ab12...")`
    """

    run_url: str
    step: int
    episode: int
    attempt: int
    writer: str
    name: str
    """Directory below `<run_url>/checkpoints/`."""
    sha256: str
    """Of `manifest.json`, which holds the sha256 of every other file."""

    @property
    def url(self) -> str:
        """Where it lies; `tsgb eval-local --checkpoint-path` takes it."""
        return f"{self.run_url}/checkpoints/{self.name}"
