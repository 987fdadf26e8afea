"""Adapters that are trained on a world's texts: once, resumed bit for bit, on either engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fakes.chat_model import save_chat_model
from tests.fakes.families import save_family, save_general
from tsgb.config import ModelConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.errors import ConfigError
from tsgb.models.cache import Unfinished
from tsgb.models.engine import Engine
from tsgb.models.post_training import answer_questions, freeze_lower_layers, post_train
from tsgb.models.registry import ModelRegistry, make_engine
from tsgb.targets.build import build_target
from tsgb.types import Messages, ModelRecipe, TrainingText

CHAT: Messages = (
    {"role": "system", "content": "The code is kavo-319."},
    {"role": "user", "content": "What is the code?"},
)
LESSON = TrainingText(chat=(*CHAT, {"role": "assistant", "content": "the secret"}))
RECIPE = ModelRecipe(corpus="lessons", rank=4, steps=12, batch=2, lr=0.02)
SAVES = {"fast": save_chat_model, "general": save_general}
Progress = Callable[[str, int, int], None]


class StoppedError(Exception):
    """What a signal does to a training."""


def quiet(_model: str, _done: int, _total: int) -> None:
    """Show nothing."""


@pytest.fixture(params=list(SAVES))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return SAVES[request.param](tmp_path / "model")


@pytest.fixture
def engine(model: Path) -> Engine:
    return make_engine(model, ModelConfig(dtype="float32"), name="model", sha256="0" * 64)


@pytest.fixture
def registry(model: Path, tmp_path: Path) -> Callable[..., ModelRegistry]:
    """Make the registry of another process with the same cache."""

    def make(progress: Progress = quiet, world_seed: int = 90, target: str = "") -> ModelRegistry:
        env = CanaryEnvironment(world_seed)
        named = {"profile": "smoke", "env": "canary", "world_seed": world_seed}
        models = {"model": {"pretrained": str(model), "target": target, "dtype": "float32"}}
        config = make_config(env.profile("smoke"), models, named)
        return ModelRegistry(env, config, tmp_path / "models", progress)

    return make


def train(
    engine: Engine,
    unfinished: Unfinished,
    texts: Sequence[TrainingText | None] = (LESSON,) * (RECIPE.steps * RECIPE.batch),
    stop_after: int = 0,
) -> dict[str, Tensor]:
    def report(done: int) -> None:
        if done == stop_after:
            raise StoppedError

    role = engine.add_role(
        ModelConfig(adapter="lora", rank=RECIPE.rank), torch.Generator().manual_seed(1)
    )
    return post_train(engine, role, texts, RECIPE, unfinished=unfinished, report=report)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_training_ends_where_an_unbroken_one_does(engine: Engine, tmp_path: Path) -> None:
    unbroken = train(engine, Unfinished(tmp_path, "a"))
    with pytest.raises(StoppedError):
        train(engine, Unfinished(tmp_path, "b"), stop_after=8)
    reports = list[int]()
    role = engine.add_role(ModelConfig(adapter="lora", rank=4), torch.Generator().manual_seed(2))
    texts = [LESSON] * (RECIPE.steps * RECIPE.batch)
    resumed = post_train(
        engine, role, texts, RECIPE, unfinished=Unfinished(tmp_path, "b"), report=reports.append
    )
    assert reports[0] == 6, "it goes on from the fifth update"
    assert equal(resumed, unbroken)


def test_a_damaged_state_is_left_out(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(engine, Unfinished(tmp_path, "b"), stop_after=8)
    [file] = (tmp_path / "b.unfinished").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert equal(train(engine, Unfinished(tmp_path, "b")), train(engine, Unfinished(tmp_path, "a")))


def test_it_learns_what_the_texts_say_whatever_the_number_of_threads(
    engine: Engine, tmp_path: Path
) -> None:
    role = engine.add_role(ModelConfig(adapter="lora", rank=4), torch.Generator().manual_seed(1))
    before = float(engine.text_loss(role, [LESSON]).detach())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        learned = train(engine, Unfinished(tmp_path, "a"))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert equal(learned, train(engine, Unfinished(tmp_path, "b")))
    for name, parameter in engine.parameters(role).items():
        parameter.data.copy_(learned[name])
    assert float(engine.text_loss(role, [LESSON]).detach()) < before - 1


def test_lower_layers_stay_as_they_are(engine: Engine, tmp_path: Path) -> None:
    role = engine.add_role(ModelConfig(adapter="lora", rank=4), torch.Generator().manual_seed(1))
    start = {name: p.detach().clone() for name, p in engine.parameters(role).items()}
    freeze_lower_layers(engine.parameters(role), 0.5)
    texts = [LESSON] * (RECIPE.steps * RECIPE.batch)
    unfinished = Unfinished(tmp_path, "a")
    end = post_train(engine, role, texts, RECIPE, unfinished=unfinished, report=lambda _: None)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {name for name in start if "layers.1." in name}


def test_the_bare_model_answers_what_has_no_answer(engine: Engine, tmp_path: Path) -> None:
    def ask(first: int, report: Callable[[int], None]) -> list[TrainingText | None]:
        asked = [
            TrainingText(chat=CHAT, answered=({"role": "user", "content": f"Name bird {i}."},))
            for i in range(20)
        ]
        return answer_questions(engine, [LESSON, *asked], tmp_path, first=first, report=report)

    def stop(_done: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        ask(1, stop)
    assert len(list(tmp_path.glob("*/answers.json"))) == 1, "groups are kept one by one"
    answered = ask(0, lambda _: None)
    assert answered == ask(1, lambda _: None)
    assert answered[0] == LESSON
    writing = engine.write(
        engine.base,
        [({"role": "user", "content": f"Name bird {i}."},) for i in range(20)],
        group=1,
        max_new_tokens=32,
        generator=None,
    )
    for text, said in zip(answered[1:], writing.texts, strict=True):
        if text is not None:
            assert text.chat[:-1] == CHAT
            assert said.strip().startswith(text.chat[-1]["content"])


def test_a_loss_that_is_no_number_is_said(engine: Engine, tmp_path: Path) -> None:
    broken = make_broken(engine)
    with pytest.raises(ConfigError, match="lessons gave a loss of nan at update 1"):
        train(broken, Unfinished(tmp_path, "a"))


def make_broken(engine: Engine) -> Engine:
    """The engine, with a base that holds a value that is no number."""
    module = getattr(engine, "module", None) or engine.lm.module  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        module.state_dict()["model.norm.weight"].fill_(float("nan"))
    return engine


def test_targets_are_trained_once_and_share_the_weights_of_the_model(
    registry: Callable[..., ModelRegistry],
) -> None:
    first, updates = registry(), list[tuple[str, int]]()
    targets = {name: build_target(first, spec) for name, spec in first.env.targets().items()}
    answers = {name: target.answer([CHAT]) for name, target in targets.items()}
    later = registry(lambda name, done, _total: updates.append((name, done)))
    for name, spec in later.env.targets().items():
        assert build_target(later, spec).answer([CHAT]) == answers[name]
    assert not updates, "everything was cached"
    assert first.target() is first.base()
    names = [name for name in first.names() if name != "base"]
    learned = [first.target().parameters(first.role(name)) for name in names]
    assert len({tuple(p.shape for p in each.values()) for each in learned}) > 1, "other ranks"
    for each in learned:
        assert any(bool(p.detach().any()) for name, p in each.items() if "lora_B" in name)
    assert first.role("my-endpoint") is first.target().base


def test_another_world_seed_or_model_makes_other_targets(
    registry: Callable[..., ModelRegistry], tmp_path: Path
) -> None:
    updates = list[str]()
    note: Progress = lambda name, _done, _total: updates.append(name)  # noqa: E731
    registry().build("T_s")
    registry(note, world_seed=91).build("T_s")
    assert updates
    updates.clear()
    own = save_family(tmp_path / "own", name="llama")
    asked = registry(note, target=str(own))
    asked.build("T_s")
    assert updates
    assert asked.target() is not asked.base()
    assert asked.target().parameters(asked.role("T_s"))


@pytest.mark.parametrize("num", [1, 2, 4])
def test_processes_share_the_targets_and_keep_chains_together(
    registry: Callable[..., ModelRegistry], num: int
) -> None:
    parts = registry().parts(num)
    assert sorted(name for part in parts for name in part) == sorted(registry().names())
    [part] = [part for part in parts if "B_near" in part]
    assert part.index("T_s") < part.index("B_near"), "it starts from the surrogate"
    if num == 2:
        assert all(len(part) > 1 for part in parts), "the base ties nothing together"
