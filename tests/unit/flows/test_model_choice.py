"""Models of a run: named once by what does not change, and refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.model_choice import choose_models, stored_models
from flows.prepare import arm_configs, write_configs
from flows.workers import Workers
from tests.fakes.chat_model import save_chat_model
from tests.fakes.hub_cache import cache_repository
from tests.fakes.hub_server import hub_server
from tsgb.config import Arm, ModelConfig, Profile
from tsgb.errors import ConfigError, UsageError
from tsgb.run_options import MachineKind, RunOptions
from tsgb.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        cache_dir=tmp_path / "cache",
        HF_HUB_CACHE=tmp_path / "hub",  # pyright: ignore[reportCallIssue] - its alias
        HF_HUB_OFFLINE=True,  # pyright: ignore[reportCallIssue]
    )


def options(**more: Any) -> RunOptions:
    return RunOptions(**{"profile": Profile.SMOKE, "env": "canary", "run": "r1", **more})


def stored(chosen: RunOptions) -> ModelConfig:
    return arm_configs(chosen)[Arm.SELFPLAY].model


def test_a_branch_is_stored_as_a_commit_and_stays_it(
    model: Path, tmp_path: Path, settings: Settings
) -> None:
    hub = tmp_path / "hub"
    first = cache_repository(hub, "acme/tiny", model)
    workers = Workers(settings, (tmp_path / "runs").as_uri(), "r1")
    assert stored_models(workers) is None
    chosen = choose_models(options(model="acme/tiny"), settings)
    assert stored(chosen).pretrained == f"acme/tiny@{first}"
    write_configs(workers, arm_configs(chosen))

    newer = save_chat_model(tmp_path / "newer", words=1100)
    second = cache_repository(hub, "acme/tiny", newer)
    assert second != first
    again = choose_models(options(model="acme/tiny"), settings, stored_models(workers))
    write_configs(workers, arm_configs(again))
    other = choose_models(options(model="acme/tiny@main"), settings, stored_models(workers))
    with pytest.raises(
        ConfigError, match=rf"model.pretrained is 'acme/tiny@{first}' there, 'acme/tiny@{second}'"
    ):
        write_configs(workers, arm_configs(other))


def test_a_directory_is_stored_with_its_path_whichever_option_named_it(
    model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    by_option = choose_models(options(model="tiny", target_model=str(model)), settings)
    by_set = choose_models(
        options(overrides={"model": {"pretrained": "./tiny", "target": "tiny", "rank": 2}}),
        settings,
    )
    for chosen in (by_option, by_set):
        assert (stored(chosen).pretrained, stored(chosen).target) == (str(model), str(model))
    assert stored(by_set).rank == 2
    before = ModelConfig(pretrained="tiny")  # as earlier versions stored it
    assert stored(choose_models(options(model="tiny"), settings, before)).pretrained == "tiny"


def test_black_boxes_are_stored_by_what_does_not_change(
    model: Path, tmp_path: Path, settings: Settings
) -> None:
    commit = cache_repository(tmp_path / "hub", "acme/hers", model)
    named = ["acme/hers", str(save_chat_model(tmp_path / "mine"))]
    pinned = (f"acme/hers@{commit}", named[1])
    chosen = choose_models(options(model=str(model), black_boxes=named), settings)
    assert stored(chosen).black_boxes == pinned
    asked = {"model": {"black_boxes": named, "rank": 2}}
    by_set = choose_models(options(model=str(model), overrides=asked), settings)
    assert (stored(by_set).black_boxes, stored(by_set).rank) == (pinned, 2)

    workers = Workers(settings, (tmp_path / "runs").as_uri(), "r1")
    write_configs(workers, arm_configs(chosen))
    cache_repository(tmp_path / "hub", "acme/hers", save_chat_model(tmp_path / "newer", words=1100))
    again = options(model=str(model), black_boxes=named)
    write_configs(workers, arm_configs(choose_models(again, settings, stored_models(workers))))
    fewer = choose_models(options(model=str(model), black_boxes=named[1:]), settings)
    with pytest.raises(ConfigError, match=r"model.black_boxes is \('acme/hers@.*\) there, \('/"):
        write_configs(workers, arm_configs(fewer))


def test_a_black_box_may_be_on_this_machine_alone_where_training_is_rented(
    model: Path, tmp_path: Path, settings: Settings
) -> None:
    rented = options(model="acme/tiny", machine=MachineKind.RENTED, black_boxes=[str(model)])
    with hub_server() as server:
        server.models = {"acme/tiny": model}
        online = {"hf_endpoint": server.url, "hf_offline": False}
        chosen = choose_models(rented, settings.model_copy(update=online))
    assert stored(chosen).black_boxes == (str(model),)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["mine", "mine"], "--black-box '.*/mine' is given twice: name each model once"),
        (
            ["a/tiny", "b/tiny"],
            r"b/tiny' is called 'tiny' in tables, as is .*/a/tiny: name it by a",
        ),
        (["T_s"], "is called 'T_s' in tables, as is a target of the world 'canary': name it by a"),
        (["a/b/none"], "unknown pretrained model '.*none'|is a directory that does not exist"),
    ],
)
def test_black_boxes_that_cannot_be_told_apart_are_refused(
    model: Path, tmp_path: Path, settings: Settings, folders: list[str], message: str
) -> None:
    names = [str(tmp_path / folder) for folder in folders]
    for name in {name for name in names if not name.endswith("none")}:
        save_chat_model(Path(name))
    with pytest.raises(UsageError, match=message) as refused:
        choose_models(options(model=str(model), black_boxes=names), settings)
    assert "\n" not in str(refused.value)


def test_a_target_in_four_bits_is_refused_without_a_card(model: Path, settings: Settings) -> None:
    asked = {"model": {"target_quantization": "4bit", "device": "cpu"}}
    with pytest.raises(ConfigError, match="needs a CUDA card, and models are computed on 'cpu'"):
        choose_models(options(model=str(model), target_model=str(model), overrides=asked), settings)


def test_a_rented_run_is_refused_where_this_machine_could_not_evaluate_it(
    model: Path, settings: Settings
) -> None:
    four_bit = {"model": {"target_quantization": "4bit", "device": "cpu"}}
    asked = {
        "machine": MachineKind.RENTED,
        "model": "acme/tiny",
        "target_model": "acme/tiny",
        "overrides": four_bit,
    }
    with hub_server() as server:
        server.models = {"acme/tiny": model}
        changes = {"hf_endpoint": server.url, "hf_offline": False, "gpu_ram_gb": 24.0}
        online = settings.model_copy(update=changes)
        message = "cannot: .* needs a CUDA card, .*, or evaluate elsewhere: --no-evaluate$"
        with pytest.raises(UsageError, match=message):
            choose_models(options(**asked), online, evaluates=True)
        choose_models(options(**asked), online)
        choose_models(options(**asked, evaluate=False), online, evaluates=True)
        asked["black_boxes"] = [str(model)]
        with pytest.raises(UsageError, match=r"or leave --black-box away$"):
            choose_models(options(**asked), online)


def test_a_run_without_a_model_of_its_own_is_as_before(settings: Settings) -> None:
    pytest.importorskip("gguf", reason="the extra smollm2 is not installed")
    chosen = choose_models(options(), settings)
    assert chosen == options()
    assert stored(chosen).model_dump() == {"adapter": "lora", "rank": 4, "pretrained": ""}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"env": "glyph", "model": "smollm2"}, "'smollm2': the world 'glyph' trains its own"),
        ({"env": "glyph", "target_model": "smollm2"}, "the world 'glyph' trains its own models"),
        (
            {"env": "glyph", "black_boxes": ["a/b"]},
            "'a/b': the world 'glyph' trains its own models",
        ),
        ({"model": "a/b", "overrides": {"model": {"pretrained": "c/d"}}}, "c/d differ: give one"),
        ({"model": "a/b"}, "a/b at main is not in the local cache"),
        # Without the extra the world's own base is refused first.
        ({"target_model": "a/b"}, "a/b at main is not in the local cache|needs the extra smollm2"),
        ({"overrides": {"model": {"pretrained": "a"}}}, "unknown pretrained model 'a'"),
        (
            {"overrides": {"model": {"black_boxes": [""]}}},
            "unknown pretrained model ''|needs the extra smollm2",
        ),
        ({"model": "/", "machine": MachineKind.RENTED}, "model / is on this machine, where a ren"),
    ],
)
def test_a_choice_that_cannot_work_is_refused(
    settings: Settings, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_models(options(**more), settings)


def test_a_value_that_is_no_name_is_left_to_the_configuration(settings: Settings) -> None:
    pytest.importorskip("gguf", reason="the extra smollm2 is not installed")
    wrong_boxes = ({"model": {"black_boxes": wrong}} for wrong in ("a/b", [5], 5))
    for wrong in ({"model": 5}, {"model": {"pretrained": 5}}, *wrong_boxes):
        with pytest.raises(ConfigError, match="valid"):
            arm_configs(choose_models(options(overrides=wrong), settings))
