"""What is asked of a machine, and how a model that is too large is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.chat_model import save_chat_model
from tests.fakes.cuda_driver import T4, install_driver
from tests.unit.models.test_planner import REAL
from tsgb.cloud.policy import MachineNeeds
from tsgb.config import ModelConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.envs.glyph import GlyphEnvironment
from tsgb.errors import ConfigError, HubUnreachable, UsageError
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.machine_memory import main_memory
from tsgb.models.planner import DeviceMemory, card_for, plan_memory
from tsgb.models.requirements import (
    Requirements,
    check_fits,
    cuda_of_torch,
    machine_of_run,
    training_work,
    workers_at_a_time,
)
from tsgb.models.source import ModelFacts, inspect
from tsgb.setting_groups import CloudSettings, HubSettings, WorkerSettings
from tsgb.types import Split, StreamKind

CANARY = CanaryEnvironment(world_seed=0)


@pytest.fixture(name="facts")
def fixture_facts(tmp_path: Path) -> ModelFacts:
    return inspect(str(save_chat_model(tmp_path / "tiny")), HubSettings(), tmp_path)


def cloud(**changes: Any) -> CloudSettings:
    return CloudSettings.model_validate(changes)


def of_size(facts: ModelFacts, name: str) -> ModelFacts:
    return replace(facts, name=name, sizes=REAL[name], weight_bytes=2 * REAL[name].parameters)


def test_a_small_model_fits_here(facts: ModelFacts) -> None:
    needs = Requirements.of(facts, model=ModelConfig(device="cpu", dtype="float32"))
    needs.check_here()
    assert needs.machine(cloud(gpu_ram_gb=24, disk_gb=40)).gpu_ram_gb == 24
    document = needs.document()
    assert (document["device"], document["dtype"], document["fits"]) == ("cpu", "float32", True)
    assert (document["micro_batch_tokens"], document["gpu_gb"], document["disk_gb"]) == (
        2048,
        8,
        13,
    )
    assert sum(document["parts"].values()) == document["bytes"]
    assert needs.lines()["here"] == f"fits on {main_memory()}, micro-batches of 2048 tokens"
    assert needs.lines()["rented"] == "a card of 8 GB (such as RTX 3070) and 13 GB of disk"


def test_what_does_not_fit_here_is_refused_in_one_line() -> None:
    sizes = REAL["8B"]
    plan = plan_memory(sizes, DeviceMemory("cpu", 24 * 10**9), dtype="float32")
    with pytest.raises(UsageError) as refused:
        check_fits("acme/8b", plan, card_for(sizes))
    assert str(refused.value) == (
        f"model acme/8b needs {plan.needed / 1e9:.1f} GB in float32, and cpu with 24 GB spares "
        "21.6 GB: name a smaller model or set model.dtype to bfloat16 or rent a card of 32 GB"
    )


def test_a_target_in_four_bits_needs_a_card_and_a_third_of_the_memory(facts: ModelFacts) -> None:
    base, target = of_size(facts, "3B"), of_size(facts, "8B")
    whole = Requirements.of(base, target)
    small = Requirements.of(
        base,
        target,
        model=ModelConfig(target="8B", device="cpu", dtype="float32", target_quantization="4bit"),
    )
    assert (whole.card, small.card) != (None, None)
    assert whole.card is not None
    assert small.card is not None
    assert (whole.card.device.total, small.card.device.total) == (48 * 10**9, 24 * 10**9)
    saved = whole.card.parts["target"] - small.card.parts["target in 4 bit"]
    # Embeddings and head of Llama-3.1-8B are 1.05 B of its 8.03 B weights.
    assert saved / 1e9 == pytest.approx((2 - 0.57) * (8.03 - 1.05), rel=0.01)
    assert "target in 4 bit" in small.lines()["memory"]
    with pytest.raises(ConfigError, match="needs a CUDA card, and models are computed on 'cpu'"):
        small.check_here()
    with pytest.raises(ConfigError, match="needs a CUDA card"):
        small.machine(cloud(gpu_ram_gb=0))
    assert small.machine(cloud(gpu_ram_gb=24)).gpu_ram_gb == 24


def test_rented_machines_that_are_too_small_are_refused(facts: ModelFacts) -> None:
    needs = Requirements.of(of_size(facts, "3B"))
    with pytest.raises(UsageError, match=r"set TSGB_GPU_RAM_GB=16, or leave it away$"):
        needs.machine(cloud(gpu_ram_gb=8))
    with pytest.raises(UsageError, match=r"model 8B needs a card of 32 .* set TSGB_DISK_GB=30 and"):
        Requirements.of(of_size(facts, "8B")).machine(cloud(gpu_ram_gb=24, disk_gb=20))
    huge = replace(of_size(facts, "8B"), sizes=replace(REAL["8B"], layers=320))
    with pytest.raises(UsageError, match="fits on no single card of up to 141 GB: name a smaller"):
        Requirements.of(huge).machine(cloud(gpu_ram_gb=80))


@pytest.mark.parametrize(
    ("model", "card", "disk", "memory"),
    [("0.5B", 8, 20, 7), ("1.5B", 12, 20, 9), ("3B", 16, 20, 13), ("8B", 32, 30, 23)],
)
def test_what_a_machine_must_have_follows_from_the_model(
    facts: ModelFacts, model: str, card: int, disk: int, memory: int
) -> None:
    base = of_size(facts, model)
    asked = Requirements.of(base).machine(cloud())
    assert (asked.gpu_ram_gb, asked.disk_gb, asked.cpu_ram_gb) == (card, disk, memory)
    assert (asked.compute_cap, asked.cuda) == (800, 13.0)
    assert asked.weights_gb == base.weight_bytes / 1e9
    save = 2 * 3 * 4 * REAL[model].adapter(16) / 1e9  # two adapters, two moments of each, float32
    assert (asked.save_gb, asked.restore_gb) == pytest.approx((save, save * 14 / 6))


def test_a_card_that_computes_in_float32_may_be_older_but_not_older_than_cuda(
    facts: ModelFacts,
) -> None:
    needs = Requirements.of(of_size(facts, "3B"), model=ModelConfig(dtype="float32"))
    assert needs.machine(cloud()).compute_cap == 750


def test_no_rule_about_cards_where_none_is_used(facts: ModelFacts) -> None:
    named = {"profile": "smoke", "env": "canary"}
    base = of_size(facts, "3B")
    for asked in (
        Requirements.of(base).machine(cloud(gpu_ram_gb=0)),
        Requirements.of(base, model=ModelConfig(device="cpu")).machine(cloud()),
    ):
        assert (asked.gpu_ram_gb, asked.cuda, asked.compute_cap, asked.cpu_ram_gb) == (0, 0, 0, 0)
        assert asked.weights_gb == base.weight_bytes / 1e9
    glyph = GlyphEnvironment(world_seed=0)
    config = make_config(glyph.profile("smoke"), {"profile": "smoke", "env": "glyph"})
    asked = machine_of_run(config, glyph, cloud(), HubSettings(), Path("cache"), arms=1)
    assert asked == MachineNeeds()
    chosen = {"model": {"pretrained": str(facts.directory)}}
    config = make_config(CANARY.profile("smoke"), named, chosen)
    asked = machine_of_run(config, CANARY, cloud(), HubSettings(), Path("cache"), arms=1)
    assert (asked.gpu_ram_gb, asked.cuda) == (8, 13.0)


@pytest.mark.parametrize(
    ("requirements", "version", "cuda"),
    [
        (['cuda-toolkit[cublas,cudart]==13.0.3; platform_system == "Linux"'], "2.13.0", 13.0),
        (['nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux"'], "2.8.0", 12.8),
        (["filelock"], "2.13.1+cpu", 13.0),
        ([], "9.9", 13.0),
    ],
    ids=["this-wheel", "an-older-one", "without-cuda", "unknown"],
)
def test_the_driver_must_carry_the_cuda_version_of_the_wheel(
    requirements: list[str], version: str, cuda: float
) -> None:
    assert cuda_of_torch(requirements, version) == cuda


def test_an_unknown_architecture_has_no_estimate_and_is_not_refused(facts: ModelFacts) -> None:
    needs = Requirements.of(replace(facts, family="novel", sizes=None))
    needs.check_here()
    assert needs.machine(cloud(gpu_ram_gb=8)).gpu_ram_gb == 8
    assert needs.machine(cloud()).gpu_ram_gb == 8, "by the size of its files"
    assert needs.lines()["memory"] == (
        "no estimate of its memory is available for the architecture 'novel'"
    )
    assert needs.document()["bytes"] is None


def test_black_boxes_count_one_at_a_time_and_on_this_machine_only(facts: ModelFacts) -> None:
    alone = Requirements.of(facts, model=ModelConfig(device="cpu", dtype="float32"))
    boxes = [of_size(facts, "0.5B"), of_size(facts, "135M")]
    needs = Requirements.of(facts, None, boxes, model=ModelConfig(device="cpu", dtype="float32"))
    assert needs.here is not None
    assert needs.here.needed > 4 * REAL["0.5B"].parameters
    assert "black box" not in (alone.here.parts if alone.here else {})
    assert (needs.card, needs.disk_gb) == (alone.card, alone.disk_gb), "a rented card asks none"
    files = sum(box.weight_bytes for box in boxes)
    assert needs.document()["black_box_bytes"] == files
    assert needs.lines()["black boxes"] == (
        f"{files / 1e9:.2g} GB of files, loaded here one at a time"
    )
    needs.check_here()

    huge = replace(of_size(facts, "8B"), sizes=replace(REAL["8B"], layers=3200))
    with pytest.raises(UsageError, match=rf"model {facts.name} beside the black box 8B needs \d+"):
        Requirements.of(facts, None, [huge, *boxes]).check_here()
    unknown = replace(facts, family="novel", sizes=None)
    needs = Requirements.of(facts, None, [unknown])
    assert not needs.family
    assert needs.card == Requirements.of(facts).card


def test_the_figures_are_those_of_one_of_the_workers(facts: ModelFacts) -> None:
    """Each arm is trained by a worker, and each part of an evaluation asks the black boxes."""
    machine = main_memory()
    model, boxes = ModelConfig(device="cpu"), [of_size(facts, "135M")]
    many = WorkerSettings(cache_dir=Path("cache"), max_parallel=10_000)
    needs = [
        Requirements.of(facts, None, asked, model=model, arms=2, workers=many)
        for asked in ([], boxes)
    ]
    for needed, most in zip(
        needs, (2, machine.share // (4 * REAL["135M"].parameters)), strict=True
    ):
        assert needed.here is not None
        num = needed.document()["workers"]
        assert needed.here.device == machine.shared_by(num)
        assert 1 <= num <= most
        assert num * needed.here.needed <= machine.share
        assert f"shared by {num} workers, micro-batches" in needed.lines()["here"]
    one = many.model_copy(update={"max_parallel": 1, "memory_shares": 3})
    assert Requirements.of(facts, model=model, arms=3, workers=one).document()["workers"] == 3


def test_a_card_without_units_for_bfloat16_is_planned_in_float32(
    facts: ModelFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads them so, and a worker then takes twice the memory for its weights."""
    many = WorkerSettings(cache_dir=tmp_path, max_parallel=16)
    base, found = of_size(facts, "0.5B"), []
    for card in (T4, (*T4[:2], 80)):
        install_driver(tmp_path, monkeypatch, card)
        model = ModelConfig(adapter="lora")
        found.append(Requirements.of(base, model=model, arms=3, workers=many).document())
    assert [one["device"] for one in found] == ["cuda:0", "cuda:0"]
    assert [one["dtype"] for one in found] == ["float32", "bfloat16"]
    assert found[0]["parts"]["weights"] == 2 * found[1]["parts"]["weights"]
    assert found[0]["workers"] < found[1]["workers"]


def test_a_target_that_is_larger_than_the_base_must_fit_itself(facts: ModelFacts) -> None:
    """It answers and learns with more activations than the base has."""
    config = make_config(CANARY.profile("smoke"), {"profile": "smoke", "env": "canary"})
    work = replace(training_work(config, CANARY), row_tokens=16_384)
    both = Requirements.of(of_size(facts, "135M"), of_size(facts, "8B"), work=work).card
    alone = card_for(REAL["8B"], work=replace(work, roles=1, rank=16, target_ranks=(8, 8, 8)))
    assert both is not None
    assert alone is not None
    assert both.device.total >= alone.device.total > both.needed


def test_sizes_of_updates_come_from_the_configuration_and_the_world(facts: ModelFacts) -> None:
    named = {"profile": "smoke", "env": "canary"}
    small = make_config(CANARY.profile("smoke"), named)
    work = training_work(small, CANARY)
    assert (work.rows, work.rank) == (4, 4)
    assert sorted(work.target_ranks) == [8, 8, 8, 16]
    large = make_config(
        CANARY.profile("smoke"),
        named,
        {"model": {"rank": 64}, "attacker": {"scenarios_per_step": 32, "max_new_tokens": 2000}},
    )
    more = training_work(large, CANARY)
    assert (more.rows, more.rank) == (128, 64)
    assert more.row_tokens >= 2000
    needs = [Requirements.of(of_size(facts, "3B"), work=one).here for one in (work, more)]
    assert needs[0] is not None
    assert needs[1] is not None
    assert needs[0].parts["optimizer"] * 16 == needs[1].parts["optimizer"]
    assert needs[0].needed < needs[1].needed


def test_no_row_is_longer_than_the_one_that_is_planned_for(tmp_path: Path) -> None:
    config = make_config(CANARY.profile("demo"), {"profile": "demo", "env": "canary"})
    tokenizer = ChatTokenizer(save_chat_model(tmp_path / "tiny"))
    planned = training_work(config, CANARY).row_tokens
    prompts = CANARY.stream(StreamKind.WIDE, Split.TEST, Random(1), 50)
    asked = tokenizer.guard_rows(CANARY.guard_template(), [prompt.text for prompt in prompts])
    scenarios = {scenario.scenario_id: scenario for scenario in CANARY.scenarios(Split.TEST)}
    answered = [
        tokenizer.encode_chat(
            CANARY.target_messages("T_s", scenarios[prompt.scenario_id], prompt.text)
        )
        for prompt in prompts
    ]
    longest = max(map(len, [*asked, *answered])) + CANARY.targets()["T_s"].max_new_tokens
    assert planned / 4 < longest <= planned


def test_a_hub_that_does_not_answer_is_no_room_for_all_workers(tmp_path: Path) -> None:
    """The model may come a moment later, and as many of it as there are workers."""
    nowhere = HubSettings(hf_endpoint="http://127.0.0.1:9", hf_cache=tmp_path)
    model = {"model": {"pretrained": "acme/open"}}
    config = make_config(CANARY.profile("smoke"), {"profile": "smoke", "env": "canary"}, model)
    with pytest.raises(HubUnreachable, match="does not answer"):
        workers_at_a_time(config, CANARY, nowhere, tmp_path, most=2, evaluates=False)
