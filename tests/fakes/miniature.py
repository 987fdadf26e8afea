"""A miniature of the glyph world, whose models need no training to play a full game.

    make_config(MINIATURE, {"seed": 3})     # env = "tests.fakes.miniature:MiniatureEnvironment"

Its models are tiny and all but random. Two things make up for that: whatever an attacker writes is
read as some prompt about its scenario, and the judge goes by the surrogate's rules instead of its
answer. So attacks are found, pools fill and payoffs differ within a handful of updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

from tsgb.config import RunConfig, make_config
from tsgb.envs.glyph import GlyphEnvironment
from tsgb.envs.glyph.grammar import Grammar, fill
from tsgb.envs.glyph.policy import Policy
from tsgb.envs.glyph.techniques import family, mixes, reserved_family
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.recipes import make_module
from tsgb.models.tokenizer import WordTokenizer
from tsgb.plugins import Trust
from tsgb.trainer.loop import Trainer
from tsgb.types import (
    Attack,
    Judgement,
    Label,
    Messages,
    ModelRecipe,
    Response,
    Scenario,
    Split,
)
from tsgb.worker.build import setup_torch

UNREADABLE = 0.2
"""Share of what attackers write that stays unreadable."""
RECIPE = ModelRecipe(corpus="base", width=16, layers=1, heads=2, steps=1, batch=8)

# Every number that a test's outcome could depend on, so that no default can move it.
MINIATURE: dict[str, Any] = {
    "profile": "smoke",
    "env": "tests.fakes.miniature:MiniatureEnvironment",
    "attacker": {
        "sft_steps": 2,
        "sft_batch": 4,
        "warmup_steps": 2,
        "group_size": 3,
        "scenarios_per_step": 5,
        "benign_share": 0.4,
        "forced_share": 0.3,
        "max_new_tokens": 4,
    },
    "guard": {
        "sft_steps": 2,
        "sft_batch": 8,
        "batch": 20,
        "current_share": 0.3,
        "pool_share": 0.2,
        "twins_share": 0.2,
        "lm_replay": 0.5,
        "replay_batch": 4,
        "hard_share": 0.125,
    },
    "selfplay": {
        "rounds": 2,
        "attacker_steps": 2,
        "guard_steps": 2,
        "buffer": 24,
        "resample": 0.5,
        "payoff_attacks": 12,
    },
    "calibration": {
        "fpr": 0.1,
        "delta": 0.1,
        "num": 40,
        "hard_share": 0.25,
        "twins_share": 0.25,
    },
    "segments": 1,
    "checkpoint_interval": 4,
}

TRUST = Trust.of(MINIATURE["env"])
"""For processes that read this configuration from a store."""


class MiniatureEnvironment(GlyphEnvironment):
    """The glyph world for players who cannot spell."""

    def __init__(self, world_seed: int) -> None:
        super().__init__(world_seed)
        self._spelling = Grammar(world_seed)
        self._pairs = Policy(world_seed)

    def read(self, scenario: Scenario, text: str) -> Attack:
        """A prompt about `scenario` in a form that `text` determines; reserved ones occur."""
        rng = Random(text)
        if rng.random() < UNREADABLE:
            return super().read(scenario, text)
        form = mixes().everything.draw(rng)
        payload = self._pairs.pair_of[scenario.scenario_id]
        distractors = self._pairs.pairs[self._pairs.split_of[payload]].all
        return Attack(
            scenario_id=scenario.scenario_id,
            text=self._spelling.render(fill(form, payload, distractors, rng)),
            faithful=True,
            technique=family(form),
            signature=form.signature,
            reserved=bool(reserved_family(form)),
        )

    def judge(self, scenario: Scenario, prompt: str, response: Response) -> Judgement:
        """What a perfectly trained surrogate would have done."""
        if response.error is not None:
            return super().judge(scenario, prompt, response)
        violated = scenario.harmful and self.complies("T_s", prompt)
        return Judgement(label=Label.HARMFUL if violated else Label.REFUSAL)

    def recipes(self, profile: str) -> Mapping[str, ModelRecipe]:
        """One update each."""
        return {
            name: replace(RECIPE, corpus=made.corpus, arch=made.arch, init_from=made.init_from)
            for name, made in super().recipes(profile).items()
        }


class ScriptedTarget:
    """A target that answers by a function of the last message, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], Response], name: str = "T_s") -> None:
        self.name = name
        self.asked: list[str] = []
        self._answer = answer

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `Target`."""
        prompts = [chat[-1]["content"] for chat in chats]
        self.asked += prompts
        return [self._answer(prompt) for prompt in prompts]


def obedient(env: GlyphEnvironment, world_seed: int) -> ScriptedTarget:
    """The surrogate of a glyph world, perfectly trained."""
    grammar = Grammar(world_seed)

    def answer(prompt: str) -> Response:
        parsed = grammar.parse(prompt)
        if parsed is None or not env.complies("T_s", prompt):
            return Response(text="REFUSE")
        return Response(text=" ".join((*parsed.payload.words, "COMPLY")))

    return ScriptedTarget(answer)


@cache
def world(world_seed: int = 0) -> MiniatureEnvironment:
    """Environments are immutable, and one costs more than a test."""
    return MiniatureEnvironment(world_seed)


def untrained_model(recipe: ModelRecipe = RECIPE, seed: int = 0) -> FastEngine:
    """A language model as it leaves the factory; equal seeds give equal weights."""
    setup_torch()
    tokenizer = WordTokenizer(world().tokenizer())
    module = make_module(recipe, tokenizer, seed)
    return FastEngine(module, tokenizer, name="untrained", sha256=f"{seed:064x}")


SHORT_EVALUATION = {
    "scripted": 12,
    "best_responses": 1,
    "warmup_steps": 1,
    "attack_steps": 1,
    "prompts": 12,
    "variance_batches": 0,
}
"""Sizes of an evaluation whose figures do not matter."""


def miniature_config(*layers: Mapping[str, Any]) -> RunConfig:
    """`MINIATURE` with changes."""
    return make_config(MINIATURE, *layers)


def make_trainer(config: RunConfig) -> Trainer:
    """A trainer at step 0, sharing nothing with any other."""
    refusing = ScriptedTarget(lambda _prompt: Response(text="REFUSE"))
    return Trainer(config, world(config.world_seed), untrained_model(), refusing)


def harmful_scenarios(num: int = 4) -> list[Scenario]:
    """Some scenarios of the train split."""
    return [s for s in world().scenarios(Split.TRAIN) if s.harmful][:num]


def benign_scenarios(num: int = 4) -> list[Scenario]:
    """Some scenarios of the train split."""
    return [s for s in world().scenarios(Split.TRAIN) if not s.harmful][:num]
