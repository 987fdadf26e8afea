"""What a model asks of a machine before it is loaded: of this one, and of a rented one.

It looks at the devices of this machine and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tsgb.errors import UsageError
from tsgb.models.machine_memory import find_device
from tsgb.models.planner import (
    BYTES,
    CARD_CLASSES,
    MemoryPlan,
    TrainingWork,
    card_for,
    disk_gb,
    plan_memory,
)
from tsgb.models.quantization import FOUR_BIT, check_quantization
from tsgb.models.source import ModelFacts

NO_ESTIMATE = "no estimate of its memory is available for the architecture"
"""Said of models whose sizes are not understood, in place of a wrong number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Memory and disk that training with a model takes.

    Example: `Requirements.of(inspect("smollm2", hub, cache)).check_here()`
    """

    name: str
    """Name of the players' base."""
    device: str
    """Device that models are computed on, as `ModelConfig.device` names it."""
    family: str
    """Architecture of which no estimate is available; empty if there is one."""
    here: MemoryPlan | None
    """Memory on this machine; None without an estimate."""
    card: MemoryPlan | None
    """Memory on the smallest class of cards that is large enough; None if there is none."""
    disk_gb: int
    """Disk of a rented machine, GB."""
    quantization: str = "none"
    """How the weights of the target are held: `none` or `4bit`."""

    @classmethod
    def of(
        cls,
        base: ModelFacts,
        target: ModelFacts | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        rank: int = TrainingWork().rank,
        target_quantization: str = "none",
    ) -> Requirements:
        """Return the requirements of a run.

        Args:
            base: The players' base.
            target: The target, if it is a model of its own.
            device: `ModelConfig.device`.
            dtype: `ModelConfig.dtype`.
            rank: Rank of the adapters.
            target_quantization: `ModelConfig.target_quantization`.
        """
        models = [base] if target is None else [base, target]
        unknown = next((model.family for model in models if model.sizes is None), "")
        here = card = None
        if base.sizes is not None and not unknown:
            found = find_device(device)
            if dtype not in BYTES:
                dtype = "bfloat16" if found.is_card else "float32"
            other = None if target is None else target.sizes
            work = TrainingWork(rank=rank)
            if other is not None:
                other = replace(other, in_4bit=target_quantization == FOUR_BIT)
            here = plan_memory(base.sizes, found, dtype=dtype, work=work, target=other)
            card = card_for(base.sizes, work=work, target=other)
        return cls(
            name=base.name,
            device=device,
            family=unknown,
            here=here,
            card=card,
            disk_gb=disk_gb(*(model.weight_bytes for model in models)),
            quantization=target_quantization,
        )

    def check_here(self) -> None:
        """Refuse a model that this machine cannot train even in the smallest batches.

        Raises:
            ConfigError: The target's weights are to be in four bits, which this machine cannot do.
            UsageError: It does not fit; the message is one line.
        """
        check_quantization(self.quantization, find_device(self.device).device)
        if self.here is not None:
            check_fits(self.name, self.here, self.card)

    def check_rented(self, *, gpu_ram_gb: float, rented_gb: float) -> None:
        """Refuse a model that the machines which may be rented are too small for.

        Args:
            gpu_ram_gb: GB of memory that a rented card has at least; 0 asks for no card.
            rented_gb: GB of disk that is rented.

        Raises:
            UsageError: One is too small; the message is one line.
        """
        if not gpu_ram_gb:  # machines without a card
            check_quantization(self.quantization, "cpu")
        needs = {"TSGB_DISK_GB": (rented_gb, self.disk_gb)}
        if not self.family and gpu_ram_gb:
            if self.card is None:
                raise UsageError(
                    f"model {self.name} fits on no single card of up to {max(CARD_CLASSES)} GB: "
                    "name a smaller model"
                )
            needs["TSGB_GPU_RAM_GB"] = (gpu_ram_gb, round(self.card.device.total / 1e9))
        changes = [f"{key}={need}" for key, (has, need) in needs.items() if has < need]
        if changes:
            raise UsageError(
                f"model {self.name} needs {self.rented}, and machines with {gpu_ram_gb:g} GB and "
                f"{rented_gb:g} GB of disk are rented: set {' and '.join(changes)}"
            )

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
        if self.here is None:
            return {"memory": f"{NO_ESTIMATE} {self.family!r}", "rented": self.rented}
        plan, work = self.here, TrainingWork()
        parts = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in plan.parts.items())
        card = self.rented if self.card else f"no single card is large enough; {self.rented}"
        again = ", activations computed again" if plan.gradient_checkpointing else ""
        fits = "fits" if plan.fits else "does NOT fit"
        return {
            "memory": f"{plan.needed / 1e9:.1f} GB in {plan.dtype}: {parts} (for {work.rows} rows "
            f"of {work.row_tokens} tokens)",
            "here": f"{fits} on {plan.device}, micro-batches of {plan.micro_batch_tokens} tokens"
            f"{again}",
            "rented": card,
        }

    def document(self) -> dict[str, Any]:
        """Return the requirements for JSON; sizes in bytes."""
        plan, card = self.here, self.card
        return {
            "device": None if plan is None else plan.device.device,
            "dtype": None if plan is None else plan.dtype,
            "bytes": None if plan is None else plan.needed,
            "parts": None if plan is None else dict(plan.parts),
            "fits": None if plan is None else plan.fits,
            "micro_batch_tokens": None if plan is None else plan.micro_batch_tokens,
            "gradient_checkpointing": None if plan is None else plan.gradient_checkpointing,
            "gpu_bytes": None if card is None else card.needed,
            "gpu_gb": None if card is None else round(card.device.total / 1e9),
            "disk_gb": self.disk_gb,
        }


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
    if card is not None:
        ways.append(f"rent a card of {card.device.total / 1e9:.0f} GB")
    raise UsageError(
        f"model {name} needs {plan.needed / 1e9:.1f} GB in {plan.dtype}, and {plan.device} spares "
        f"{plan.device.usable / 1e9:.1f} GB: {' or '.join(ways)}"
    )
