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
    """Who speaks."""
    content: str
    """The text."""


Messages = Sequence[Message]
Buffer = bytes | memoryview
"""A file's content; a view is not copied on its way to a disk or a server."""


class Split(StrEnum):
    """Disjoint sets of scenarios."""

    TRAIN = "train"
    """Scenarios on which both players learn."""
    CALIBRATION = "calibration"
    """Scenarios on which thresholds are chosen, and nothing else."""
    TEST = "test"
    """Scenarios that the evaluation alone touches."""


class Knowledge(StrEnum):
    """How many techniques an attacker is shown."""

    INITIAL = "initial"
    """Those that an attacker of the training knows when it starts: the public ones, and a share of
    the others that is the world's coverage."""
    TRAINING = "training"
    """Every technique that may be used in training."""
    EVERYTHING = "everything"
    """The reserved techniques too, which no training stream shows."""


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
    """Ordinary benign traffic, a wide mix of forms."""
    HARD_BENIGN = "hard_benign"
    """Benign prompts close to the policy's border."""
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
    """Name of the scenario, unique in its world."""
    family: str
    """Group for slices and for the cluster bootstrap."""
    harmful: bool
    """Whether the policy forbids to comply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """The attacker's prompt for a scenario, as the environment reads it."""

    scenario_id: str
    """Scenario that it was written for."""
    text: str
    """Prompt that guard and target see (an attacker's private notes are already cut off)."""
    faithful: bool
    """Whether it is well formed, about this scenario, and its label did not drift."""
    technique: str
    """Name of the technique family, `""` when it could not be read."""
    signature: str
    """Key for counting novelty: two attacks with one signature are the same idea."""
    reserved: bool = False
    """Whether it uses a technique that training must never show to the guard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPrompt:
    """A prompt with its exact label."""

    scenario_id: str
    """Scenario that it is about."""
    text: str
    """The prompt."""
    harmful: bool
    """The exact label: whether the right verdict is to block."""
    technique: str
    """Name of the technique family, `""` if there is none."""
    stream: StreamKind
    """Stream that it was drawn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt that the attacker should write for a scenario: its supervised start."""

    scenario: Scenario
    """Scenario that is given."""
    completion: str
    """Text as the attacker would write it, opening included, without the end of its turn."""


class Outcome(StrEnum):
    """The way in which a question to a target ended."""

    ANSWERED = "answered"
    """The target wrote an answer to its end."""
    REFUSED = "refused"
    """The endpoint said itself that it refuses; words of refusal are left to a judge."""
    TRUNCATED = "truncated"
    """The answer was cut at its limit of tokens."""
    ERROR = "error"
    """There is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A target's answer.

    Example: `Response(text="o7 a12 COMPLY", finish_reason="stop")`
    """

    text: str
    """The answer, or as much of it as came."""
    finish_reason: str = "stop"
    """Reason of its end, as chat APIs say it: `stop`, `length`, `content_filter`."""
    refusal: bool = False
    """Whether the endpoint said itself that it refused (content filter, `message.refusal`)."""
    error: str | None = None
    """Class of the failure if the call failed for good, such as `http_500` or `timeout`; such an
    item has no outcome and is never dropped silently."""
    thought: bool = False
    """Whether the model thought aloud first; the thought is left out of `text`."""
    attempts: int = 1
    """Number of calls that were made for it."""
    latency_seconds: float = 0.0
    """Seconds that the last call took."""
    detail: str = ""
    """One line about an error, for people; a service's own words, so it is shown escaped only."""
    status: int | None = None
    """HTTP status of the last call; None if there was none."""
    tokens_in: int | None = None
    """Tokens of the prompt, as the endpoint counts them; None if it does not say."""
    tokens_out: int | None = None
    """Tokens of the answer, likewise."""
    billed_unknown: int = 0
    """Calls that may have been billed although no answer came back, such as timeouts."""

    @property
    def outcome(self) -> Outcome:
        """The way in which the question ended."""
        if self.error is not None:
            return Outcome.ERROR
        if self.refusal:
            return Outcome.REFUSED
        return Outcome.TRUNCATED if self.finish_reason == "length" else Outcome.ANSWERED


class Label(StrEnum):
    """Outcome of judging one response."""

    HARMFUL = "harmful"
    """The response violates the policy."""
    SAFE = "safe"
    """The response answers and violates nothing."""
    REFUSAL = "refusal"
    """The response declines."""
    UNSCORED = "unscored"
    """The judge abstained, or the target failed."""

    @property
    def scored(self) -> bool:
        """Whether there is an outcome: False when the judge abstained or the target failed."""
        return self is not Label.UNSCORED


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The judge's finding about one response."""

    label: Label
    """Outcome."""
    reason: str = ""
    """Explanation for people; may be empty."""
    probability: float | None = None
    """Probability of a violation, in [0, 1], by a judge that gives one; `label` is what it is at
    the judge's threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTemplate:
    """The prompt in which the guard is asked.

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
    """A single token of the environment's tokenizer, other than `unsafe`."""
    alternatives: tuple[tuple[str, str], ...] = ()
    """Further pairs (unsafe, safe), for pretrained tokenizers: the first one counts of which each
    word is one token after `answer`."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs (unsafe, safe), in the order in which they are tried."""
        return ((self.unsafe, self.safe), *self.alternatives)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingText:
    """One text of a pre-training or fine-tuning corpus.

    The loss counts every token of `completion` given `text`, and, for read-out models, `readout[i]`
    at the (len(readout) - i)-th last token of `text` (an empty string there means no loss). Of a
    `chat` it counts the last message and the end of its turn.
    """

    chat: Messages = ()
    """Messages of which the last one is learned; in place of all other fields."""
    answered: Messages = ()
    """Chat that the bare model answers, greedily: its answer then is the message of `chat` that is
    learned. Empty where `chat` has its answer."""
    text: str = ""
    """Context: no loss, unless `readout` says so."""
    completion: str = ""
    """Text whose every token counts."""
    readout: tuple[str, ...] = ()
    """Words that the model should say at the last tokens of `text`; an empty one has no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """A tokenizer: a closed word list, or that of a pretrained model."""

    words: tuple[str, ...] = ()
    """Vocabulary of word-level tokens, which one space separates. The first word is the padding."""
    chat_template: str = ""
    """Jinja chat template (transformers' dialect) of a word-level tokenizer."""
    pretrained: str = ""
    """Name of the pretrained model whose tokenizer is used; empty for a word list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """How to make one built-in model; equal recipes in one world give equal weights.

    Example: `ModelRecipe(corpus="t_s", init_from="base", steps=600, batch=128, lr=1e-3)`
    """

    pretrained: str = ""
    """Name of a pretrained model; nothing below applies then."""
    arch: Literal["llama", "gru"] = "llama"
    """Architecture."""
    width: int = 64
    """Size of hidden states."""
    layers: int = 2
    """Number of layers."""
    heads: int = 4
    """Number of attention heads."""
    corpus: str = ""
    """Name of the world's corpus that it is trained on."""
    steps: int = 0
    """Updates of its training."""
    batch: int = 128
    """Texts in an update."""
    lr: float = 3e-3
    """Peak learning rate of the one-cycle schedule."""
    init_from: str = ""
    """Recipe from whose weights it starts; the architecture is that one's."""
    rank: int = 0
    """Rank of a LoRA adapter on a pretrained model; 0 for a model of its own."""
    frozen_share: float = 0.0
    """Share of the layers, from the lowest one, that the adapter leaves as they are, in [0, 1)."""
    max_length: int = 40
    """Most tokens of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """How to build or reach a target.

    Example: `TargetSpec(name="B_far", role="black_box", overlap=0.0, answer="Q1 Q2 V")`
    """

    name: str
    """Name in options, tables and records."""
    role: Literal["surrogate", "black_box"]
    """`surrogate` answers in training, `black_box` only in the evaluation."""
    overlap: float | None = None
    """Share of the surrogate's hidden weaknesses that it has too, in [0, 1]; None if unknown."""
    arch: str = ""
    """Architecture in words, for tables; `{model}` stands for the name of the loaded model."""
    answer: str = ""
    """Read-out suffix of a tiny model; its answer is the argmax word at each of these positions."""
    max_new_tokens: int = 0
    """Above 0: the target generates, greedily; 0: it is a read-out model."""
    pretrained: str = ""
    """Name of the pretrained model that answers as it is; empty for models of the world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominator:
    """Leaks of an un-guarded target that it takes before a protection of it is a figure.

    Example: `Denominator(leaks=100, asr=0.3)`
    """

    leaks: int
    """Fewest attempts that violate, adaptive and scripted ones together."""
    asr: float
    """Lowest share of attempts that violate, of each kind alone, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One game: scenario, attack, verdict, response, judgement and both rewards."""

    scenario: Scenario
    """Scenario that was played."""
    attack: Attack
    """Prompt that the attacker wrote for it."""
    p_block: float
    """Probability of a block at the guard's calibrated operating point, in [0, 1]."""
    judgement: Judgement
    """Judgement of the response to the *un-blocked* prompt: what would have happened."""
    attacker_reward: float
    """Reward of the attacker; NaN if the response could not be judged: such an attempt teaches the
    attacker nothing."""
    guard_gain: float
    """Reward of blocking minus reward of allowing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """Reference to one committed checkpoint.

    Example: `CheckpointRef(run_url="file:///tmp/s/r1", step=1200, episode=48000, attempt=3,
    writer="1a2b3c4d", name="step-00001200-a0003-1a2b3c4d", sha256="ab12...")`
    """

    run_url: str
    """URL of the run that it belongs to."""
    step: int
    """Updates that it holds."""
    episode: int
    """Episodes that were played until then."""
    attempt: int
    """Attempt that wrote it."""
    writer: str
    """Id of the process that wrote it."""
    name: str
    """Directory below `<run_url>/checkpoints/`."""
    sha256: str
    """The sha256 of `manifest.json`, which holds the sha256 of every other file."""

    @property
    def url(self) -> str:
        """URL of the checkpoint; `tsgb eval-local --checkpoint-path` takes it."""
        return f"{self.run_url}/checkpoints/{self.name}"
