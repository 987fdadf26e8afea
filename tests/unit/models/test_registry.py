"""Which engine a model gets: the fast one for what it computes, the general one for the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.fakes.chat_model import enlarge, save_chat_model
from tests.fakes.families import FAMILIES, FAST, save_family
from tsgb.config import ModelConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.errors import ConfigError, UsageError
from tsgb.models.engine import Engine
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.network import HEAD
from tsgb.models.planner import CPU_OVERHEAD
from tsgb.models.registry import ModelRegistry, make_engine

TEMPLATE = CanaryEnvironment(world_seed=0).guard_template()
PROMPT = "What is the badge code?"
Changed = Callable[..., Path]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """`changed({"hidden_act": "gelu"})`: a Llama, or another family, with other settings."""

    def change(settings: dict[str, Any], family: str = "") -> Path:
        path = tmp_path / "model"
        path = save_family(path, family) if family else save_chat_model(path)
        config = path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
        return path

    return change


def engine_of(path: Path, config: ModelConfig | None = None) -> Engine:
    return make_engine(
        path, config or ModelConfig(dtype="float32"), name=path.name, sha256="0" * 64
    )


def score_by_transformers(path: Path, engine: Engine) -> torch.Tensor:
    factory: Any = transformers.AutoModelForCausalLM
    module = factory.from_pretrained(path, dtype=torch.float32)
    [row] = engine.tokenizer.guard_rows(TEMPLATE, [PROMPT])
    with torch.no_grad():
        last = module(input_ids=torch.tensor([row])).logits[0, -1]
    unsafe, safe = map(engine.tokenizer.single, (TEMPLATE.unsafe, TEMPLATE.safe))
    return last[unsafe] - last[safe]


@pytest.mark.parametrize(
    ("settings", "fast"),
    [
        ({}, True),
        ({"hidden_act": "gelu"}, False),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0}}, True),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0}}, False),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 100}}, True),
        ({"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": LLAMA3}, True),
        ({"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2}}, True),
        ({"rope_scaling": {"rope_type": "default"}}, True),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, True),
        ({"rope_parameters": None, "rope_theta": 9e3, "rope_scaling": None}, True),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, False),
        ({"num_key_value_heads": 1, "pretraining_tp": 1, "attention_dropout": 0.1}, True),
        ({"embedding_multiplier": 12.0}, False),
        ({"unheard_of": None}, True),
    ],
    ids=json.dumps,
)
def test_a_llama_gets_the_fast_engine_if_that_computes_it(
    changed: Changed, settings: dict[str, Any], fast: bool
) -> None:
    path = changed(settings)
    engine = engine_of(path)
    assert isinstance(engine, FastEngine) == fast
    score = engine.score_all(engine.base, TEMPLATE, [PROMPT])[0]
    torch.testing.assert_close(score, score_by_transformers(path, engine), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("settings", "fast"),
    [
        ({}, True),
        ({"sliding_window": 16, "max_window_layers": 1, "layer_types": None}, True),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 16,
                "max_window_layers": 1,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            False,
        ),
        ({"attention_bias": False, "mlp_bias": False}, True),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 100.0}}, True),
    ],
    ids=json.dumps,
)
def test_a_qwen2_gets_the_fast_engine_if_that_computes_it(
    changed: Changed, settings: dict[str, Any], fast: bool
) -> None:
    path = changed(settings, "qwen2")
    engine = engine_of(path)
    assert isinstance(engine, FastEngine) == fast
    score = engine.score_all(engine.base, TEMPLATE, [PROMPT])[0]
    torch.testing.assert_close(score, score_by_transformers(path, engine), rtol=0, atol=3e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_biases_and_configuration_must_agree(changed: Changed, bias: bool) -> None:
    """Biases that are missing are not taken as zero; those that nobody asked for are not added."""
    path = changed({"attention_bias": bias}, "llama" if bias else "llama_bias")
    if bias:
        with pytest.raises(ConfigError, match=r"lacks 8 tensors of a 'llama', .*proj\.bias"):
            engine_of(path)
        return
    engine = engine_of(path)
    score = engine.score_all(engine.base, TEMPLATE, [PROMPT])[0]
    torch.testing.assert_close(score, score_by_transformers(path, engine), rtol=0, atol=3e-5)


def test_a_configuration_may_leave_defaults_out(changed: Changed) -> None:
    path = changed({"num_key_value_heads": 3})
    settings = json.loads((path / "config.json").read_text())
    del settings["num_key_value_heads"]
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="holds no causal LM that transformers loads"):
        engine_of(path)  # its weights are of one key head


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_an_engine_that_computes_it(tmp_path: Path, family: str) -> None:
    path = save_family(tmp_path / "model", family, shard_size="60KB", dtype=torch.bfloat16)
    assert len(list(path.glob("model-*.safetensors"))) > 1
    engine = engine_of(path)
    assert isinstance(engine, FastEngine) == (family in FAST)
    score = engine.score_all(engine.base, TEMPLATE, [PROMPT])[0]
    torch.testing.assert_close(score, score_by_transformers(path, engine), rtol=0, atol=3e-5)


def test_bfloat16_and_absent_devices(changed: Changed) -> None:
    path = changed({})
    engine: Any = engine_of(path, ModelConfig(dtype="bfloat16", device="cpu"))
    assert engine.base.tensor(HEAD).dtype is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"'cuda:3': torch finds no CUDA cards here; set it"):
            engine_of(path, ModelConfig(device="cuda:3"))


def test_processes_that_share_a_machine_divide_its_memory(changed: Changed) -> None:
    path = changed({})
    alone, shared = (
        make_engine(path, ModelConfig(), name="m", sha256="0" * 64, memory_shares=num)
        for num in (1, 2)
    )
    budgets: list[Any] = [getattr(engine, "budget") for engine in (alone, shared)]  # noqa: B009
    fixed = CPU_OVERHEAD + 4 * 4 * alone.num_parameters
    assert budgets[0].free + fixed == pytest.approx(2 * (budgets[1].free + fixed), rel=1e-3)
    refused = r"cpu with \S+ GB shared by 100000 workers spares 0\.0 GB: .* run fewer workers at a"
    with pytest.raises(UsageError, match=refused):
        make_engine(path, ModelConfig(), name="m", sha256="0" * 64, memory_shares=100_000)


class TestSeveralModels:
    """A base, a target of its own and a black box, in one process."""

    @pytest.fixture
    def registry(self, tmp_path: Path) -> Iterator[Callable[..., ModelRegistry]]:
        env = CanaryEnvironment(world_seed=0)
        base = save_chat_model(tmp_path / "base")
        models = {"pretrained": str(base), "dtype": "float32"}

        def make(*, evaluates: bool = False, **more: object) -> ModelRegistry:
            named = {"profile": "smoke", "env": "canary", "model": models | more}
            config = make_config(env.profile("smoke"), named)
            cache = tmp_path / "cache"
            return ModelRegistry(env, config, cache, lambda *_: None, evaluates=evaluates)

        yield make
        for model in tmp_path.glob("giant/*.safetensors"):
            model.unlink()  # a hole of 800 GB, which whoever looks for secrets would read

    def test_a_target_that_does_not_fit_is_refused_before_the_base_is_loaded(
        self, registry: Callable[..., ModelRegistry], tmp_path: Path
    ) -> None:
        giant = str(enlarge(save_chat_model(tmp_path / "giant")))
        with pytest.raises(UsageError, match=r"model base needs \d{4}\.\d GB in float32, and cpu"):
            registry(target=giant).base()
        registry(black_boxes=[giant]).base()  # training asks no black box
        with pytest.raises(UsageError, match=r"model base needs \d{4}\.\d GB in float32, and cpu"):
            registry(black_boxes=[giant], evaluates=True).base()

    def test_the_base_alone_can_be_used_where_a_target_is_not(
        self, registry: Callable[..., ModelRegistry], tmp_path: Path
    ) -> None:
        """As an export does."""
        models = registry(target=str(tmp_path / "gone"))
        assert models.base().name == "base"
        with pytest.raises(ConfigError, match="gone' is a directory that does not exist"):
            models.target()

    def test_they_share_the_memory(
        self, registry: Callable[..., ModelRegistry], tmp_path: Path
    ) -> None:
        further = [str(save_chat_model(tmp_path / name)) for name in ("target", "box")]
        alone: Any = registry().base()
        models = registry(target=further[0], black_boxes=further[1:], evaluates=True)
        base, target, box = models.base(), models.target(), models.black_box(further[1])
        assert len({id(engine) for engine in (base, target, box)}) == 3
        for engine in (base, target, box):
            budget: Any = getattr(engine, "budget")  # noqa: B009 - of the fast engine
            # At least the weights of both others, with the three copies of each.
            assert alone.budget.free - budget.free > 2 * 4 * 4 * base.num_parameters * 0.9
