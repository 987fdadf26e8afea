"""decode(encode(x)) == x, bit for bit, and equal input gives equal bytes."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tsgb.checkpoint.codec import (
    FrozenTensors,
    Generator,
    TensorFile,
    decode_optimizer,
    decode_tensors,
    encode_optimizer,
    encode_tensors,
    generator_state,
    set_generator_state,
)
from tsgb.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


NAMES = st.text(min_size=1, max_size=8).filter("__metadata__".__ne__)


@st.composite
def some_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        tensor = torch.zeros(shape, dtype=draw(st.sampled_from(DTYPES)))
        size = tensor.numel() * tensor.element_size()
        raw = draw(st.binary(min_size=size, max_size=size))
        if raw:  # any bits, NaNs of every kind among them
            tensor = torch.frombuffer(bytearray(raw), dtype=tensor.dtype).reshape(shape)
        found[name] = tensor
    return found


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.shape == right[name].shape
        assert tensor.dtype == right[name].dtype
        assert raw_bytes(tensor) == raw_bytes(right[name])


class TestTensors:
    @given(some_tensors(), st.dictionaries(st.text(), json_values, max_size=4))
    def test_round_trip(self, tensors: dict[str, Tensor], metadata: dict[str, object]) -> None:
        decoded, found = decode_tensors(encode_tensors(tensors, metadata))
        assert_same(tensors, decoded)
        assert found == metadata

    @given(some_tensors(), some_tensors(), st.dictionaries(st.text(), json_values, max_size=2))
    def test_a_buffer_that_is_filled_again_holds_what_safetensors_would_write(
        self, first: dict[str, Tensor], second: dict[str, Tensor], metadata: dict[str, object]
    ) -> None:
        file = TensorFile()
        for tensors in (first, second, first):
            data = bytes(file.fill(tensors, metadata))
            text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
            assert data == safetensors.torch.save(tensors, metadata={"tsgb": text})

    def test_filling_a_buffer_again_takes_no_new_memory(self) -> None:
        file = TensorFile()
        before = file.fill({"w": torch.zeros(4)}, {"lr": 0.5})
        after = file.fill({"w": torch.ones(4)}, {"lr": 0.1})
        assert before.obj is after.obj
        assert decode_tensors(after)[0]["w"].tolist() == [1, 1, 1, 1]

    def test_the_bytes_depend_on_the_content_only(self) -> None:
        tensors = {name: torch.full((3,), i) for i, name in enumerate("zebra")}
        metadata = dict.fromkeys("metadata", 1)
        first = encode_tensors(tensors, metadata)
        backwards = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
        assert all(encode_tensors(*backwards) == first for _ in range(30))

    def test_views_and_tied_tensors_come_back_as_values(self) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        tensors = {"base": base, "tied": base, "transposed": base.T, "row": base[1]}
        decoded, _ = decode_tensors(encode_tensors(tensors))
        assert_same({name: tensor.contiguous() for name, tensor in tensors.items()}, decoded)

    def test_the_input_is_left_alone_and_the_output_is_free(self) -> None:
        parameter = nn.Parameter(torch.ones(2))
        data = encode_tensors({"p": parameter})
        decoded, _ = decode_tensors(data)
        decoded["p"].add_(1)
        assert parameter.tolist() == [1, 1]
        assert decode_tensors(data)[0]["p"].tolist() == [1, 1]

    @pytest.mark.parametrize(
        "data",
        [b"", b"12345678", b"\x00" * 40, encode_tensors({"a": torch.ones(3)})[:-1]],
        ids=["empty", "no header", "zeros", "truncated"],
    )
    def test_foreign_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            decode_tensors(data)


def small_model(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def adamw(model: nn.Module, *, backwards: bool = False) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    if backwards:
        parameters.reverse()
    return torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.95), amsgrad=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = model(torch.randn(5, 3, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class TestOptimizer:
    @pytest.mark.parametrize("backwards", [False, True], ids=["same order", "other order"])
    def test_training_goes_on_bit_exactly(self, backwards: bool) -> None:
        model = small_model()
        optimizer = adamw(model)
        train(model, optimizer, 3, seed=1)
        weights = encode_tensors(model.state_dict())
        state = encode_optimizer(optimizer, dict(model.named_parameters()))
        train(model, optimizer, 3, seed=2)

        other = small_model(seed=9)
        other.load_state_dict(decode_tensors(weights)[0])
        resumed = adamw(other, backwards=backwards)
        resumed.param_groups[0]["lr"] = 99.0
        decode_optimizer(state, resumed, dict(other.named_parameters()))
        assert resumed.param_groups[0]["betas"] == (0.8, 0.95)
        assert encode_optimizer(adamw(other), dict(other.named_parameters())) != state
        if not backwards:
            assert encode_optimizer(resumed, dict(other.named_parameters())) == state
        train(other, resumed, 3, seed=2)
        assert encode_tensors(other.state_dict()) == encode_tensors(model.state_dict())

    def test_keys_are_names(self) -> None:
        model = small_model()
        optimizer = adamw(model)
        train(model, optimizer, 1, seed=1)
        tensors, metadata = decode_tensors(
            encode_optimizer(optimizer, dict(model.named_parameters()))
        )
        assert {"0.weight|exp_avg", "0.weight|exp_avg_sq", "2.bias|step"} <= tensors.keys()
        assert metadata["param_groups"][0]["params"][0] == "0.weight"

    def test_a_fresh_state_replaces_a_used_one(self) -> None:
        model = small_model()
        fresh = encode_optimizer(adamw(model), dict(model.named_parameters()))
        used = adamw(model)
        train(model, used, 2, seed=1)
        decode_optimizer(fresh, used, dict(model.named_parameters()))
        assert encode_optimizer(used, dict(model.named_parameters())) == fresh

    def test_moments_keep_their_dtype(self) -> None:
        # `load_state_dict` would cast them to the parameter's bfloat16.
        parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([parameter])
        moment = torch.tensor([1.0, 1e-7, 3.3])
        optimizer.state[parameter] = {"step": torch.tensor(4.0), "exp_avg": moment}
        state = encode_optimizer(optimizer, {"p": parameter})
        resumed = torch.optim.AdamW([parameter])
        decode_optimizer(state, resumed, {"p": parameter})
        assert resumed.state[parameter]["exp_avg"].dtype == torch.float32
        assert torch.equal(resumed.state[parameter]["exp_avg"], moment)

    def test_plain_numbers_in_the_state(self) -> None:
        parameter = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        optimizer.state[parameter] = {"step": 4, "momentum_buffer": None}
        resumed = torch.optim.SGD([parameter], lr=0.2, momentum=0.9)
        decode_optimizer(encode_optimizer(optimizer, {"p": parameter}), resumed, {"p": parameter})
        assert dict(resumed.state[parameter]) == {"step": 4, "momentum_buffer": None}

    def test_another_model_is_refused(self) -> None:
        model = small_model()
        optimizer = adamw(model)
        train(model, optimizer, 1, seed=1)
        state = encode_optimizer(optimizer, dict(model.named_parameters()))
        larger = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 2))
        with pytest.raises(CheckpointError, match=r"2 are new, such as 3\.bias"):
            decode_optimizer(state, adamw(larger), dict(larger.named_parameters()))
        wider = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        with pytest.raises(CheckpointError, match=r"0\.\w+ has shape"):
            decode_optimizer(state, adamw(wider), dict(wider.named_parameters()))

    def test_a_nameless_parameter_is_a_bug(self) -> None:
        with pytest.raises(ValueError, match="no name"):
            encode_optimizer(adamw(small_model()), {})


def draws(generator: Generator) -> list[float]:
    if isinstance(generator, Random):
        return [generator.gauss(0, 1), generator.random(), float(generator.randrange(2**70))]
    if isinstance(generator, torch.Generator):
        return torch.randn(20, generator=generator).tolist()
    return [*generator.normal(size=3), float(generator.integers(2**31, dtype=np.int32))]


GENERATORS = {
    "python": Random,
    "torch": lambda seed: torch.Generator().manual_seed(seed),
    "numpy": np.random.default_rng,
}


class TestGenerators:
    @pytest.mark.parametrize("kind", GENERATORS)
    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**40), before=st.integers(0, 3))
    def test_goes_on_exactly_through_json(self, kind: str, seed: int, before: int) -> None:
        generator = GENERATORS[kind](seed)
        for _ in range(before):
            draws(generator)
        state = json.loads(json.dumps(generator_state(generator)))
        expected = [draws(generator) for _ in range(3)]
        other = GENERATORS[kind](0)
        set_generator_state(other, state)
        assert [draws(other) for _ in range(3)] == expected

    def test_kinds_do_not_mix(self) -> None:
        with pytest.raises(CheckpointError, match="'python' cannot go into one of 'torch'"):
            set_generator_state(torch.Generator(), generator_state(Random(0)))

    def test_other_numpy_generators_are_refused(self) -> None:
        with pytest.raises(ValueError, match="default_rng"):
            generator_state(np.random.Generator(np.random.Philox(0)))


@given(some_tensors())
def test_frozen_tensors_are_the_bytes_of_their_own_file(tensors: dict[str, Tensor]) -> None:
    frozen = FrozenTensors(tensors)
    assert_same(dict(frozen), tensors)
    assert_same(decode_tensors(frozen.data)[0], dict(frozen))
    assert bytes(frozen.data) == encode_tensors(tensors)
    assert bytes(FrozenTensors(decode_tensors(frozen.data)[0]).data) == bytes(frozen.data)


def test_frozen_tensors_do_not_follow_what_they_were_copied_from() -> None:
    weights = torch.ones(3)
    frozen = FrozenTensors({"w": weights, "none": torch.empty(0)})
    weights.zero_()
    assert frozen["w"].tolist() == [1, 1, 1]
    assert sorted(frozen) == ["none", "w"]
    frozen["w"][0] = 5
    assert decode_tensors(frozen.data)[0]["w"].tolist() == [5, 1, 1], "one memory for both"
