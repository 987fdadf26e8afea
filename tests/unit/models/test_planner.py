"""The planner's arithmetic against the design's table, transformers, peft, and torch's tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.fakes.families import make_family
from tsgb.config import ModelConfig
from tsgb.models.general.batches import micro_batches
from tsgb.models.general.causal_lm import CausalLm
from tsgb.models.general.general_engine import GeneralEngine
from tsgb.models.planner import (
    FAMILIES,
    DeviceMemory,
    ModelPart,
    ModelsInMemory,
    ModelSizes,
    Resident,
    TrainingWork,
    card_for,
    copied_weights,
    disk_gb,
    memory_parts,
    plan_memory,
)
from tsgb.models.tokenizer import WordTokenizer
from tsgb.types import TokenizerSpec, TrainingText

GB = 10**9


def llama(width: int, layers: int, inner: int, heads: int, key_heads: int, **more: Any) -> Any:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        **more,
    }


def sizes_of(config: Mapping[str, Any]) -> ModelSizes:
    sizes = ModelSizes.read(config)
    assert sizes is not None
    return sizes


REAL = {
    "135M": sizes_of(llama(576, 30, 1536, 9, 3, vocab_size=49152)),
    "0.5B": sizes_of(llama(896, 24, 4864, 14, 2)),
    "1.5B": sizes_of(llama(1536, 28, 8960, 12, 2)),
    "3B": sizes_of(llama(2048, 36, 11008, 16, 2)),
    "8B": sizes_of(llama(4096, 32, 14336, 32, 8, vocab_size=128256, tie_word_embeddings=False)),
}
"""SmolLM2-135M, Qwen2.5-0.5B, -1.5B and -3B, and Llama-3.1-8B."""


def on_a_card(sizes: ModelSizes, target: ModelSizes | None = None) -> float:
    """GB with full micro-batches whose activations are computed again."""
    parts = memory_parts(
        sizes,
        TrainingWork(),
        dtype="bfloat16",
        is_card=True,
        micro_batch_tokens=2048,
        gradient_checkpointing=True,
        beside=[] if target is None else [Resident(ModelPart.TARGET, target)],
    )
    return sum(parts.values()) / GB


# -- the design's table --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "target", "least", "most"),
    [
        ("0.5B", None, 3.7, 3.7),
        ("1.5B", None, 7.8, 7.8),
        ("3B", None, 12, 18),
        ("3B", "3B", 18, 24),
        ("8B", None, 30, 30),
    ],
)
def test_the_table(model: str, target: str | None, least: float, most: float) -> None:
    """bf16 base, both roles of rank 16, 64 rows of 1,024 tokens.

    8B is 16 % below: the table counts the cache of all 64 rows, the engine writes 16 at a time.
    """
    found = on_a_card(REAL[model], None if target is None else REAL[target])
    assert 0.75 * least <= found <= 1.25 * most


@pytest.mark.parametrize(
    ("model", "gigabytes"), [("0.5B", 8), ("1.5B", 12), ("3B", 16), ("8B", 32)]
)
def test_the_card_to_rent(model: str, gigabytes: int) -> None:
    card = card_for(REAL[model])
    assert card is not None
    assert card.device.total == gigabytes * GB
    assert card.fits


def test_no_card_is_large_enough() -> None:
    assert card_for(replace(REAL["8B"], layers=320)) is None
    assert disk_gb(16 * GB, 6 * GB) == 37


def test_each_model_counts_the_others() -> None:
    models = ModelsInMemory(
        base=REAL["0.5B"],
        work=TrainingWork(target_ranks=(8, 16)),
        target=REAL["1.5B"],
        black_box=REAL["135M"],
    )
    card = DeviceMemory("cuda", 48 * GB)
    plans = {part: models.plan(part, card, "bfloat16") for part in ModelPart}
    sizes = {
        ModelPart.BASE: REAL["0.5B"],
        ModelPart.TARGET: REAL["1.5B"],
        ModelPart.BLACK_BOX: REAL["135M"],
    }
    for part, plan in plans.items():
        assert plan is not None
        for other in ModelPart:
            found = plan.parts["weights" if other is part else other.value]
            assert found >= 2 * sizes[other].parameters
    targets = 4 * (REAL["1.5B"].adapter(8) + REAL["1.5B"].adapter(16))
    base, own = plans[ModelPart.BASE], plans[ModelPart.TARGET]
    assert base is not None
    assert own is not None
    assert base.parts["target"] >= 2 * REAL["1.5B"].parameters + targets
    assert own.parts["adapters"] == targets
    assert replace(models, target=None).plan(ModelPart.TARGET, card, "bfloat16") is None


def test_adapters_of_targets_lie_on_the_base_where_that_is_the_target() -> None:
    device, sizes = DeviceMemory("cpu", 24 * GB), REAL["135M"]

    def adapters(ranks: tuple[int, ...]) -> int:
        models = ModelsInMemory(base=sizes, work=TrainingWork(target_ranks=ranks))
        plan = models.plan(ModelPart.BASE, device, "float32")
        assert plan is not None
        return plan.parts["adapters"]

    assert adapters((8, 8, 16, 8)) - adapters(()) == 4 * 40 * sizes.adapter(1)


def test_a_model_that_only_answers_needs_no_optimizer() -> None:
    models = ModelsInMemory(base=REAL["0.5B"], black_box=REAL["0.5B"])
    card = DeviceMemory("cuda", 48 * GB)
    base, asked = (
        models.plan(part, card, "bfloat16") for part in (ModelPart.BASE, ModelPart.BLACK_BOX)
    )
    assert base is not None
    assert asked is not None
    assert asked.parts["optimizer"] == asked.parts["adapters"] == asked.parts["snapshots"] == 0
    assert asked.parts["activations"] < base.parts["activations"]


@pytest.mark.parametrize("gigabytes", [4, 8, 16, 24, 64])
def test_fast_engines_share_the_memory_of_a_machine(gigabytes: int) -> None:
    """Each gets what the others cannot hold: weights, their copies, and adapters."""
    device, sizes = DeviceMemory("cpu", gigabytes * GB), REAL["135M"]
    alone = ModelsInMemory(base=sizes)
    assert alone.fast_memory(ModelPart.BASE, device, "float32") == device.share
    three = replace(alone, target=sizes, black_box=sizes, work=TrainingWork(target_ranks=(8, 16)))
    weights = 4 * sizes.parameters
    for part in ModelPart:
        memory = three.fast_memory(part, device, "float32")
        others = three.beside(part, is_card=False)
        held = sum(other.held(4) + copied_weights(weights, memory) for other in others)
        assert len(others) == 2
        assert held > 2 * weights
        assert memory == 0 or memory + held <= device.share


def test_models_in_bfloat16_leave_more_memory_to_each_other() -> None:
    device, sizes = DeviceMemory("cpu", 8 * GB), REAL["135M"]
    both = ModelsInMemory(base=sizes, target=sizes)
    coarse, fine = (
        both.fast_memory(ModelPart.BASE, device, dtype) for dtype in ("bfloat16", "float32")
    )
    assert copied_weights(2 * sizes.parameters, device.share) > 0
    # Weights of two bytes, with three copies of that size; those of four bytes have none.
    assert coarse == fine + 4 * sizes.parameters - 4 * 2 * sizes.parameters
    tight = DeviceMemory("cpu", 4 * GB)
    assert copied_weights(2 * sizes.parameters, tight.share) == 0
    assert both.fast_memory(ModelPart.BASE, tight, "bfloat16") == (
        both.fast_memory(ModelPart.BASE, tight, "float32") + 2 * sizes.parameters
    )


# -- processes that share a machine --------------------------------------------------------


@pytest.mark.parametrize("device", [DeviceMemory("cpu", 16 * GB), DeviceMemory("cuda:0", 24 * GB)])
def test_processes_divide_what_one_has(device: DeviceMemory) -> None:
    shared = device.shared_by(3)
    assert shared.total == device.total
    assert 0 <= device.usable - 3 * shared.usable < 3
    assert 0 <= device.share - 3 * shared.share < 3
    assert shared.shared_by(2) == device.shared_by(6)
    assert str(shared) == f"{device} shared by 3 workers"


@pytest.mark.parametrize(
    ("model", "device", "dtype", "num"),
    [
        ("135M", DeviceMemory("cpu", 8 * GB), "float32", 2),
        ("1.5B", DeviceMemory("cpu", 8 * GB), "float32", 1),
        ("135M", DeviceMemory("cpu", 64 * GB), "float32", 8),
        ("135M", DeviceMemory("cuda:0", 8 * GB), "bfloat16", 1),
        ("0.5B", DeviceMemory("cuda:0", 24 * GB), "bfloat16", 5),
        ("8B", DeviceMemory("cuda:0", 16 * GB), "bfloat16", 1),
    ],
)
def test_as_many_processes_as_memory_has_room_for(
    model: str, device: DeviceMemory, dtype: str, num: int
) -> None:
    models = ModelsInMemory(base=REAL[model])
    assert models.workers(device, dtype, most=8) == num
    assert models.workers(device, dtype, most=1) == 1
    if num > 1:
        plan = models.plan(ModelPart.BASE, device.shared_by(num), dtype)
        assert plan is not None
        assert num * plan.needed <= device.share


def test_each_process_loads_a_black_box_of_its_own() -> None:
    models = ModelsInMemory(base=REAL["135M"])
    device = DeviceMemory("cpu", 24 * GB)
    asks = replace(models, black_box=REAL["0.5B"])
    assert models.workers(device, "float32", 8) == 6
    assert asks.workers(device, "float32", 8) == 3


# -- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_every_family(family: str) -> None:
    """Of the family's own default configuration; norms and biases make the difference."""
    config: Any = CONFIG_MAPPING[family]()
    factory: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        module = factory.from_config(config)
    num = sum(p.numel() for p in module.parameters())
    sizes = ModelSizes.read(config.to_dict(), num)
    assert sizes is not None
    assert sizes.parameters == pytest.approx(num, rel=0.005)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "novel"},
        {"model_type": "mamba"},
        {"hidden_size": None},
        {"num_attention_heads": "many"},
        {"vocab_size": 0},
    ],
    ids=str,
)
def test_what_is_not_understood_has_no_sizes(changes: dict[str, Any]) -> None:
    config = llama(896, 24, 4864, 14, 2) | changes
    assert ModelSizes.read({k: v for k, v in config.items() if v is not None}) is None


def test_sizes_that_do_not_explain_the_files_are_not_believed() -> None:
    config, num = llama(896, 24, 4864, 14, 2), 494_000_000
    assert ModelSizes.read(config, num) == REAL["0.5B"]
    assert ModelSizes.read(config, num + 896 * 151936) == REAL["0.5B"], "the head is stored, too"
    assert ModelSizes.read(config, 2 * num) is None
    assert ModelSizes.read({"model_type": "gemma3", "text_config": config}) == REAL["0.5B"]


def test_grouped_heads_and_windows_make_the_cache_smaller() -> None:
    grouped = sizes_of(llama(2048, 10, 8192, 16, 4))
    whole = sizes_of(llama(2048, 10, 8192, 16, 16))
    assert whole.cached(1000, 2) == 4 * grouped.cached(1000, 2) == 2 * 2048 * 2 * 10 * 1000
    types = ["sliding_attention", "full_attention"] * 5
    windowed = sizes_of(llama(2048, 10, 8192, 16, 4, layer_types=types, sliding_window=100))
    assert windowed.cached(1000, 2) == 0.55 * grouped.cached(1000, 2)


def test_all_experts_are_counted() -> None:
    mixture = {"num_local_experts": 8, "num_experts_per_tok": 2, "model_type": "mixtral"}
    sizes = sizes_of(llama(1024, 8, 4096, 16, 4, **mixture))
    dense = sizes_of(llama(1024, 8, 4096, 16, 4))
    experts = 8 * 8 * 3 * 1024 * 4096
    assert sizes.parameters - dense.parameters == experts - experts // 8
    assert on_a_card(sizes) - on_a_card(dense) > 2 * experts * 7 / 8 / GB


# -- against torch -------------------------------------------------------------------------

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
ROWS, TOKENS = 2, 64
MEASURED = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_neox"]


def wide(family: str, **changes: Any) -> Any:
    own = {"num_key_value_heads": None, "head_dim": None} if family == "gpt_neox" else {}
    return make_family(family, 1200, **{**WIDE, **own, **changes})


@pytest.mark.parametrize("family", MEASURED)
def test_adapters_are_those_of_peft(family: str) -> None:
    module = wide(family)
    role = CausalLm(module).add_role(16, torch.Generator())
    num = sum(p.numel() for p in role.parameters.values())
    assert sizes_of(module.config.to_dict()).adapter(16) == num


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_adapters_of_experts_are_those_of_peft(kind: str) -> None:
    """peft adapts the joined gate and up matrices of an expert with twice the rank."""
    moe = {"moe_intermediate_size": 64} if kind == "Qwen3Moe" else {}
    count = "num_experts" if kind == "Qwen3Moe" else "num_local_experts"
    config = getattr(transformers, f"{kind}Config")(
        **{**WIDE, "num_hidden_layers": 2, "vocab_size": 200, "num_experts_per_tok": 2},
        **{**moe, count: 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    )
    factory: Any = transformers.AutoModelForCausalLM
    module = factory.from_config(config)
    role = CausalLm(module).add_role(16, torch.Generator())
    num = sum(p.numel() for p in role.parameters.values())
    sizes = ModelSizes.read(config.to_dict(), sum(p.numel() for p in module.parameters()) - num)
    assert sizes is not None
    assert sizes.adapter(16) == num


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", MEASURED)
def test_activations_are_what_a_backward_pass_keeps(family: str, dtype: torch.dtype) -> None:
    module = wide(family).to(dtype)
    lm = CausalLm(module)
    role = lm.add_role(16, torch.Generator())
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    rows = [list(range(TOKENS))] * ROWS
    [batch] = micro_batches(rows, [[TOKENS - 1]] * ROWS, limit=10**6, share=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = lm.hidden_states(role, batch)
    assert states.requires_grad
    found = sum(storage.nbytes() for storage in kept.values()) / (ROWS * TOKENS)
    sizes = sizes_of(module.config.to_dict())
    per_token = sizes.layers * sizes.kept(16, dtype.itemsize, TOKENS)
    assert per_token == pytest.approx(found, rel=0.15)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, made)
        return made

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, size)
        return tensor

    def _forget(self, size: int) -> None:
        self._live -= size


WORDS = ("PAD", "BOS", "SEP", "EOS", *(f"w{i}" for i in range(1196)))
TOKENIZER = WordTokenizer(
    TokenizerSpec(words=WORDS, chat_template="{{ 'BOS ' + messages[-1]['content'] + ' SEP' }}")
)


def words(rng: Random, num: int) -> str:
    return " ".join(rng.choice(WORDS[4:]) for _ in range(num))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_takes_what_was_planned(checkpointing: bool) -> None:
    """An update whose batch is larger than its micro-batches: the peak of all live tensors."""
    module = wide("qwen2")
    engine = GeneralEngine(
        module,
        TOKENIZER,
        name="tiny",
        sha256="0" * 64,
        directory=Path(),
        micro_batch_tokens=512,
        gradient_checkpointing=checkpointing,
    )
    role = engine.add_role(ModelConfig(adapter="lora"), torch.Generator())
    rng = Random(0)
    texts = [TrainingText(text=words(rng, 125), completion="w5 w6 EOS") for _ in range(8)]
    with LiveTensors() as tensors:
        engine.text_loss(role, texts).backward()
    sizes = sizes_of(module.config.to_dict())
    gradients = 4 * sizes.adapter(16)  # planned elsewhere
    kept = sizes.kept(16, 4, 128)
    planned = 512 * (
        sizes.layers * sizes.width * 4 + 2.5 * kept if checkpointing else (sizes.layers + 1) * kept
    )
    logits = 4 * 24 * 1200  # the labelled positions
    assert tensors.peak - gradients == pytest.approx(planned + 4 * logits, rel=0.25)


# -- choices -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "device", "dtype", "tokens", "checkpointing", "fits"),
    [
        ("135M", DeviceMemory("cpu", 24 * GB), "float32", 2048, False, True),
        ("1.5B", DeviceMemory("cpu", 24 * GB), "float32", 2048, True, True),
        ("8B", DeviceMemory("cpu", 24 * GB), "float32", 256, True, False),
        ("0.5B", DeviceMemory("cuda:0", 24 * GB), "bfloat16", 8192, False, True),
        ("3B", DeviceMemory("cuda:0", 80 * GB), "bfloat16", 8192, False, True),
        ("8B", DeviceMemory("cuda:0", 32 * GB), "bfloat16", 2048, True, True),
        ("8B", DeviceMemory("cuda:0", 16 * GB), "bfloat16", 256, True, False),
    ],
)
def test_the_micro_batch_follows_the_memory(
    model: str, device: DeviceMemory, dtype: str, tokens: int, checkpointing: bool, fits: bool
) -> None:
    plan = plan_memory(REAL[model], device, dtype=dtype)
    assert (plan.micro_batch_tokens, plan.gradient_checkpointing) == (tokens, checkpointing)
    assert plan.fits == fits


Numbers = Callable[..., st.SearchStrategy[int]]
numbers: Numbers = st.integers


@given(
    model=st.sampled_from(sorted(REAL)),
    rank=numbers(1, 64),
    tokens=numbers(256, 8192),
    rows=numbers(1, 128),
    row_tokens=numbers(16, 4096),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    checkpointing=st.booleans(),
    is_card=st.booleans(),
    grown=st.sampled_from(["rank", "tokens", "rows", "row_tokens", "layers", "experts"]),
)
def test_more_of_anything_takes_more(
    model: str,
    rank: int,
    tokens: int,
    rows: int,
    row_tokens: int,
    dtype: str,
    checkpointing: bool,
    is_card: bool,
    grown: str,
) -> None:
    def needed(factor: int) -> int:
        many = {name: factor if name == grown else 1 for name in ("rank", "rows", "tokens")}
        sizes = replace(
            REAL[model],
            layers=REAL[model].layers * (factor if grown == "layers" else 1),
            experts=(factor if grown == "experts" else 1),
            expert_inner=64,
            active_experts=1,
        )
        work = TrainingWork(
            rows=rows * many["rows"],
            # A longer row may leave room for fewer of them at a time.
            row_tokens=row_tokens * (8 * factor if grown == "row_tokens" else 1),
            rank=rank * many["rank"],
        )
        return sum(
            memory_parts(
                sizes,
                work if grown != "row_tokens" else replace(work, rows=1),
                dtype=dtype,
                is_card=is_card,
                micro_batch_tokens=tokens * many["tokens"],
                gradient_checkpointing=checkpointing,
            ).values()
        )

    assert needed(1) <= needed(2)
    if grown in {"rank", "layers", "experts"}:
        assert needed(1) < needed(2)
