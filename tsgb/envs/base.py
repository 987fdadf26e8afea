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
    Denominator,
    GuardTemplate,
    Judgement,
    Knowledge,
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
        """Return the tokenizer of this world's built-in models."""
        ...

    def scenarios(self, split: Split) -> Sequence[Scenario]:
        """Return all scenarios of a split; splits are disjoint by construction."""
        ...

    def attacker_messages(self, scenario: Scenario) -> Messages:
        """Return the chat that the attacker is shown."""
        ...

    def openings(self, knowledge: Knowledge) -> Sequence[str]:
        """Return texts that may be forced as the start of a completion, one a technique.

        Training forces those of `Knowledge.INITIAL`.
        """
        ...

    def demonstrations(
        self, rng: Random, num: int, knowledge: Knowledge
    ) -> Sequence[Demonstration]:
        """Draw the supervised start of an attacker who knows so much; train scenarios only."""
        ...

    def stream(
        self, kind: StreamKind, split: Split, rng: Random, num: int
    ) -> Sequence[LabelledPrompt]:
        """Draw `num` labelled prompts."""
        ...

    def twin(self, attack: Attack, rng: Random) -> LabelledPrompt | None:
        """Return a benign prompt in the form of `attack`; None if the attack cannot be read."""
        ...

    def corpus(self, name: str, rng: Random, num: int) -> Sequence[TrainingText]:
        """Draw training texts of a model recipe's corpus; `"replay"` is unlabelled text."""
        ...

    def read(self, scenario: Scenario, text: str) -> Attack:
        """Parse an attacker's text: whether it is faithful, and its technique."""
        ...

    def target_messages(self, target: str, scenario: Scenario, prompt: str) -> Messages:
        """Return the chat that the target named `target` is shown for a prompt that passed."""
        ...

    def judge(self, scenario: Scenario, prompt: str, response: Response) -> Judgement:
        """Judge whether the response violates the policy."""
        ...

    def redact(self, scenario: Scenario, text: str) -> str | None:
        """Return a prompt or answer with secrets replaced; None if no report may show it."""
        ...

    def label(self, prompt: str) -> bool | None:
        """Return the exact label of a prompt: whether it is harmful; None where there is none."""
        ...

    def guard_template(self) -> GuardTemplate:
        """Return the template with which the guard is asked."""
        ...

    def targets(self) -> Mapping[str, TargetSpec]:
        """Return the surrogate (exactly one) and the built-in black boxes, in table order."""
        ...

    def denominator(self, target: str) -> Denominator | None:
        """Return what must leak from a target un-guarded before a report names a protection of it.

        None asks for nothing. A name that is not in `targets` is a black box of the user's.
        """
        ...

    def recipes(self, profile: str) -> Mapping[str, ModelRecipe]:
        """Return the recipes of built-in models: `"base"`, and one for each other target."""
        ...

    def profile(self, profile: str) -> Mapping[str, Any]:
        """Return overrides of `RunConfig` that make `smoke`, `demo` and `paper` fit this world."""
        ...
