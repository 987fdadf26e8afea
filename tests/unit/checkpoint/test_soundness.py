"""What a trainer saves is sound; what no trainer could load is not, however well it is formed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from tests.fakes.miniature import make_trainer, miniature_config
from tsgb.checkpoint.codec import decode_tensors, encode_tensors
from tsgb.checkpoint.soundness import Unsound, check_checkpoint, check_file
from tsgb.config import RunConfig

Files = dict[str, bytes]
LORA = {"model": {"adapter": "lora", "rank": 2}, "selfplay": {"rounds": 1}}


def run_of(changes: Mapping[str, Any]) -> tuple[RunConfig, list[Files]]:
    """A run's configuration, and its files at every boundary."""
    config = miniature_config(changes)
    trainer = make_trainer(config)

    def files() -> Files:
        return {name: bytes(data) for name, data in trainer.files().items()}

    boundaries = [files()]
    while not trainer.done:
        trainer.step()
        boundaries.append(files())
    return config, boundaries


@pytest.fixture(scope="module")
def run() -> tuple[RunConfig, list[Files]]:
    return run_of({})


def check(config: RunConfig, files: Files, before: Mapping[str, bytes], step: int) -> None:
    for name, data in files.items():
        check_file(name, data)
    adapter = config.model.adapter, config.model.rank
    check_checkpoint(files, before, step=step, adapter=adapter)


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_what_a_trainer_saves_is_sound_after_any_update(
    run: tuple[RunConfig, list[Files]], changes: dict[str, Any]
) -> None:
    config, boundaries = run if not changes else run_of(changes)
    assert len(boundaries) > 8
    for step, files in enumerate(boundaries):
        check(config, files, {}, step)
        for before in {0, step // 2, max(0, step - 1)}:
            check(config, files, boundaries[before], step)


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[..., Files]:
    """Changes the tensors of a file."""

    def changed(files: Files) -> Files:
        found, about = decode_tensors(files[name])
        change(found)
        return {**files, name: encode_tensors(found, about)}

    return changed


def about(name: str, **values: Any) -> Callable[..., Files]:
    """Changes what a file says of its tensors."""

    def changed(files: Files) -> Files:
        found, before = decode_tensors(files[name])
        return {**files, name: encode_tensors(found, {**before, **values})}

    return changed


def group(**values: Any) -> Callable[..., Files]:
    """Changes the group of parameters of the guard's optimizer."""

    def changed(files: Files) -> Files:
        _, before = decode_tensors(files[OPTIMIZER])
        [one] = before["param_groups"]
        return about(OPTIMIZER, param_groups=[{**one, **values}])(files)

    return changed


def state(change: Callable[[dict[str, Any]], object]) -> Callable[..., Files]:
    """Changes the trainer's state."""

    def changed(files: Files) -> Files:
        content = json.loads(files[STATE])
        change(content)
        return {**files, STATE: json.dumps(content).encode()}

    return changed


def rename_all(found: dict[str, torch.Tensor]) -> None:
    for name in list(found):
        found[name.replace("current/", "former/")] = found.pop(name)


def drop_a_moment(found: dict[str, torch.Tensor]) -> None:
    del found[next(name for name in found if name.endswith("|exp_avg"))]


def flatten_a_moment(found: dict[str, torch.Tensor]) -> None:
    name = next(name for name in found if name.endswith("|exp_avg") and found[name].dim() > 1)
    found[name] = found[name].flatten()


GUARD, OPTIMIZER, STATE = "guard.safetensors", "optim_guard.safetensors", "trainer_state.json"
NOWHERE: Mapping[str, Callable[[Files], Files]] = {
    "another base": about(GUARD, base_sha256="f" * 64),
    "no base": about(GUARD, base_sha256=None),
    "adapters of another kind": about(GUARD, adapter="lora"),
    "adapters of another rank": about(GUARD, rank=3),
    "another target": about(GUARD, target="t", target_sha256="0" * 64),
    "a guard that is not there": about(GUARD, selected="round-7"),
    "no current weights": tensors(GUARD, rename_all),
    "a part of other tensors": lambda files: {
        **files,
        f"{GUARD}/round-9": encode_tensors({"w": torch.zeros(2)}),
    },
    "an optimizer without groups": about(OPTIMIZER, param_groups=[]),
    "groups that are texts": about(OPTIMIZER, param_groups=["params"]),
    "parameters that are numbers": group(params=[1, 2]),
    "parameters of another model": group(params=["elsewhere"]),
    "fewer parameters": group(params=[]),
    "other settings of the optimizer": group(betas=[0.0, 0.0]),
    "a rate that is a text": group(lr="fast"),
    "a state of other weights": tensors(
        OPTIMIZER, lambda found: found.update({"elsewhere|exp_avg": torch.zeros(2)})
    ),
    "a moment of another shape": tensors(OPTIMIZER, flatten_a_moment),
    "a moment too few": tensors(OPTIMIZER, drop_a_moment),
    "scalars that are texts": about(OPTIMIZER, scalars={"elsewhere|step": "x"}),
    "a threshold that is a text": state(lambda content: content["state"].update(threshold="x")),
    "a threshold that is no number": state(
        lambda content: content["state"].update(threshold=float("nan"))
    ),
    "a pool of what is not there": state(lambda content: content["state"].update(pool=["round-9"])),
    "a pool of numbers": state(lambda content: content["state"].update(pool=[1])),
    "a buffer of numbers": state(lambda content: content["state"].update(buffer=[1])),
    "attacks of other fields": state(
        lambda content: content["state"]["buffer"].append({"text": "x"})
    ),
    "a generator of another kind": state(
        lambda content: content["python_rng"].update(words=[1, 2, 3])
    ),
    "a generator's state that is short": state(
        lambda content: content["torch_rng"].update(state="AAAA")
    ),
    "an earlier attacker without attacks": lambda files: {
        **files,
        f"{STATE}/warm": b'{"name":"warm"}',
    },
}


@pytest.mark.parametrize("what", NOWHERE)
def test_what_loads_nowhere_is_refused(run: tuple[RunConfig, list[Files]], what: str) -> None:
    config, boundaries = run
    step = len(boundaries) - 1
    changed = NOWHERE[what](boundaries[step])
    assert changed != boundaries[step]
    with pytest.raises(Unsound):
        check(config, changed, boundaries[step - 1], step)
