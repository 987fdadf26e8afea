"""What a checkpoint of a 3B base weighs and sends, at full size, on a real WebDAV server.

    pytest tests/benchmarks/test_checkpoint_size.py -s

The adapters are those that peft puts on a Qwen2.5-3B-shaped model of rank 16; the base itself is
never made. The state is that of a run of four rounds: three attackers and five guards of the past.
Needs 4 GB of memory and of disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch
from pydantic import SecretStr
from torch import nn

from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tsgb.checkpoint.codec import FrozenTensors
from tsgb.checkpoint.store import CheckpointStore, open_run
from tsgb.config import ModelConfig
from tsgb.models.engine import Engine
from tsgb.models.optimizer import AdamW
from tsgb.trainer.players import Player
from tsgb.trainer.state import CheckpointBuffers, SavedRole, TrainerState, checkpoint_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RANK = 16
QWEN_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
SAVES = 4


@dataclass
class Learner:
    """A role's weights and moments, of random numbers."""

    parameters: dict[str, nn.Parameter]
    optimizer: AdamW


@dataclass
class Base:
    """As much of an engine as a checkpoint names."""

    name: str = "Qwen2.5-3B-shaped"
    sha256: str = "0" * 64


def adapters(generator: torch.Generator) -> dict[str, nn.Parameter]:
    """The tensors of one adapter, by the names under which they are saved."""
    import peft
    import transformers

    with torch.device("meta"):
        module: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**QWEN_3B))
        config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(module, config)
    assert sum(p.numel() for p in module.parameters()) > 3e9
    shapes = {name: p.shape for name, p in adapted.named_parameters() if "lora_" in name}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, device="cpu"))
        for name, shape in shapes.items()
    }


def learner(generator: torch.Generator) -> Learner:
    parameters = adapters(generator)
    optimizer = AdamW(list(parameters.values()), lr=1e-4)
    made = Learner(parameters, optimizer)
    update(made, generator)
    return made


def update(one: Learner, generator: torch.Generator) -> None:
    for parameter in one.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator, device="cpu")
    one.optimizer.step()
    one.optimizer.zero_grad()


def test_a_checkpoint_of_a_3b_base(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    attacker, guard = learner(generator), learner(generator)
    warm = FrozenTensors(adapters(generator))
    starts = {"sft": FrozenTensors(adapters(generator)), "warm": warm}
    names = ["sft", "round-1", "round-2", "round-3", "round-4"]
    columns = {name: FrozenTensors(adapters(generator)) for name in names}
    roles = [
        SavedRole("attacker", cast("Player", attacker), starts),
        SavedRole("guard", cast("Player", guard), columns),
    ]
    state, buffers = TrainerState(), CheckpointBuffers()
    sent: list[tuple[str, int]] = []
    app = dav_app(tmp_path)

    def counting(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            sent.append((environ["PATH_INFO"], int(environ["CONTENT_LENGTH"])))
        return app(environ, start)

    with serve(counting) as url:
        store = CheckpointStore(open_run(f"{url}/r1", USER, SecretStr(PASSWORD)))
        store.claim()
        for save in range(SAVES):
            update(attacker, generator)
            state.step = save
            begin, cpu, before = time.monotonic(), time.thread_time(), len(sent)
            files = checkpoint_files(
                cast("Engine", Base()),
                ModelConfig(rank=RANK),
                state,
                roles,
                rng=Random(0),
                generator=generator,
                now=datetime.now(UTC),
                buffers=buffers,
            )
            store.publish(save, 0, files, "0" * 64)
            store.prune(1)
            own = sum(len(data) for name, data in files.items() if "/" not in name)
            parts = sum(size for path, size in sent[before:] if path.startswith("/r1/parts/"))
            print(  # noqa: T201 - with -s
                f"save {save}: own files {own / 1e6:.1f} MB, parts sent {parts / 1e6:.1f} MB, PUTs "
                f"{sum(size for _, size in sent[before:]) / 1e6:.1f} MB; "
                f"{time.monotonic() - begin:.1f} s, {time.thread_time() - cpu:.1f} CPU s"
            )
            assert own < 0.8e9
            assert (parts > 0.8e9) == (save == 0), "parts are sent with the first save only"
            # The server may take the first file of a directory twice; it is the smallest one.
            assert sum(size for _, size in sent[before:]) - parts < own + 1e6
        found = store.newest_valid(pytest.fail)
        assert found is not None
        assert {name: bytes(data) for name, data in files.items()} == found[1]
