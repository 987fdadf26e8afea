"""Two machines train one run: the older one stops before its commit, the newer one's is the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.contexts import worker_context
from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.miniature import TRUST, miniature_config
from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointReader
from tsgb.errors import LeaseLost
from tsgb.types import CheckpointRef
from tsgb.worker.build import setup_torch
from tsgb.worker.context import StopSignals
from tsgb.worker.train import OnUpdate, TrainingAttempt, no_update

pytestmark = pytest.mark.integration

CONFIG = miniature_config({"checkpoint_interval": 3})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup_torch()
    return tmp_path_factory.mktemp("cache")


def train(run: RunStore, cache: Path, on_update: OnUpdate = no_update) -> CheckpointRef:
    context = worker_context(cache, trust=TRUST)
    attempt = TrainingAttempt(
        run, CONFIG, context, StopSignals(), attempt=None, on_update=on_update
    )
    return attempt.train(None)


def tensors(run: RunStore, ref: CheckpointRef) -> dict[str, bytes]:
    files = CheckpointReader(run).read(ref)
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("update", [1, 3, 8], ids=lambda update: f"after update {update}")
def test_the_older_of_two_machines_stops_and_the_newer_ends_as_if_alone(
    tmp_path: Path, cache: Path, update: int
) -> None:
    with serve(dav_app(tmp_path)) as url:

        def opened() -> RunStore:
            return open_run(f"{url}/r1", USER, SecretStr(PASSWORD), deadline_seconds=20)

        newer: list[CheckpointRef] = []

        def rival(metrics: Mapping[str, Any]) -> None:
            """Another machine does the whole run, while this one is between two updates."""
            if metrics["step"] == update:
                newer.append(train(opened(), cache))

        with pytest.raises(LeaseLost, match=r"was claimed by a0002"):
            train(opened(), cache, rival)

        names = opened().list("checkpoints")
        late = [p for name in names if (p := CheckpointName.parse(name)) and p.attempt == 1]
        assert all(place.step <= update for place in late), "it committed nothing afterwards"
        assert CheckpointReader(opened()).newest() == newer[0]
        alone = open_run(str(tmp_path / "alone"))
        assert tensors(opened(), newer[0]) == tensors(alone, train(alone, cache))
