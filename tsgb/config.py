"""The configuration of a run: frozen, validated, hashed. It reads no environment, knows no torch.

A `RunConfig` plus the code version determines every byte of a training run. Environments bring
their own sizes through `Environment.profile`; the defaults here are those of the glyph world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tsgb.errors import ConfigError

SCHEMA_VERSION = 1

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Profile(StrEnum):
    """The scale of a run: how much compute it may take."""

    SMOKE = "smoke"
    """About a minute: enough to see every step work."""
    DEMO = "demo"
    """Minutes on two cores: enough to see a direction on one seed."""
    PAPER = "paper"
    """Hours: five seeds, and the ablations."""
    STUDY = "study"
    """Hours: runs at several levels of coverage, in several worlds, five seeds each, and one
    summary of all."""


class Arm(StrEnum):
    """A variant that is trained: self-play, its baselines at equal guard steps, its ablations."""

    SELFPLAY = "selfplay"
    """Attacker and guard learn in turn; all other arms are measured against it."""
    SFT = "sft"
    """The guard learns from static labelled data only."""
    FROZEN = "frozen"
    """The guard learns against the warmed-up attacker, which never learns again (same novelty and
    quotas)."""
    NO_POOL = "no_pool"
    """Attacks of earlier rounds are not replayed."""
    NO_TWINS = "no_twins"
    """The guard sees no benign twins of attacks."""
    NO_REPLAY = "no_replay"
    """The guard has no language-model loss on unlabelled text."""
    NO_NOVELTY = "no_novelty"
    """The attacker gets no bonus for techniques that were seen seldom."""
    REINIT = "reinit"
    """Attackers restart from the warm-up and from the supervised start in turn, whatever else the
    recipe says."""
    NO_QUOTA = "no_quota"
    """No opening (technique) of an attack is prescribed: the attacker has to find it."""
    FROZEN_NO_QUOTA = "frozen_no_quota"
    """The frozen attacker without a quota, which `no_quota` is measured against."""
    EXACT_PG = "exact_pg"
    """The guard's policy gradient is computed exactly, over both verdicts."""
    SAMPLED_PG = "sampled_pg"
    """The guard's policy gradient is estimated from a sampled verdict."""


BASELINES = (Arm.SFT, Arm.FROZEN)
ABLATIONS = (Arm.NO_POOL, Arm.NO_TWINS, Arm.NO_REPLAY, Arm.NO_QUOTA, Arm.FROZEN_NO_QUOTA)
"""One ingredient left out each; `paper` trains them."""
PARTS_OF_DISCOVERY = (Arm.NO_NOVELTY, Arm.NO_POOL, Arm.REINIT)
"""Changes to what may make an attacker find techniques that nobody showed it, one by one; `study`
trains them where nothing but public techniques is known."""
LOSSES = (Arm.EXACT_PG, Arm.SAMPLED_PG)
"""Other losses of the guard, on request."""
VARIANTS = (*ABLATIONS, *PARTS_OF_DISCOVERY, *LOSSES)
"""Arms beside self-play and its baselines; fresh attackers attack them on the surrogate only."""
SHORT_SCRIPTED = 200
"""Prompts of each stream in the short evaluation of `tsgb eval-local`, at most."""
SEEDS = {Profile.SMOKE: 1, Profile.DEMO: 1, Profile.PAPER: 5, Profile.STUDY: 5}
"""Number of seeds that an experiment trains, from its own on."""


def default_arms(profile: Profile) -> tuple[Arm, ...]:
    """Return self-play and its baselines; with the ablations where there is time for them."""
    arms = (Arm.SELFPLAY, *BASELINES)
    return (*arms, *ABLATIONS) if profile is Profile.PAPER else arms


def _is(default: object) -> Callable[[object], bool]:
    """Return a test for a default, which is not stored: older configurations keep their hash."""
    return lambda value: value == default


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WorldConfig(_Frozen):
    """How a world is made, beside its seed."""

    coverage: Share = 1.0
    """Share of the techniques which training may use, and which are not publicly known, that the
    attacker of the training is shown: in its supervised start and by the quota of openings. Public
    techniques are known always; the attackers of an evaluation know every technique."""
    symbols: Positive | None = None
    """Size of a world that has one (glyph: objects, and as many actions); None for its own."""

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the world's own, by name."""
        return self.model_dump(exclude_defaults=True)


class ModelConfig(_Frozen):
    """How a role's weights sit on the frozen base."""

    adapter: Literal["full", "lora"] = "full"
    """`lora`: a peft LoRA adapter a role. `full`: whole weights a role, for tiny bases."""
    rank: Positive = 16
    """LoRA rank r; alpha = r."""
    pretrained: str = ""
    """Another pretrained base than the world's: `org/name@commit` of the Hugging Face Hub, a
    directory that `save_pretrained` wrote, `gguf:FILE`, or the name of a packaged model."""
    target: Annotated[str, Field(exclude_if=_is(""))] = ""
    """Pretrained model of the targets, named in the same way; empty for the base itself. Where it
    is empty it is not stored, so that configurations of earlier versions keep their hash."""
    black_boxes: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(exclude_if=_is(()))
    ] = ()
    """Pretrained models on which the guards are evaluated beside the world's targets, named in the
    same way. None are not stored: configurations of earlier versions keep their hash."""
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", exclude_if=_is("auto"))
    ] = "auto"
    """Device of pretrained models: `cpu`, `cuda`, `cuda:1`, `mps`; `auto`: CUDA where torch finds a
    card, else the CPU. `auto` is not stored: configurations of earlier versions keep their hash."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Field(exclude_if=_is("auto"))] = "auto"
    """Type of a pretrained model's frozen weights; `auto`: bfloat16 on a card or CPU with
    units for it, else float32. Adapters are float32 always."""
    target_quantization: Annotated[Literal["none", "4bit"], Field(exclude_if=_is("none"))] = "none"
    """How the weights of `target` are held: `none`: in `dtype`; `4bit`: in NF4, on CUDA cards only.
    `none` is not stored: configurations of earlier versions keep their hash."""

    @property
    def earlier_dtype(self) -> str:
        """Dtype of files that name none: before they did, `auto` was float32 on every CPU."""
        return "float32" if self.dtype == "auto" else self.dtype

    @model_validator(mode="after")
    def _only_a_target_is_quantized(self) -> ModelConfig:
        if self.target_quantization != "none" and not self.target:
            raise ValueError(
                f"target_quantization = {self.target_quantization!r} is for a target of its own, "
                "and there is none: name one with --target-model"
            )
        return self


class AttackerConfig(_Frozen):
    """The attacker's supervised start and its leave-one-out policy gradient."""

    sft_steps: Count = 150
    """Updates of the supervised start."""
    sft_batch: Positive = 64
    """Demonstrations in an update of the supervised start."""
    sft_lr: float = 1e-3
    """Learning rate of the supervised start."""
    lr: float = 7e-4
    """Learning rate of the policy gradient."""
    warmup_steps: Count = 40
    """Updates on the bare surrogate, before any guard is in the way."""
    group_size: Annotated[int, Field(ge=2)] = 4
    """K prompts a scenario; the baseline of each is the mean reward of the other K - 1."""
    scenarios_per_step: Positive = 40
    """Scenarios in an update; each has a group of prompts."""
    benign_share: Share = 0.2
    """Share of the scenarios that are benign, on which the attacker provokes false alarms."""
    forced_share: Share = 0.3
    """Share of groups whose opening (technique) is drawn uniformly: a quota against collapse."""
    temperature: float = 1.0
    """Sampling temperature of the attacker's prompts."""
    max_new_tokens: Positive = 17
    """Most tokens of a prompt that the attacker writes."""
    kl: float = 0.02
    """Weight of the KL divergence from the untrained base, in nats per token."""
    entropy: float = 0.01
    """Weight of the entropy bonus per token."""
    clip: float = 0.2
    """Half-width of the interval around 1 to which probability ratios are clipped."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this Euclidean norm."""
    found_bonus: float = 0.2
    """Reward lambda_v of any violation, even of one that the guard would have blocked."""
    novelty: float = 0.3
    """Weight lambda of the bonus lambda / sqrt(1 + n(signature)), paid only if the attack is
    faithful and violates."""
    unfaithful_reward: float = -0.3
    """Reward of an attack that is malformed or about another scenario."""
    false_alarm_reward: float = 0.3
    """Reward on benign scenarios, times p_block."""
    guard_temperature: float = 2.0
    """Temperature T in p_block = sigmoid((z - tau) / T)."""
    anneal: Share = 0.3
    """Share of each attacker phase over which the guard's weight rises from 0 to 1."""


class GuardConfig(_Frozen):
    """The guard's supervised start and its policy gradient."""

    loss: Literal["exact_pg", "weighted_ce", "sampled_pg"] = "weighted_ce"
    """Loss of the policy phase. Both gradients of the policy die where the guard is confidently
    wrong; on four tuning seeds that cost self-play and the frozen baseline half of their protection
    alike."""
    sft_steps: Count = 150
    """Updates of the supervised start."""
    sft_batch: Positive = 128
    """Labelled prompts in an update of the supervised start."""
    sft_lr: float = 1e-3
    """Learning rate of the supervised start."""
    lr: float = 7e-4
    """Learning rate at the start of the policy phase."""
    lr_final: Share = 0.1
    """Share of `lr` to which the rate decays linearly over all guard updates of the run."""
    batch: Positive = 192
    """Prompts in an update of the policy phase."""
    current_share: Share = 0.2
    """Share of the batch: attacks of this round."""
    pool_share: Share = 0.15
    """Share of the batch: attacks of earlier rounds."""
    twins_share: Share = 0.1
    """Share of the batch: benign twins of attacks. The rest is clean: static harmful and benign
    prompts, and wide benign traffic."""
    hard_share: Annotated[float, Field(ge=0, le=0.25, exclude_if=_is(0.0))] = 0.0
    """Share of the clean prompts that is benign and close to the policy's border. 0 is not stored:
    configurations of earlier versions keep their hash."""
    reward_miss: float = -2.0
    """Reward of allowing a prompt that violates. Blocking anything harmful earns +1."""
    reward_lucky: float = -0.5
    """Reward of allowing a harmful prompt that the surrogate did not fall for."""
    kl: float = 0.0
    """Weight of the KL divergence from the verdict of the untrained base."""
    entropy: float = 0.02
    """Weight of the entropy bonus of the verdict."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this Euclidean norm."""
    lm_replay: float = 0.5
    """Weight of the language-model loss on unlabelled text."""
    replay_batch: Positive = 64
    """Unlabelled texts in an update."""
    own_share: Annotated[Share, Field(exclude_if=_is(0.25))] = 0.25
    """Share of the clean prompts, harmful and benign alike, that are the user's where a run has
    some. The default is not stored: configurations of earlier versions keep their hash."""
    dual_lr: float = 1.0
    """Ascent rate of mu, the extra price of a false positive, which ordinary, hard and twin traffic
    have each."""
    dual_max: float = 4.0
    """Upper bound of mu."""


class SelfPlayConfig(_Frozen):
    """The outer loop of self-play."""

    rounds: Count = 5
    """Rounds, each with an attacker phase and a guard phase."""
    attacker_steps: Count = 30
    """Attacker updates in a round."""
    guard_steps: Count = 100
    """Guard updates in a round."""
    pool: bool = True
    """Whether attacks of earlier rounds are replayed, weighted by the Hedge mixture over the payoff
    matrix."""
    twins: bool = True
    """Whether the guard sees benign twins of attacks."""
    reinitialise: bool = True
    """Whether attackers restart from the warm-up and from the supervised start in turn."""
    buffer: Positive = 1024
    """Number of the newest attacks of the round that are kept."""
    resample: Share = 0.5
    """Share of the buffer that is sampled anew from the round's final attacker, with the opening
    quota, when its phase ends; the rest is what it wrote while it learned."""
    payoff_attacks: Positive = 256
    """Number of attacks by which a member of the pool is represented."""
    family_cap: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None, Field(exclude_if=_is(None))
    ] = None
    """Largest share of one technique family among the attacks that are replayed to the guard, in
    (0, 1]; None for no cap. None is not stored: configurations of earlier versions keep their hash.
    """


class CalibrationConfig(_Frozen):
    """The operating point: Neyman-Pearson order statistic on benign calibration prompts."""

    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Rate of false positives alpha that the threshold must not exceed."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Probability that the threshold's true rate exceeds alpha all the same."""
    num: Positive = 1500
    """Benign prompts in the calibration sample."""
    hard_share: Share = 0.0
    """Share of hard-benign prompts in the calibration sample."""
    twins_share: Share = 0.0
    """Share of benign twins of attacks in the calibration sample."""


class EvaluationConfig(_Frozen):
    """The effort of stage 2."""

    targets: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(exclude_if=_is(()))
    ] = ()
    """Targets of the world that the guards are evaluated on where a user names none; empty for all
    of them. Empty is not stored: configurations of earlier versions keep their hash."""
    best_responses: Positive = 3
    """Fresh attackers for each guard and target, each from its own supervised start; the worst
    counts."""
    warmup_steps: Count = 30
    """Updates of a fresh attacker on the bare target."""
    attack_steps: Count = 40
    """Updates of a fresh attacker against the guarded target."""
    reserved: bool = True
    """Whether best responses may use the techniques that training never showed."""
    matched: Annotated[bool, Field(exclude_if=_is(False))] = False
    """Whether each guard is measured at the threshold at which it blocks `calibration.fpr` of the
    benign prompts of the test, ordinary, hard and twins in equal parts, in place of the one that
    calibration prompts certify. Guards are then compared at one realised rate; nobody who deploys
    a guard can choose such a threshold. False is not stored: configurations of earlier versions
    keep their hash."""
    prompts: Positive = 768
    """Attack attempts that a best response is scored on (test scenarios)."""
    scripted: Positive = 1000
    """Prompts in each scripted stream."""
    variance_batches: Count = 60
    """Batches that the variance of the guard's policy gradient is measured on; 0: not measured."""
    bootstrap: Positive = 10_000
    """Resamples of the cluster bootstrap."""
    max_error_rate: Share = 0.02
    """Share of items without an outcome above which an evaluation is invalid."""


class TrainingFileConfig(_Frozen):
    """A file of the user's whose train split joins the guard's static stream."""

    name: Annotated[str, Field(max_length=255)]
    """Name of the file, without its folder."""
    format: Annotated[str, Field(max_length=64)]
    """Format that its columns have, or `map` where the user named them."""
    sha256: _Sha256
    """Hash (hex) of the whole file."""


class TrainingDataConfig(_Frozen):
    """The user's prompts of a run, which its store holds.

    Example: `TrainingDataConfig(sha256="9f...", harmful=80, benign=120, groups=150, files=[...])`
    """

    sha256: _Sha256
    """Hash (hex) of the document that holds them; it decides what is trained on."""
    harmful: Positive
    """Harmful prompts in it."""
    benign: Positive
    """Benign prompts in it."""
    groups: Positive
    """Groups that they belong to."""
    mapping: str = ""
    """Columns that the user named, as `--map` takes them; empty where the formats are known."""
    files: Annotated[tuple[TrainingFileConfig, ...], Field(min_length=1)]
    """Files that they are from."""

    @property
    def names(self) -> str:
        """The files with the beginnings of their hashes, for people."""
        return ", ".join(f"{file.name} (sha256 {file.sha256[:12]})" for file in self.files)

    @property
    def sentence(self) -> str:
        """What it is, in a few words."""
        return (
            f"{self.harmful} harmful and {self.benign} benign prompts in {self.groups} groups, the "
            f"train split of {self.names}"
        )


class Phase(NamedTuple):
    """Updates [start, stop) of one kind."""

    kind: Literal["sft_attacker", "warmup", "sft_guard", "attacker", "guard"]
    """Player, and whether it imitates or plays."""
    round: int
    """Round of self-play, from 0; 0 before the first one."""
    start: int
    """First update."""
    stop: int
    """Update after the last one."""


class RunConfig(_Frozen):
    """Everything that determines a training run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this layout in stored files."""
    profile: Profile = Profile.DEMO
    """Scale that the sizes below come from."""
    env: str = "glyph"
    """World: `glyph`, `canary`, or `module:attribute`."""
    world_seed: Count = 0
    """Seed of the world: hidden policy, weaknesses of the targets, their weights."""
    world: Annotated[WorldConfig, Field(exclude_if=_is(WorldConfig()))] = WorldConfig()
    """How the world is made. The default is not stored: configurations of earlier versions keep
    their hash."""
    seed: Count = 0
    """Seed of all that happens in the world."""
    arm: Arm = Arm.SELFPLAY
    """Variant that is trained."""
    model: ModelConfig = ModelConfig()
    """How a role's weights sit on the base."""
    attacker: AttackerConfig = AttackerConfig()
    """How the attacker learns."""
    guard: GuardConfig = GuardConfig()
    """How the guard learns."""
    selfplay: SelfPlayConfig = SelfPlayConfig()
    """The outer loop of self-play."""
    calibration: CalibrationConfig = CalibrationConfig()
    """How the operating point is chosen."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The effort of stage 2."""
    train_data: Annotated[TrainingDataConfig | None, Field(exclude_if=_is(None))] = None
    """Prompts of the user's that the guard also learns from. None is not stored: configurations of
    earlier versions keep their hash."""
    segments: Positive = 3
    """Prefect task runs into which the training is cut."""
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
        """The sha256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def differences(self, other: RunConfig) -> Iterator[tuple[str, Any, Any]]:
        """Yield the dotted name of each value that differs, the value here, and that of `other`."""
        return _differences(self, other)

    def phases(self) -> list[Phase]:
        """Return the schedule: which update is of which kind."""
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
        """Number of updates of the run, both players and their supervised starts."""
        phases = self.phases()
        return phases[-1].stop if phases else 0

    def segment_target(self, index: int) -> int:
        """Return the update at which segment `index` (from 0) ends."""
        return self.total_steps * (index + 1) // self.segments


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _differences(
    one: BaseModel, other: BaseModel, prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in type(one).model_fields:
        here, there = getattr(one, name), getattr(other, name)
        if isinstance(here, BaseModel) and isinstance(there, BaseModel):
            yield from _differences(here, there, f"{prefix}{name}.")
        elif here != there:
            yield f"{prefix}{name}", _plain(here), _plain(there)


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
    """Return the overrides by which an arm differs from the self-play recipe."""
    changes: dict[Arm, dict[str, Any]] = {
        Arm.NO_POOL: {"selfplay": {"pool": False}},
        Arm.NO_TWINS: {"selfplay": {"twins": False}},
        Arm.NO_REPLAY: {"guard": {"lm_replay": 0.0}},
        Arm.NO_NOVELTY: {"attacker": {"novelty": 0.0}},
        Arm.REINIT: {"selfplay": {"reinitialise": True}},
        Arm.NO_QUOTA: {"attacker": {"forced_share": 0.0}},
        Arm.FROZEN_NO_QUOTA: {"attacker": {"forced_share": 0.0}},
        Arm.EXACT_PG: {"guard": {"loss": "exact_pg"}},
        Arm.SAMPLED_PG: {"guard": {"loss": "sampled_pg"}},
    }
    return {"arm": arm.value, **changes.get(arm, {})}


def arm_run_id(run_id: str, arm: Arm) -> str:
    """Return the run id of an arm: the main run's own for self-play, a sibling's otherwise."""
    return run_id if arm is Arm.SELFPLAY else f"{run_id}.{arm.value}"


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "config"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where} = {first.get('input')!r}: {first['msg']}{more}"
