"""The price book: machines drawn from a seed, and the offer that each makes at a time."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

from tests.fakes.vast.clock import DAY, SECOND, Moment
from tests.fakes.vast.ledger import decimal, storage_per_hour
from tests.fakes.vast.options import Fate


class Card(NamedTuple):
    """A kind of GPU."""

    name: str
    ram_mb: int
    compute_cap: int
    dollars_per_hour: float
    dlperf: float


CARDS = (
    Card("RTX 3090", 24576, 860, 0.18, 60.0),
    Card("RTX 4090", 24564, 890, 0.34, 90.0),
    Card("RTX 5090", 32607, 1200, 0.52, 140.0),
    Card("RTX A6000", 49140, 860, 0.45, 65.0),
    Card("A100 SXM4", 81920, 800, 0.85, 180.0),
    Card("H100 SXM", 81559, 900, 1.95, 400.0),
)
PLACES = ("Sweden, SE", "Texas, US", "Quebec, CA", "Taiwan, TW", "Poland, PL", "Spain, ES")
FIRST_ASK, FIRST_MACHINE, FIRST_HOST = 12_345_678, 88_000, 55_000


@dataclass(slots=True, kw_only=True)
class Machine:
    """What a host rents out: all its GPUs together."""

    machine_id: int
    host_id: int
    card: Card
    num_gpus: int
    dph_base: Decimal
    """$/h on demand."""
    min_bid: Decimal
    """$/h, the floor of an interruptible bid now."""
    storage_cost: Decimal
    """$/GB/month."""
    inet_up_cost: Decimal
    inet_down_cost: Decimal
    """$/GB."""
    disk_space: Decimal
    reliability: float
    verification: str
    geolocation: str
    inet_up: float
    inet_down: float
    cuda_max_good: float
    driver_version: str
    cpu_cores: int
    end_date: Moment
    ask_id: int
    """Of its offer now; an offer is used once."""
    taken_until: Moment
    """Until then somebody outside has it."""
    gpu_frac: float = 1.0
    """Share of the computer's GPUs that it rents out together."""
    true_card: Card | None = None
    """What containers find, if its offers lie; None if they do not."""
    strips: tuple[str, ...] = ()
    """Variables of a rental that its host keeps from containers."""
    fate: Fate | None = None
    """What becomes of containers here, if that is settled."""
    tenant: int | None = None
    """Our instance that holds its GPUs."""

    def is_free(self, now: Moment) -> bool:
        return self.tenant is None and self.taken_until <= now

    def driver(self) -> dict[str, Any]:
        """What a container's own driver says, whatever the offer does."""
        card = self.true_card or self.card
        return {
            "gpu_name": f"NVIDIA GeForce {card.name}",
            "driver": self.driver_version,
            "cuda": f"{self.cuda_max_good}",
            "torch_cuda": "13.0",
            "memory_gb": card.ram_mb / 1000,
            "free_gb": card.ram_mb / 1000,
            "seconds": 2.0,
            "tflops": card.dlperf,
        }

    def hardware(self) -> dict[str, Any]:
        """The fields that offers and instances share."""
        card = self.card
        return {
            "machine_id": self.machine_id,
            "host_id": self.host_id,
            "num_gpus": self.num_gpus,
            "gpu_name": card.name,
            "gpu_ram": card.ram_mb,
            "cpu_cores": self.cpu_cores,
            "cpu_cores_effective": self.cpu_cores * self.gpu_frac,
            "cpu_ram": self.cpu_cores * 4000,
            "inet_up": self.inet_up,
            "inet_down": self.inet_down,
            "inet_up_cost": float(self.inet_up_cost),
            "inet_down_cost": float(self.inet_down_cost),
            "direct_port_count": 42,
            "min_bid": float(self.min_bid),
            "storage_cost": float(self.storage_cost),
            "geolocation": self.geolocation,
            "reliability2": self.reliability,
            "verification": self.verification,
            "cuda_max_good": self.cuda_max_good,
            "driver_version": self.driver_version,
            "public_ipaddr": "203.0.113.42",
            "end_date": self.end_date / SECOND,
        }

    def offer(self, now: Moment, *, bid: bool, storage_gb: Decimal) -> dict[str, Any]:
        """The row that a search returns."""
        card = self.card
        base = self.min_bid if bid else self.dph_base
        storage = decimal(storage_per_hour(storage_gb, self.storage_cost))
        total = float(base + storage)
        dlperf = card.dlperf * self.num_gpus
        return {
            **self.hardware(),
            "id": self.ask_id,
            "ask_contract_id": self.ask_id,
            "bundle_id": 900_000_000 + self.machine_id,
            "gpu_total_ram": card.ram_mb * self.num_gpus,
            "gpu_frac": self.gpu_frac,
            "gpu_arch": "nvidia",
            "gpu_lanes": 16,
            "gpu_mem_bw": 888.8,
            "compute_cap": card.compute_cap,
            "bw_nvlink": 0,
            "cpu_name": "EPYC",
            "cpu_ghz": 2.9,
            "cpu_arch": "amd64",
            "disk_space": float(self.disk_space),
            "disk_bw": 1234.5,
            "disk_name": "nvme",
            "pci_gen": 4.0,
            "pcie_bw": 25.0,
            "mobo_name": "X",
            "os_version": "22.04",
            "dlperf": dlperf,
            "dlperf_per_dphtotal": dlperf / total,
            "total_flops": 0.9 * dlperf,
            "flops_per_dphtotal": 0.9 * dlperf / total,
            "dph_base": float(base),
            "dph_total": total,
            "is_bid": bid,
            "rentable": self.is_free(now),
            "rented": self.tenant is not None,
            "external": None,
            "reliability": self.reliability,
            "score": dlperf / total * self.reliability,
            "static_ip": True,
            "storage_total_cost": float(storage),
            "duration": (self.end_date - now) / SECOND,
            "start_date": (now - 30 * DAY) / SECOND,
            "vms_enabled": False,
            "hosting_type": 0,
            "search": {"gpuCostPerHour": float(base), "diskHour": float(storage)},
        }


def draw_machines(seed: int, number: int, now: Moment) -> list[Machine]:
    """Equal seeds, equal books."""
    rng, parts = Random(f"offers/{seed}"), Random(f"parts/{seed}")
    drawn = [_draw(rng, index, now) for index in range(number)]
    for machine in drawn:
        # Many computers with 8 GPUs are rented out in parts.
        machine.gpu_frac = parts.choice((1.0, 1.0, machine.num_gpus / 8))
    return drawn


def _draw(rng: Random, index: int, now: Moment) -> Machine:
    card = rng.choice(CARDS)
    num_gpus = rng.choice((1, 1, 1, 2, 4))
    dph_base = Decimal(f"{card.dollars_per_hour * num_gpus * rng.uniform(0.8, 1.4):.4f}")
    return Machine(
        machine_id=FIRST_MACHINE + index,
        host_id=FIRST_HOST + rng.randrange(40),
        card=card,
        num_gpus=num_gpus,
        dph_base=dph_base,
        min_bid=Decimal(f"{float(dph_base) * rng.uniform(0.35, 0.8):.4f}"),
        storage_cost=Decimal(f"{rng.uniform(0.05, 0.3):.3f}"),
        inet_up_cost=Decimal(f"{rng.uniform(0, 0.02):.4f}"),
        inet_down_cost=Decimal(f"{rng.uniform(0, 0.01):.4f}"),
        disk_space=Decimal(f"{rng.uniform(40, 2000):.1f}"),
        reliability=round(1 - rng.expovariate(60), 4),
        verification=rng.choices(("verified", "unverified", "deverified"), (8, 2, 1))[0],
        geolocation=rng.choice(PLACES),
        inet_up=round(rng.uniform(20, 2000), 1),
        inet_down=round(rng.uniform(50, 5000), 1),
        cuda_max_good=rng.choice((12.2, 12.4, 12.8, 13.0)),
        driver_version=rng.choice(("535.183.01", "550.54.15", "570.86.15", "580.65.06")),
        cpu_cores=rng.choice((8, 16, 32, 64)),
        end_date=Moment(now + round(rng.uniform(1, 90) * DAY)),
        ask_id=FIRST_ASK + index,
        taken_until=now,
    )
