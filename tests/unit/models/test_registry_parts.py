"""Which process builds which models of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.miniature import miniature_config, world
from tsgb.errors import ConfigError
from tsgb.models.registry import ModelRegistry


@pytest.fixture
def registry(tmp_path: Path) -> Callable[[], ModelRegistry]:
    """Make the registry of another process with the same cache."""

    def make() -> ModelRegistry:
        def quiet(_model: str, _done: int, _total: int) -> None:
            """Show nothing."""

        return ModelRegistry(world(), miniature_config(), tmp_path / "models", quiet)

    return make


@pytest.mark.parametrize("num", [1, 2, 3, 9])
def test_parts_are_a_partition_that_keeps_chains_together(
    registry: Callable[[], ModelRegistry], num: int
) -> None:
    parts = registry().parts(num)
    assert len(parts) == num
    assert sorted(name for part in parts for name in part) == sorted(registry().names())
    for name, recipe in world().recipes("smoke").items():
        if recipe.init_from:
            [part] = [part for part in parts if name in part]
            assert part.index(recipe.init_from) < part.index(name)


def test_targets_that_nobody_evaluates_on_are_not_built(tmp_path: Path) -> None:
    config = miniature_config({"evaluation": {"targets": ["B_far"]}})
    registry = ModelRegistry(world(), config, tmp_path, lambda _model, _done, _total: None)
    assert registry.parts(2) == [["base", "T_s"], ["B_far"]]


def test_a_process_that_starts_later_finds_the_same_parts(
    registry: Callable[[], ModelRegistry],
) -> None:
    before = registry().parts(2)
    for name in before[0]:
        registry().build(name)
    assert registry().parts(2) == before


def test_the_base_is_the_same_for_every_process(registry: Callable[[], ModelRegistry]) -> None:
    first, second = registry().base(), registry().base()
    assert (first.name, first.sha256) == (second.name, second.sha256)


def test_a_base_that_does_not_exist(tmp_path: Path) -> None:
    config = miniature_config({"model": {"pretrained": "gpt-9000"}})
    registry = ModelRegistry(world(), config, tmp_path, lambda _model, _done, _total: None)
    with pytest.raises(ConfigError, match="gpt-9000"):
        registry.base()
