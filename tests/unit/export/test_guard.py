"""`tsgb export-guard`: what is in the directory, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flows import progress
from tests.fakes.command_line import Run
from tests.fakes.families import save_family
from tests.fakes.miniature import miniature_config
from tests.fakes.runs import save_run
from tests.unit.export.conftest import (
    CONFIGS,
    TRAIN_DATA,
    checkpoint_of,
    names,
    read,
    refused,
    tiny_config,
)
from tsgb.checkpoint.resolve import load
from tsgb.checkpoint.run import open_run
from tsgb.config import RunConfig, parse_config
from tsgb.envs import make_environment
from tsgb.export.guard import Bases, Source, export_guard
from tsgb.export.record import Dtype
from tsgb.models.engine import Engine
from tsgb.models.files import identity
from tsgb.models.registry import make_engine

ROOT = Path(__file__).parents[3]

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
WHOLE = {"config.json", "model.safetensors", *TOKENIZER}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", *TOKENIZER, "base"}


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def reconfigure(here: Path, *changes: dict[str, Any]) -> RunConfig:
    path = here.parent / "store" / "full" / "config.json"
    before = parse_config(path.read_text(), "").model_dump(mode="json")
    config = miniature_config(before, *changes)
    path.write_text(config.canonical())
    return config


class TestGuard:
    def test_whole_weights(self, tsgb: Run, here: Path) -> None:
        ended = tsgb("export-guard", "../store/full", "out")
        assert (ended.code, ended.err) == (0, "")
        assert names(here / "out") == {*WHOLE, "guard.json", "score.py", "README.md"}
        assert names(here) == {"out"}
        assert len({path.stat().st_mode for path in (here / "out").iterdir()}) == 1
        assert "next: python out/score.py PROMPT" in ended.out
        matter = front_matter(here / "out")
        assert (matter["library_name"], matter["license"]) == ("transformers", "mit")

    def test_an_adapter_stands_alone(self, tsgb: Run, here: Path) -> None:
        assert tsgb("export-guard", "../store/lora/latest", "a/b").code == 0
        out = here / "a" / "b"
        assert names(out) == {*ADAPTER, "guard.json", "score.py", "README.md"}
        assert names(out / "base") == WHOLE
        config = json.loads((out / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (2, 2)
        assert config["base_model_name_or_path"] == "./base"
        assert "lm_head" not in config["target_modules"]
        assert front_matter(out)["library_name"] == "peft"

    def test_the_record(self, tsgb: Run, here: Path) -> None:
        config = CONFIGS["full"]
        ended = tsgb("export-guard", "../store/full", "out", "--json")
        record = read(here / "out")
        assert json.loads(ended.out).items() >= record.model_dump(mode="json").items()
        assert record.config_sha256 == config.fingerprint
        about = record.checkpoint
        assert about.name == checkpoint_of(here.parent / "store" / "full").name
        assert about.step == about.total_steps == config.total_steps
        assert about.column in {"sft", "round-1", "round-2"}
        assert record.template.input == "BOS {prompt} SEP Q1 Q2 V"
        assert (record.unsafe.token, record.safe.token) == ("BLOCK", "ALLOW")
        calibration = record.calibration
        assert (calibration.alpha, calibration.delta, calibration.n) == (0.02, 0.05, 300)
        assert calibration.fpr_upper <= 0.02
        assert "150 ordinary, 75 hard-benign, 75 twins" in calibration.stream

    def test_presets_that_the_calibration_supports(self, tsgb: Run, here: Path) -> None:
        ended = tsgb("export-guard", "../store/full", "out")
        record = read(here / "out")
        assert (record.dtype, list(record.dtypes)) == ("float32", ["float32"])
        assert "glyph' are computed in float32 only" in record.uncalibrated["bfloat16"]
        thresholds = record.dtypes["float32"].thresholds
        assert list(thresholds) == ["run", "strict", "balanced"]
        values = {name: point.value for name, point in thresholds.items()}
        assert values["strict"] <= values["run"] <= values["balanced"]
        assert list(record.omitted) == ["permissive"]
        reason = "needs at least 2995 benign calibration scores, this run has 300"
        for text in (
            record.omitted["permissive"],
            ended.out,
            (here / "out" / "README.md").read_text(),
        ):
            assert reason in text

    def test_nothing_names_this_machine(self, tsgb: Run, here: Path) -> None:
        tsgb("export-guard", "../store/lora", "out")
        for path in (here / "out").rglob("*"):
            if path.is_file():
                assert str(here.parent.parent).encode() not in path.read_bytes(), path

    def test_prompts_of_the_users_are_named(self, tsgb: Run, here: Path) -> None:
        for name, data in (("lora", TRAIN_DATA), ("full", None)):
            assert tsgb("export-guard", f"../store/{name}", name).code == 0
            assert json.loads((here / name / "guard.json").read_text()).get("train_data") == data
        card = (here / "lora" / "README.md").read_text()
        assert (
            "and its attacker, and a share of 25% of the guard's static prompts from the trainer's "
            "own files: 8 harmful and 9 benign prompts in 7 groups, the train split of o'wn.csv "
            f"(sha256 cdcdcdcdcdcd) (sha256 of these prompts `{'ab' * 32}`)"
        ) in card

    def test_an_unfinished_run_says_so(self, tsgb: Run, runs: Path, here: Path) -> None:
        save_run(here.parent / "early" / "r1", CONFIGS["full"], runs / "cache", until_step=1)
        assert tsgb("export-guard", "../early", "out").code == 0
        card = (here / "out" / "README.md").read_text()
        assert "update 1 of" in card
        assert read(here / "out").checkpoint.column == "current"


class TestDtypes:
    """A dtype after the other, and which of them is the run's."""

    pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

    @pytest.mark.parametrize(
        ("asked", "first"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("auto", None)]
    )
    def test_one_engine_is_in_memory_at_a_time(
        self, tsgb: Run, tmp_path: Path, asked: str, first: str | None
    ) -> None:
        base = save_family(tmp_path / "base", "llama3")
        config = tiny_config(str(base), dtype=asked)
        save_run(tmp_path / "run", config, tmp_path / "cache", until_step=1)
        ref, files = load(str(tmp_path / "run"), None, None, names=["guard.safetensors"])
        made: list[tuple[Dtype, weakref.ref[Any]]] = []

        def make(dtype: Dtype) -> Engine:
            assert [name for name, engine in made if engine() is not None] == []
            chosen = config.model.model_copy(update={"dtype": dtype})
            sha256 = identity(base).sha256
            engine = make_engine(base, chosen, name="base", sha256=sha256)
            made.append((dtype, weakref.ref(engine)))
            return engine

        run = open_run(str(tmp_path / "run"))
        source = Source(
            ref=ref,
            files=files,
            run=run,
            main_run=run,
            config=config,
            env=make_environment("canary", world_seed=0),
            bases=Bases(make),
        )
        passes: list[tuple[str, int, int]] = []
        record = export_guard(
            source,
            tmp_path / "out",
            dtypes=["float32", "bfloat16"],
            on_calibration=lambda *said: passes.append(said),
        )
        assert sorted(record.dtypes) == ["bfloat16", "float32"]
        assert sorted(dtype for dtype, _ in made) == ["bfloat16", "float32"], "each is loaded once"
        assert record.run_dtype == asked
        assert record.dtype == made[0][0] == (first or record.dtype)
        num = config.calibration.num
        for dtype in record.dtypes:
            assert (dtype, num, num) in passes
        weights = tmp_path / "out" / "base" / "model.safetensors"
        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}
        card = (tmp_path / "out" / "README.md").read_text()
        by_run = f"the run computed in {asked}."
        by_this = f"the machine that exported the guard takes {record.dtype}."
        assert (by_this if asked == "auto" else by_run) in card

    def test_progress_is_on_stderr(
        self, tsgb: Run, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "FIRST_SECONDS", -1.0)
        ended = tsgb("export-guard", "../store/lora", "out", "--json")
        assert ended.code == 0
        assert json.loads(ended.out)["exported"] == "guard"
        assert "calibrate: float32 64/300 prompts scored" in ended.err

    def test_an_interrupt_leaves_nothing(self, tsgb: Run, runs: Path, here: Path) -> None:
        reconfigure(here, {"calibration": {"num": 40_000}})
        command = [sys.executable, "-m", "tsgb.cli", "export-guard", "../store/full", "out"]
        with subprocess.Popen(
            [*command, "--env", "tests.fakes.miniature:MiniatureEnvironment"],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TSGB_CACHE_DIR": str(runs / "cache")},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert "calibrate: float32" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            last = process.stderr.read().splitlines()[-1]
            assert process.wait() == 130
        assert last == "tsgb: interrupted: nothing was exported, the same command starts anew"
        assert names(here) == set()


class TestAttacker:
    @pytest.mark.parametrize("flags", [["--attacker"], ["--i-understand"]], ids=" ".join)
    def test_one_flag_is_refused(self, tsgb: Run, here: Path, flags: list[str]) -> None:
        ended = tsgb("export-guard", "../store/full", "out", *flags)
        assert (ended.code, ended.out) == (2, "")
        assert re.fullmatch(
            "tsgb: an attacker .* both --attacker and --i-understand.*\n", ended.err
        )
        assert names(here) == set()

    @pytest.mark.parametrize(("kind", "files"), [("full", WHOLE), ("lora", ADAPTER)])
    def test_weights_and_card_only(self, tsgb: Run, here: Path, kind: str, files: set[str]) -> None:
        ended = tsgb("export-guard", f"../store/{kind}", "out", "--attacker", "--i-understand")
        assert ended.code == 0
        assert names(here / "out") == {*files, "README.md"}
        card = (here / "out" / "README.md").read_text()
        assert "trained to write prompts that make another model break its policy" in card
        assert front_matter(here / "out")["pipeline_tag"] == "text-generation"


class TestRefused:
    def test_a_world_that_only_the_run_names(self, tsgb: Run, here: Path) -> None:
        ended = tsgb("export-guard", "../store/full", "out", "--env", "own:World")
        assert ended.code == 2
        assert "its module was not imported" in ended.err

    def test_no_checkpoint(self, tsgb: Run, here: Path) -> None:
        refused(tsgb, here, "there is nothing at .*/nowhere", "nowhere", "out")

    def test_a_damaged_checkpoint(self, tsgb: Run, here: Path) -> None:
        place = checkpoint_of(here.parent / "store" / "full")
        data = (place / "guard.safetensors").read_bytes()
        (place / "guard.safetensors").write_bytes(data[:-1])
        refused(tsgb, here, "guard.safetensors is damaged", str(place), "out")
        refused(tsgb, here, "no usable checkpoint below", "../store/full", "out")

    def test_another_world(self, tsgb: Run, here: Path) -> None:
        reconfigure(here, {"world_seed": 1})
        refused(tsgb, here, "was trained on base base", "../store/full", "out")

    def test_another_kind_of_adapter(self, tsgb: Run, here: Path) -> None:
        reconfigure(here, {"model": {"adapter": "lora", "rank": 3}})
        refused(
            tsgb,
            here,
            "'full' and rank 16, its config.json says 'lora' and 3",
            "../store/full",
            "out",
        )

    def test_a_dtype_that_its_models_are_not_computed_in(self, tsgb: Run, here: Path) -> None:
        flags = ("--dtype", "bfloat16")
        refused(tsgb, here, "cannot be calibrated in bfloat16", "../store/full", "out", *flags)

    def test_a_calibration_too_small_for_its_own_budget(self, tsgb: Run, here: Path) -> None:
        reconfigure(here, {"calibration": {"fpr": 0.001}})
        refused(tsgb, here, "needs at least 2995 benign", "../store/full", "out")

    def test_the_attacker_of_an_arm_without_one(self, tsgb: Run, here: Path) -> None:
        reconfigure(here, {"arm": "sft"})
        flags = ("--attacker", "--i-understand")
        refused(tsgb, here, "trains no attacker", "../store/full", "out", *flags)
