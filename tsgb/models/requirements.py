"""What a model asks of a machine before it is loaded: of this one, and of a rented one.

It looks at the devices of this machine and imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

from tsgb.cloud.policy import USUAL_DISK_GB, MachineNeeds
from tsgb.config import ModelConfig, RunConfig
from tsgb.envs.base import Environment
from tsgb.errors import HubUnreachable, UsageError
from tsgb.models.dtypes import dtype_of
from tsgb.models.machine_memory import find_device
from tsgb.models.planner import (
    CARD_CLASSES,
    DeviceMemory,
    MemoryPlan,
    ModelPart,
    ModelsInMemory,
    TrainingWork,
    disk_gb,
)
from tsgb.models.quantization import FOUR_BIT, check_quantization
from tsgb.models.source import ModelFacts, inspect
from tsgb.setting_groups import CloudSettings, HubSettings, WorkerSettings
from tsgb.types import Message, Messages, Split, StreamKind

NO_ESTIMATE = "no estimate of its memory is available for the architecture"
"""Said of models whose sizes are not understood, in place of a wrong number."""


CUDA_OF_TORCH: Mapping[str, float] = {"2.13": 13.0}
"""CUDA version of torch's wheel in the Python package index, which a rented machine installs, by
the version of torch: what the wheel requires as cuda-toolkit or nvidia-cuda-runtime."""
LEAST_COMPUTE: Mapping[float, int] = {12.0: 500, 13.0: 750}
"""Compute capability times 100 that a CUDA version compiles for at least: CUDA 13 has dropped
Maxwell, Pascal and Volta."""
_BFLOAT16_COMPUTE = 800
"""Compute capability times 100 from which cards multiply in bfloat16, as `card_has_units`."""
_RUNTIME = re.compile(r"(?:cuda-toolkit|nvidia-cuda-runtime)\S*==(\d+\.\d+)")
_PROCESS_GB = 2.5
"""Main memory of a process with torch and CUDA loaded, GB, assumed."""
_UNKNOWN_FACTOR, _UNKNOWN_GB = 1.5, 2.0
"""Memory of a card for an architecture without an estimate: so many times its files, and some."""
_CHARACTERS = 2
"""Characters of a token that texts are counted by, where no tokenizer is at hand; it has more."""
_TEMPLATE_TOKENS = 64
"""Tokens that a chat template puts around the texts of a chat, at most."""
_SAMPLED = 64
"""Scenarios and prompts of a world that are looked at for the longest chat."""
_ROUNDED = 64
"""Tokens to whose multiples a length is rounded up."""


def training_work(config: RunConfig, env: Environment) -> TrainingWork:
    """Return the sizes of a run's updates, by its configuration and the texts of its world."""
    scenarios = env.scenarios(Split.TRAIN)[:_SAMPLED]
    drawn = env.stream(StreamKind.BENIGN, Split.TRAIN, Random(0), _SAMPLED)
    prompt = max((prompt.text for prompt in drawn), key=len)
    template = env.guard_template()
    asked: Message = {"role": "user", "content": template.system + prompt + template.answer}
    rows = [_tokens([asked])]
    for scenario in scenarios:
        rows.append(_tokens(env.attacker_messages(scenario)) + config.attacker.max_new_tokens)
        rows += [
            _tokens(env.target_messages(spec.name, scenario, prompt)) + spec.max_new_tokens
            for spec in env.targets().values()
        ]
    recipes = env.recipes(config.profile.value).values()
    return TrainingWork(
        rows=config.attacker.scenarios_per_step * config.attacker.group_size,
        row_tokens=_ROUNDED * math.ceil(max(rows) / _ROUNDED),
        rank=config.model.rank,
        target_ranks=tuple(recipe.rank for recipe in recipes if recipe.rank),
    )


def _tokens(messages: Messages) -> int:
    return _TEMPLATE_TOKENS + sum(len(message["content"]) for message in messages) // _CHARACTERS


def models_in_memory(
    base: ModelFacts | None,
    target: ModelFacts | None,
    black_boxes: Sequence[ModelFacts],
    *,
    work: TrainingWork,
    quantization: str,
) -> ModelsInMemory | None:
    """Return the sizes of what is in memory at the same time.

    Args:
        base: The players' base.
        target: The target, if it is a model of its own.
        black_boxes: Pretrained black boxes, of which the largest one counts.
        work: Sizes of the updates.
        quantization: `ModelConfig.target_quantization`.

    Returns:
        None where no estimate can be made for the base; others without one are left out.
    """
    if base is None or base.sizes is None:
        return None
    own = None if target is None else target.sizes
    return ModelsInMemory(
        base=base.sizes,
        work=work,
        target=own and replace(own, in_4bit=quantization == FOUR_BIT),
        black_box=max(
            (model.sizes for model in black_boxes if model.sizes is not None),
            key=lambda sizes: sizes.parameters,
            default=None,
        ),
    )


def models_of_run(
    config: RunConfig, env: Environment, hub: HubSettings, cache: Path, *, evaluates: bool
) -> ModelsInMemory | None:
    """Return the sizes of the pretrained models of a run that are in memory at the same time.

    Args:
        config: Configuration of the run.
        env: Its world.
        hub: Settings of the hub.
        cache: Directory of converted models.
        evaluates: Whether black boxes are asked.

    Returns:
        None where no estimate can be made for the base, or the world trains its own models.

    Raises:
        HubUnreachable: A model is not in its local cache, and the hub does not answer.
    """
    chosen = config.model
    usual = env.recipes(config.profile.value)["base"].pretrained
    if not usual:
        return None

    def look(name: str) -> ModelFacts | None:
        try:
            return inspect(name, hub, cache)
        except HubUnreachable:
            raise  # with no estimate all workers would have room, and the models may come later
        except UsageError:
            return None  # whoever uses it is refused; an export uses the base only

    boxes = [look(name) for name in chosen.black_boxes] if evaluates else []
    return models_in_memory(
        look(chosen.pretrained or usual),
        look(chosen.target) if chosen.target else None,
        [facts for facts in boxes if facts is not None],
        work=training_work(config, env),
        quantization=chosen.target_quantization,
    )


def workers_at_a_time(
    config: RunConfig,
    env: Environment,
    hub: HubSettings,
    cache: Path,
    *,
    most: int,
    evaluates: bool,
    shares: int = 1,
    device: DeviceMemory | None = None,
) -> int:
    """Return how many worker processes of a run a machine has memory for.

    It depends on the configuration and the machine alone, and not on what runs there, so that a run
    which is resumed makes the same batches.

    Args:
        config: Configuration of the run.
        env: Its world.
        hub: Settings of the hub.
        cache: Directory of converted models.
        most: Number of processes that there is work for; all of them, if the models have no
            estimate.
        evaluates: Whether they ask black boxes, of which each process loads its own.
        shares: Number of parts that the memory is divided into before, of which they have one.
        device: Where they compute; without it the device of this machine that `config` names.

    Raises:
        HubUnreachable: A model is not in its local cache, and the hub does not answer.
    """
    models = models_of_run(config, env, hub, cache, evaluates=evaluates) if most > 1 else None
    if models is None:
        return most
    device = (device or find_device(config.model.device)).shared_by(shares)
    return models.workers(device, dtype_of(config.model, device), most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Memory and disk that training and evaluating with models take.

    Example: `Requirements.of(inspect("smollm2", hub, cache)).check_here()`
    """

    name: str
    """Name of the players' base."""
    beside: str
    """What is in memory beside it on this machine, in words; empty if nothing is."""
    device: str
    """Device that models are computed on, as `ModelConfig.device` names it."""
    family: str
    """Architecture of which no estimate is available; empty if there is one."""
    work: TrainingWork
    """Sizes of the updates."""
    here: MemoryPlan | None
    """Memory on this machine: the base's, or of another model that does not fit beside it; None
    without an estimate."""
    card: MemoryPlan | None
    """Memory on the smallest class of cards that is large enough; None if there is none."""
    disk_gb: int
    """Disk of a rented machine, GB."""
    black_boxes: Mapping[str, int]
    """Bytes of the files of each black box, which this machine needs and a rented one does not."""
    quantization: str = "none"
    """How the weights of the target are held: `none` or `4bit`."""
    weight_bytes: int = 0
    """Bytes of the files of base and target."""
    on_card: bool = True
    """Whether models are computed on a rented machine's card, if it has one."""
    rented_dtype: str = "bfloat16"
    """Type of frozen weights there."""
    adapter_bytes: int = 0
    """Bytes of one adapter of the base; 0 without an estimate."""
    arms: int = 1
    """Number of arms that are trained."""

    @classmethod
    def of(
        cls,
        base: ModelFacts,
        target: ModelFacts | None = None,
        black_boxes: Sequence[ModelFacts] = (),
        *,
        model: ModelConfig | None = None,
        work: TrainingWork | None = None,
        arms: int = 1,
        workers: WorkerSettings | None = None,
    ) -> Requirements:
        """Return the requirements of a run.

        Args:
            base: The players' base.
            target: The target, if it is a model of its own.
            black_boxes: Pretrained black boxes.
            model: Gives device, dtype, and how the target is held; without it as usual.
            work: Sizes of the updates; without it those of a large run.
            arms: Number of arms that are trained, each by a worker of its own.
            workers: How workers share this machine; without it one has all of it.
        """
        model, work = model or ModelConfig(adapter="lora"), work or TrainingWork()
        trained = [base] if target is None else [base, target]
        unknown = [facts.family for facts in trained if facts.sizes is None]
        here = card = None
        models = models_in_memory(
            base, target, black_boxes, work=work, quantization=model.target_quantization
        )
        if models is not None and not unknown:
            found = find_device(model.device)
            max_parallel = 1
            if workers is not None:
                found, max_parallel = found.shared_by(workers.memory_shares), workers.max_parallel
            dtype = dtype_of(model, found)
            # An evaluation has as many parts as workers, and asks all black boxes in each.
            most = max_parallel if black_boxes else min(max_parallel, arms)
            found = found.shared_by(models.workers(found, dtype, most))
            made = [models.plan(part, found, dtype) for part in ModelPart]
            plans = [plan for plan in made if plan is not None]
            here = next((plan for plan in plans if not plan.fits), plans[0])
            card = models.card()
        beside = [] if target is None else [f"the target {target.name}"]
        if black_boxes:
            largest = max(black_boxes, key=lambda facts: facts.weight_bytes)
            beside.append(f"the black box {largest.name}")
        return cls(
            name=base.name,
            beside=f" beside {' and '.join(beside)}" if beside else "",
            device=model.device,
            family=next(iter(unknown), ""),
            work=work,
            here=here,
            card=card,
            disk_gb=disk_gb(*(facts.weight_bytes for facts in trained)),
            black_boxes={facts.name: facts.weight_bytes for facts in black_boxes},
            quantization=model.target_quantization,
            weight_bytes=sum(facts.weight_bytes for facts in trained),
            on_card=model.device.startswith(("auto", "cuda")),
            rented_dtype=dtype_of(model, DeviceMemory("cuda", 0, has_bfloat16_units=True)),
            adapter_bytes=0 if base.sizes is None else 4 * base.sizes.adapter(work.rank),
            arms=arms,
        )

    def check_here(self) -> None:
        """Refuse a model that this machine cannot train even in the smallest batches.

        Raises:
            ConfigError: The target's weights are to be in four bits, which this machine cannot do.
            UsageError: It does not fit; the message is one line.
        """
        check_quantization(self.quantization, find_device(self.device).device)
        if self.here is not None:
            # A rented card asks no black box: with one, this machine must have the memory.
            card = None if self.black_boxes else self.card
            check_fits(self.name + self.beside, self.here, card)

    def machine(self, settings: CloudSettings) -> MachineNeeds:
        """Return what a rented machine must have; memory and disk that a user names are kept.

        Args:
            settings: What a user asks of machines; `gpu_ram_gb` 0 asks for no card.

        Raises:
            ConfigError: The target's weights are to be in four bits, and no card is asked for.
            UsageError: What a user names is too small, or no card is large enough; one line.
        """
        weights_gb = self.weight_bytes / 1e9
        card_gb = self._card_gb(settings)
        disk_gb = settings.disk_gb or max(USUAL_DISK_GB, self.disk_gb)
        needs = {"TSGB_DISK_GB": (disk_gb, self.disk_gb)}
        if not self.family:
            needs["TSGB_GPU_RAM_GB"] = (card_gb, self._class_gb if card_gb else 0)
        changes = [f"{key}={need}" for key, (has, need) in needs.items() if has < need]
        if changes:
            raise UsageError(
                f"model {self.name} needs {self.rented}, and machines with {card_gb:g} GB and "
                f"{disk_gb:g} GB of disk are rented: set {' and '.join(changes)}, or leave it away"
            )
        # Each checkpoint holds both players' adapters with the two moments of their optimizer; a
        # start fetches the kept copies too.
        state_gb = self.arms * self.adapter_bytes / 1e9
        asked = MachineNeeds(
            gpu_ram_gb=card_gb,
            disk_gb=disk_gb,
            weights_gb=weights_gb,
            save_gb=3 * self.work.roles * state_gb,
            restore_gb=(3 * self.work.roles + self.work.snapshots) * state_gb,
        )
        if not card_gb:
            return asked
        cuda = cuda_of_torch()
        native = _BFLOAT16_COMPUTE if self.rented_dtype == "bfloat16" else 0
        compiled = max((cap for v, cap in LEAST_COMPUTE.items() if v <= cuda), default=0)
        # The watcher is a process, too; weights pass through memory on their way to the card.
        memory = weights_gb + self.work.snapshots * state_gb + (self.arms + 1) * _PROCESS_GB
        return replace(
            asked,
            cpu_ram_gb=math.ceil(memory),
            compute_cap=max(native, compiled),
            cuda=cuda,
        )

    @property
    def _class_gb(self) -> int:
        """GB of the smallest class of cards; only where there is an estimate."""
        return 0 if self.card is None else round(self.card.device.total / 1e9)

    def _card_gb(self, settings: CloudSettings) -> float:
        """Return the GB of memory to ask of a card: what a user names, else the planner's class."""
        asked = settings.gpu_ram_gb
        if asked == 0 or (asked is None and not self.on_card):
            check_quantization(self.quantization, "cpu")
            return 0.0
        if self.family:
            held = _UNKNOWN_FACTOR * self.weight_bytes / 1e9 + _UNKNOWN_GB
            usual = next((size for size in CARD_CLASSES if size >= held), max(CARD_CLASSES))
            return usual if asked is None else asked
        if self.card is None:
            raise UsageError(
                f"model {self.name} fits on no single card of up to {max(CARD_CLASSES)} GB: "
                "name a smaller model"
            )
        return self._class_gb if asked is None else asked

    @property
    def rented(self) -> str:
        """What a rented machine needs, for people."""
        disk = f"{self.disk_gb} GB of disk"
        if self.card is None:
            return disk
        card = self.card.device
        return f"a card of {card.total / 1e9:.0f} GB (such as {card.label}) and {disk}"

    def lines(self) -> dict[str, str]:
        """Return the requirements for people, a line by its label."""
        files = {}
        if self.black_boxes:
            size = sum(self.black_boxes.values()) / 1e9
            files["black boxes"] = f"{size:.2g} GB of files, loaded here one at a time"
        if self.here is None:
            memory = f"{NO_ESTIMATE} {self.family!r}"
            return {"memory": memory, **files, "rented": self.rented}
        plan, work = self.here, self.work
        parts = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in plan.parts.items())
        card = self.rented if self.card else f"no single card is large enough; {self.rented}"
        again = ", activations computed again" if plan.gradient_checkpointing else ""
        fits = "fits" if plan.fits else "does NOT fit"
        return {
            "memory": f"{plan.needed / 1e9:.1f} GB in {plan.dtype}: {parts} (for {work.rows} rows "
            f"of {work.row_tokens} tokens)",
            "here": f"{fits} on {plan.device}, micro-batches of {plan.micro_batch_tokens} tokens"
            f"{again}",
            **files,
            "rented": card,
        }

    def document(self) -> dict[str, Any]:
        """Return the requirements for JSON; sizes in bytes."""
        plan, card = self.here, self.card
        return {
            "device": None if plan is None else plan.device.device,
            "workers": None if plan is None else plan.device.workers,
            "dtype": None if plan is None else plan.dtype,
            "bytes": None if plan is None else plan.needed,
            "parts": None if plan is None else dict(plan.parts),
            "fits": None if plan is None else plan.fits,
            "micro_batch_tokens": None if plan is None else plan.micro_batch_tokens,
            "gradient_checkpointing": None if plan is None else plan.gradient_checkpointing,
            "gpu_bytes": None if card is None else card.needed,
            "gpu_gb": None if card is None else round(card.device.total / 1e9),
            "disk_gb": self.disk_gb,
            "black_box_bytes": sum(self.black_boxes.values()),
        }


def cuda_of_torch(requirements: Iterable[str] | None = None, version: str | None = None) -> float:
    """Return the CUDA version that torch's wheel for Linux brings, without importing torch.

    Args:
        requirements: Requirements of the installed wheel; without them they are looked up.
        version: Its version; likewise.

    Returns:
        What its own requirements name; for a wheel without CUDA what `CUDA_OF_TORCH` says of the
        version, or of the newest that it knows, because a rented machine installs the usual one.
    """
    found = (metadata.requires("torch") or []) if requirements is None else requirements
    for line in found:
        if match := _RUNTIME.match(line):
            return float(match[1])
    release = (metadata.version("torch") if version is None else version).split(".")
    return CUDA_OF_TORCH.get(".".join(release[:2]), max(CUDA_OF_TORCH.values()))


def machine_of_run(
    config: RunConfig,
    env: Environment,
    settings: CloudSettings,
    hub: HubSettings,
    cache: Path,
    *,
    arms: int,
) -> MachineNeeds:
    """Return what the models of a run ask of a rented machine.

    Args:
        config: Configuration of the run.
        env: Its world.
        settings: What a user asks of machines.
        hub: Settings of the hub.
        cache: Directory of converted models.
        arms: Number of arms that are trained.

    Raises:
        UsageError: A machine as the settings name it is too small, or a model cannot be looked at.
    """
    chosen = config.model
    base = chosen.pretrained or env.recipes(config.profile.value)["base"].pretrained
    if not base:
        return MachineNeeds.of(settings)
    return Requirements.of(
        inspect(base, hub, cache),
        inspect(chosen.target, hub, cache) if chosen.target else None,
        model=chosen,
        work=training_work(config, env),
        arms=arms,
    ).machine(settings)


def check_fits(name: str, plan: MemoryPlan, card: MemoryPlan | None) -> None:
    """Refuse a plan that does not fit.

    Args:
        name: Name of the model.
        plan: Memory that it takes on a device.
        card: Memory that it takes on a card that is large enough, if there is one.

    Raises:
        UsageError: It does not fit; the message is one line.
    """
    if plan.fits:
        return
    ways = ["name a smaller model"]
    if plan.dtype == "float32":
        ways.append("set model.dtype to bfloat16")
    if plan.device.workers > 1:
        ways.append("run fewer workers at a time (TSGB_MEMORY_SHARES)")
    if card is not None:
        ways.append(f"rent a card of {card.device.total / 1e9:.0f} GB")
    raise UsageError(
        f"model {name} needs {plan.needed / 1e9:.1f} GB in {plan.dtype}, and {plan.device} spares "
        f"{plan.device.usable / 1e9:.1f} GB: {' or '.join(ways)}"
    )
