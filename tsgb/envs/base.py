"""The seam between the game and everything that trains, attacks or evaluates in it.

An implementation knows its grammar, its hidden policy and its judge. It does not know models,
optimizers, stores or flows, and it imports no torch. All randomness comes in as a generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Protocol

from tsgb.types import (
    Attack,
    Demonstration,
    GuardTemplate,
    Judgement,
    LabelledPrompt,
    Messages,
    ModelRecipe,
    Response,
    Scenario,
    Split,
    StreamKind,
    TargetSpec,
    TokenizerSpec,
    TrainingText,
)


class Environment(Protocol):
    """A world. Implementations are immutable: two calls with equal arguments give equal answers."""

    name: str
    limits: str
    """One sentence, printed in every report: what results in this world do not show."""

    def tokenizer(self) -> TokenizerSpec:
        """The tokenizer of this world's built-in models."""
        ...

    def scenarios(self, split: Split) -> Sequence[Scenario]:
        """All scenarios of a split; splits are disjoint by construction."""
        ...

    def attacker_messages(self, scenario: Scenario) -> Messages:
        """What the attacker is shown."""
        ...

    def openings(self, *, reserved: bool) -> Sequence[str]:
        """Texts that may be forced as the start of an attacker's completion, one a technique.

        With `reserved`, also those of held-out techniques (for best responses in the evaluation).
        """
        ...

    def demonstrations(self, rng: Random, num: int) -> Sequence[Demonstration]:
        """The attacker's supervised start; never a reserved technique, train scenarios only."""
        ...

    def stream(
        self, kind: StreamKind, split: Split, rng: Random, num: int
    ) -> Sequence[LabelledPrompt]:
        """Draw `num` labelled prompts."""
        ...

    def twin(self, attack: Attack, rng: Random) -> LabelledPrompt | None:
        """A benign prompt in the very form of `attack`; None if the attack cannot be read."""
        ...

    def corpus(self, name: str, rng: Random, num: int) -> Sequence[TrainingText]:
        """Training texts for a built-in model recipe; `"replay"` is the unlabelled replay text."""
        ...

    def read(self, scenario: Scenario, text: str) -> Attack:
        """Parse what the attacker wrote: faithful? which technique?"""
        ...

    def target_messages(self, target: str, scenario: Scenario, prompt: str) -> Messages:
        """What the target named `target` is shown for a prompt that passed."""
        ...

    def judge(self, scenario: Scenario, prompt: str, response: Response) -> Judgement:
        """Did the response violate the policy?"""
        ...

    def redact(self, scenario: Scenario, text: str) -> str | None:
        """A prompt or an answer as a report may show it, secrets replaced; None: show none."""
        ...

    def label(self, prompt: str) -> bool | None:
        """The oracle: is this prompt harmful? None where no exact label exists."""
        ...

    def guard_template(self) -> GuardTemplate:
        """How the guard is asked."""
        ...

    def targets(self) -> Mapping[str, TargetSpec]:
        """The surrogate (exactly one) and the built-in black boxes, in table order."""
        ...

    def recipes(self, profile: str) -> Mapping[str, ModelRecipe]:
        """How built-in models are made: `"base"`, and one entry a target that is not the base."""
        ...

    def profile(self, profile: str) -> Mapping[str, Any]:
        """Overrides of `RunConfig` that make `smoke`, `demo` and `paper` fit this world."""
        ...
