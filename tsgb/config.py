"""What a run is: frozen, validated, hashed. It reads no environment and knows no torch.

A `RunConfig` plus the code version determines every byte of a training run. Environments bring
their own sizes through `Environment.profile`; the defaults here are those of the glyph world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tsgb.errors import ConfigError

SCHEMA_VERSION = 1

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Profile(StrEnum):
    """How much is spent."""

    SMOKE = "smoke"
    DEMO = "demo"
    PAPER = "paper"


class Arm(StrEnum):
    """What is trained: self-play, its baselines at equal guard steps, and its ablations."""

    SELFPLAY = "selfplay"
    SFT = "sft"
    """Static labelled data only."""
    FROZEN = "frozen"
    """Against the warmed-up attacker, which never learns again (same novelty and quotas)."""
    NO_POOL = "no_pool"
    NO_TWINS = "no_twins"
    NO_REPLAY = "no_replay"
    NO_QUOTA = "no_quota"
    """No attack's opening (technique) is prescribed: the attacker has to find it."""
    FROZEN_NO_QUOTA = "frozen_no_quota"
    """What `no_quota` is measured against."""
    EXACT_PG = "exact_pg"
    SAMPLED_PG = "sampled_pg"


BASELINES = (Arm.SFT, Arm.FROZEN)
ABLATIONS = (Arm.NO_POOL, Arm.NO_TWINS, Arm.NO_REPLAY, Arm.NO_QUOTA, Arm.FROZEN_NO_QUOTA)
"""One ingredient left out each; `paper` trains them."""
LOSSES = (Arm.EXACT_PG, Arm.SAMPLED_PG)
"""Other losses of the guard, on request."""
SEEDS = {Profile.SMOKE: 1, Profile.DEMO: 1, Profile.PAPER: 5}
"""How many an experiment trains, from its own on."""


def default_arms(profile: Profile) -> tuple[Arm, ...]:
    """Self-play and its baselines; the ablations too where there is time for them."""
    arms = (Arm.SELFPLAY, *BASELINES)
    return (*arms, *ABLATIONS) if profile is Profile.PAPER else arms


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(_Frozen):
    """How a role's weights sit on the frozen base."""

    adapter: Literal["full", "lora"] = "full"
    """`lora`: a peft LoRA adapter a role. `full`: whole weights a role, for tiny bases."""
    rank: Positive = 16
    """LoRA rank r; alpha = r."""
    pretrained: str = ""
    """Another pretrained base than the world's: a directory that `save_pretrained` wrote."""


class AttackerConfig(_Frozen):
    """The attacker's supervised start and its leave-one-out policy gradient."""

    sft_steps: Count = 150
    sft_batch: Positive = 64
    sft_lr: float = 1e-3
    lr: float = 7e-4
    warmup_steps: Count = 40
    """Updates on the bare surrogate, before any guard is in the way."""
    group_size: Annotated[int, Field(ge=2)] = 4
    """K prompts a scenario; each one's baseline is the mean reward of the other K - 1."""
    scenarios_per_step: Positive = 40
    benign_share: Share = 0.2
    forced_share: Share = 0.3
    """Share of groups whose opening (technique) is drawn uniformly: a quota against collapse."""
    temperature: float = 1.0
    max_new_tokens: Positive = 17
    kl: float = 0.02
    entropy: float = 0.01
    clip: float = 0.2
    max_grad_norm: float = 1.0
    found_bonus: float = 0.2
    """lambda_v: paid for a violation even if the guard would have blocked it."""
    novelty: float = 0.3
    """lambda / sqrt(1 + n(signature)), paid only if faithful and violating."""
    unfaithful_reward: float = -0.3
    false_alarm_reward: float = 0.3
    """Times p_block, on benign scenarios."""
    guard_temperature: float = 2.0
    """T in p_block = sigmoid((z - tau) / T)."""
    anneal: Share = 0.3
    """The guard's weight rises from 0 to 1 over this share of each attacker phase."""


class GuardConfig(_Frozen):
    """The guard's supervised start and its policy gradient."""

    loss: Literal["exact_pg", "weighted_ce", "sampled_pg"] = "weighted_ce"
    """Both gradients of the policy die where the guard is confidently wrong; on four tuning seeds
    that cost self-play and the frozen baseline half of their protection alike."""
    sft_steps: Count = 150
    sft_batch: Positive = 128
    sft_lr: float = 1e-3
    lr: float = 7e-4
    lr_final: Share = 0.1
    """The rate decays linearly to this share of `lr` over the whole run's guard updates."""
    batch: Positive = 192
    current_share: Share = 0.2
    """Of the batch: attacks of this round."""
    pool_share: Share = 0.15
    twins_share: Share = 0.1
    """The rest of the batch is clean: static harmful and benign, and wide benign traffic."""
    reward_miss: float = -2.0
    """Allowing a prompt that violates. Blocking anything harmful earns +1."""
    reward_lucky: float = -0.5
    """Allowing a harmful prompt that the surrogate did not fall for."""
    kl: float = 0.0
    """To the base's own verdict."""
    entropy: float = 0.02
    max_grad_norm: float = 1.0
    lm_replay: float = 0.5
    """Weight of the language-model loss on unlabelled text."""
    replay_batch: Positive = 64
    dual_lr: float = 1.0
    """Ascent rate of mu, the extra price of a false positive."""
    dual_max: float = 4.0


class SelfPlayConfig(_Frozen):
    """The outer loop."""

    rounds: Count = 5
    attacker_steps: Count = 30
    guard_steps: Count = 100
    pool: bool = True
    """Replay attacks of earlier rounds, weighted by the Hedge mixture over the payoff matrix."""
    twins: bool = True
    reinitialise: bool = True
    """Attackers start from the warm-up and from the supervised start in turn."""
    buffer: Positive = 1024
    """Newest attacks kept of the current round."""
    resample: Share = 0.5
    """Share of the buffer that is sampled anew from the round's final attacker, with the opening
    quota, when its phase ends; the rest is what it wrote while it learned."""
    payoff_attacks: Positive = 256
    """Attacks a pool member is represented by."""


class CalibrationConfig(_Frozen):
    """The operating point: Neyman-Pearson order statistic on benign calibration prompts."""

    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    num: Positive = 1500
    hard_share: Share = 0.0
    """Share of hard-benign prompts in the calibration sample."""
    twins_share: Share = 0.0


class EvaluationConfig(_Frozen):
    """Stage 2."""

    best_responses: Positive = 3
    """Fresh attackers a guard and target, each from its own supervised start; the worst counts."""
    warmup_steps: Count = 30
    attack_steps: Count = 40
    reserved: bool = True
    """Whether best responses may use the techniques that training never showed."""
    prompts: Positive = 768
    """Attack attempts a best response is scored on (test scenarios)."""
    scripted: Positive = 1000
    """Prompts a scripted stream."""
    variance_batches: Count = 60
    """Batches that the variance of the guard's policy gradient is measured on; 0: not measured."""
    bootstrap: Positive = 10_000
    max_error_rate: Share = 0.02


class Phase(NamedTuple):
    """Updates [start, stop) of one kind."""

    kind: Literal["sft_attacker", "warmup", "sft_guard", "attacker", "guard"]
    round: int
    start: int
    stop: int


class RunConfig(_Frozen):
    """Everything that determines a training run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    profile: Profile = Profile.DEMO
    env: str = "glyph"
    world_seed: Count = 0
    """Draws the world: hidden policy, weaknesses of the targets, their weights."""
    seed: Count = 0
    """Draws everything that happens in the world."""
    arm: Arm = Arm.SELFPLAY
    model: ModelConfig = ModelConfig()
    attacker: AttackerConfig = AttackerConfig()
    guard: GuardConfig = GuardConfig()
    selfplay: SelfPlayConfig = SelfPlayConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    segments: Positive = 3
    """Prefect task runs that the training is cut into."""
    checkpoint_interval: Positive | None = None
    """Updates between two checkpoints; None: a time, from measured stall and failures."""

    @model_validator(mode="after")
    def _shares_fit(self) -> RunConfig:
        guard = self.guard
        total = guard.current_share + guard.pool_share + guard.twins_share
        if total > 1:
            raise ValueError(
                f"guard shares add up to {total:.2f}; current_share + pool_share + twins_share "
                "must be at most 1"
            )
        return self

    @property
    def attacker_learns(self) -> bool:
        """Whether the attacker goes on learning after its warm-up."""
        return self.arm not in {Arm.SFT, Arm.FROZEN, Arm.FROZEN_NO_QUOTA}

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def phases(self) -> list[Phase]:
        """The schedule: which update is of which kind."""
        plan: list[tuple[Any, int, int]] = []
        if self.arm is not Arm.SFT:
            plan += [
                ("sft_attacker", 0, self.attacker.sft_steps),
                ("warmup", 0, self.attacker.warmup_steps),
            ]
        plan.append(("sft_guard", 0, self.guard.sft_steps))
        for index in range(self.selfplay.rounds):
            if self.attacker_learns:
                plan.append(("attacker", index, self.selfplay.attacker_steps))
            plan.append(("guard", index, self.selfplay.guard_steps))
        phases: list[Phase] = []
        start = 0
        for kind, index, length in plan:
            if length:
                phases.append(Phase(kind, index, start, start + length))
                start += length
        return phases

    @property
    def total_steps(self) -> int:
        """Updates of the whole run, both players and their supervised starts."""
        phases = self.phases()
        return phases[-1].stop if phases else 0

    def segment_target(self, index: int) -> int:
        """The update at which segment `index` (from 0) ends."""
        return self.total_steps * (index + 1) // self.segments


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested overrides, the last one winning.

    >>> merge({"guard": {"batch": 64}}, {"guard": {"lr": 1e-3}})
    {'guard': {'batch': 64, 'lr': 0.001}}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                merged[key] = merge(old, value)  # pyright: ignore[reportUnknownArgumentType]
            else:
                merged[key] = value
    return merged


def make_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge layers of overrides, the last one winning, and validate.

    Raises:
        ConfigError: a value breaks its rule, or a key does not exist.
    """
    try:
        return RunConfig.model_validate(merge(*layers))
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error


def parse_config(text: str | bytes, origin: str) -> RunConfig:
    """Read a stored config.

    Raises:
        ConfigError: not JSON, of another schema version, or with a value out of range.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{origin} is not JSON ({error}); it was written by something else"
        ) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{origin} has schema_version {version!r}, this tsgb reads {SCHEMA_VERSION}: "
            "resume it with the version that wrote it, or start a new run with another --run-id"
        )
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_one_line(error)}") from error


def arm_overrides(arm: Arm) -> dict[str, Any]:
    """What an arm changes in the self-play recipe; everything else is equal."""
    changes: dict[Arm, dict[str, Any]] = {
        Arm.NO_POOL: {"selfplay": {"pool": False}},
        Arm.NO_TWINS: {"selfplay": {"twins": False}},
        Arm.NO_REPLAY: {"guard": {"lm_replay": 0.0}},
        Arm.NO_QUOTA: {"attacker": {"forced_share": 0.0}},
        Arm.FROZEN_NO_QUOTA: {"attacker": {"forced_share": 0.0}},
        Arm.EXACT_PG: {"guard": {"loss": "exact_pg"}},
        Arm.SAMPLED_PG: {"guard": {"loss": "sampled_pg"}},
    }
    return {"arm": arm.value, **changes.get(arm, {})}


def arm_run_id(run_id: str, arm: Arm) -> str:
    """Run id of an arm: the main run's own for self-play, a sibling's otherwise."""
    return run_id if arm is Arm.SELFPLAY else f"{run_id}.{arm.value}"


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "config"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where} = {first.get('input')!r}: {first['msg']}{more}"
