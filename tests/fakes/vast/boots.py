"""What a container finds when it starts, and what may become of it instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random

from tests.fakes.vast.contracts import Contract, Status
from tests.fakes.vast.options import Fate, Options

BROKEN: Mapping[Fate, Status] = {
    Fate.OCI_ERROR: Status(
        "created",
        "running",
        "stopped",
        "stopped",
        "Error response from daemon: OCI runtime create failed: container_linux.go:380",
    ),
    Fate.NO_SPACE: Status(
        "created", "running", "stopped", "stopped", "write /var/lib/docker: no space left on device"
    ),
    Fate.BAD_IMAGE: Status(
        "loading", "running", "running", "running", "Error: manifest unknown: manifest unknown"
    ),
    Fate.UNAUTHORIZED: Status(
        "loading", "running", "running", "running", "Error: unauthorized: authentication required"
    ),
}


def draw_fate(contract: Contract, options: Options, rng: Random) -> Fate:
    """The machine's, if that is settled; else by the chances of the options."""
    if contract.machine.fate is not None:
        return contract.machine.fate
    draw = rng.random()
    for fate, chance in options.fates.items():
        draw -= chance
        if draw < 0:
            return fate
    return Fate.BOOTS


def environment(contract: Contract, options: Options) -> dict[str, str]:
    """What the container sees; port mappings are no variables."""
    hidden = contract.machine.strips
    given = {n: value for n, value in contract.env if not n.startswith("-") and n not in hidden}
    return {
        **options.image_env,
        **options.account_env,
        **given,
        "CONTAINER_ID": str(contract.id),
        "CONTAINER_API_KEY": contract.key,
        "VAST_CONTAINERLABEL": f"C.{contract.id}",
        "PUBLIC_IPADDR": "203.0.113.42",
        "GPU_COUNT": str(contract.machine.num_gpus),
        "SIM_CARD": json.dumps(contract.machine.driver()),
    }
