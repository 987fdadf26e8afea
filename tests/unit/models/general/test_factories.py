"""No tensor is made without saying where: what is forgotten works on a CPU and fails on a card."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[4] / "tsgb" / "models"
SOURCES = [*(MODELS / "general").glob("*.py"), MODELS / "sampling.py", MODELS / "recomputation.py"]
FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "empty",
        "empty_strided",
        "eye",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ]
)


def homeless(source: str) -> list[str]:
    """Calls of torch's factories without `device`, as source text."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}
        and "device" not in {keyword.arg for keyword in node.keywords}
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_factory_says_its_device(path: Path) -> None:
    assert homeless(path.read_text(encoding="utf-8")) == []


def test_a_factory_without_a_device_is_found() -> None:
    assert homeless("torch.zeros(3) + torch.ones(3, device=d) + x.new_zeros(3)") == [
        "torch.zeros(3)"
    ]
