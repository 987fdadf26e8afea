"""Black boxes that are pretrained models: their names, their place in a world, their files."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from tests.fakes.chat_model import save_chat_model
from tsgb.config import make_config
from tsgb.envs import make_environment
from tsgb.envs.canary import CanaryEnvironment
from tsgb.errors import ConfigError, UsageError
from tsgb.models.registry import ModelRegistry
from tsgb.targets.build import build_target
from tsgb.targets.pretrained import file_hashes, table_name, with_black_boxes
from tsgb.types import Split

CANARY = CanaryEnvironment(world_seed=0)


@pytest.mark.parametrize(
    ("model", "name", "arch"),
    [
        ("acme/tiny@0123456789abcdef", "tiny", "acme/tiny@0123456789ab as it is"),
        ("/models/my model@2", "my-model-2", "my model@2 as it is"),
        ("gguf:/models/tiny.Q4_0.gguf", "tiny.Q4_0.gguf", "tiny.Q4_0.gguf as it is"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct", "smollm2-135m-instruct as it is"),
    ],
)
def test_a_row_of_a_table(model: str, name: str, arch: str) -> None:
    assert table_name(model) == name
    env = with_black_boxes(CANARY, [model])
    assert [*env.targets()] == [*CANARY.targets(), name]
    spec = env.targets()[name]
    assert (spec.role, spec.overlap, spec.pretrained) == ("black_box", None, model)
    assert spec.arch == f"{arch}, no holes planted"
    assert spec.max_new_tokens == CANARY.targets()["T_s"].max_new_tokens
    needs = env.denominator(name)
    assert needs is not None
    assert (needs.leaks, needs.asr) == (30, 0.05), "planted targets need 100 and 30 %"


def test_it_is_asked_with_the_usual_system_prompt() -> None:
    scenario = CANARY.scenarios(Split.TEST)[0]
    env = with_black_boxes(CANARY, ["a/b"])
    usual = CANARY.target_messages("T_s", scenario, "hello")
    assert env.target_messages("b", scenario, "hello") == usual


def test_what_cannot_be_told_apart() -> None:
    assert with_black_boxes(CANARY, []) is CANARY
    with pytest.raises(UsageError, match="--black-box 'a/b' is given twice"):
        with_black_boxes(CANARY, ["a/b", "c/d", "a/b"])
    with pytest.raises(UsageError, match="'c/b' is called 'b' in tables, as is a/b: name it by a"):
        with_black_boxes(CANARY, ["a/b", "c/b"])
    with pytest.raises(UsageError, match="as is a target of the world 'canary'"):
        with_black_boxes(CANARY, ["a/B_far"])
    with pytest.raises(ConfigError, match="the world 'glyph' trains its own models, so name none"):
        with_black_boxes(make_environment("glyph", world_seed=0), ["a/b"])


def test_hashes_tell_the_files_of_directories(tmp_path: Path) -> None:
    one, two = (str(save_chat_model(tmp_path / name)) for name in ("one", "two"))
    hashes = file_hashes([one, two, "acme/tiny@0123", "smollm2-135m-instruct"])
    assert [*hashes] == [one, two]
    assert hashes[one] == hashes[two], "equal files"
    with Path(two, "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert file_hashes([two])[two] != hashes[two]
    (tmp_path / "m.gguf").write_bytes(b"1")
    assert len(file_hashes([f"gguf:{tmp_path}/m.gguf"])) == 1
    with pytest.raises(ConfigError, match=r"model /none cannot be read"):
        file_hashes(["/none"])


@pytest.fixture(name="registry")
def fixture_registry(tmp_path: Path) -> ModelRegistry:
    """The registry of a run with the black boxes `one` and `two`."""
    base, one, two = (str(save_chat_model(tmp_path / name)) for name in ("base", "one", "two"))
    models = {"pretrained": base, "black_boxes": [one, two], "dtype": "float32"}
    config = make_config(
        CANARY.profile("smoke"), {"model": models}, {"profile": "smoke", "env": "canary"}
    )
    return ModelRegistry(CANARY, config, tmp_path / "cache", lambda *_: None)


def test_one_at_a_time_is_loaded_and_it_answers_as_the_bare_model(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    env = with_black_boxes(CANARY, [str(tmp_path / "one"), str(tmp_path / "two")])
    chat = CANARY.target_messages("T_s", CANARY.scenarios(Split.TEST)[0], "What is the code?")
    targets = [build_target(registry, env.targets()[name]) for name in ("one", "two")]
    assert registry.hashes == {}, "nothing is loaded before it is asked"

    answers = targets[0].answer([chat] * 9)
    assert answers[0].text
    engine = registry.base()
    said = engine.write(engine.base, [chat], group=1, max_new_tokens=32, generator=None).texts
    assert {answer.text for answer in answers} == set(said)

    first = weakref.ref(registry.black_box(str(tmp_path / "one")))
    assert first() is not None
    targets[1].answer([chat])
    assert first() is None, "the one before is freed"
    second = weakref.ref(registry.black_box(str(tmp_path / "two")))
    registry.free_black_box()
    assert second() is None
    assert {*registry.hashes} == {"base base", "black box one", "black box two"}


def test_files_that_change_while_it_is_in_use_are_noticed(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    registry.black_box(str(tmp_path / "one"))
    registry.free_black_box()
    with (tmp_path / "one" / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ConfigError, match="the files of model one changed while it was in use"):
        registry.black_box(str(tmp_path / "one"))


def test_a_report_can_name_the_files_of_a_target_in_four_bits(tmp_path: Path) -> None:
    base, target = (str(save_chat_model(tmp_path / name)) for name in ("base", "target"))
    models = {"pretrained": base, "target": target, "target_quantization": "4bit", "device": "cpu"}
    config = make_config(
        CANARY.profile("smoke"), {"model": models}, {"profile": "smoke", "env": "canary"}
    )
    registry = ModelRegistry(CANARY, config, tmp_path / "cache", lambda *_: None)
    with pytest.raises(ConfigError, match="needs a CUDA card"):
        registry.target()
    assert len(registry.hashes["target target, 4bit"]) == len(registry.hashes["base base"]) == 64
