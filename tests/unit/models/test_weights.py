"""Parameters are copied, restored and written as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tsgb.models.weights import load_parameters, save_weights, snapshot


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(size, 2, generator=generator))
        for name, size in {"b": 3, "a": 4}.items()
    }


def test_parameters_are_restored_bit_for_bit(parameters: dict[str, nn.Parameter]) -> None:
    kept = snapshot(parameters)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(1.0)
    load_parameters(parameters, kept)
    assert all(torch.equal(parameters[name], tensor) for name, tensor in kept.items())
    with pytest.raises(KeyError):
        load_parameters(parameters, {})


def test_a_file_holds_them_and_is_as_readable_as_any_other(
    parameters: dict[str, nn.Parameter], tmp_path: Path
) -> None:
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    other.touch()
    save_weights({**parameters, "turned": parameters["a"].t()}, path)
    assert path.stat().st_mode == other.stat().st_mode
    written = load_file(path)
    assert torch.equal(written["turned"], parameters["a"].t())
    assert torch.equal(written["b"], parameters["b"])
