"""`tsgb worker evaluate`: how far it says it is, and what a part of it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.contexts import signalled, worker_context
from tests.fakes.miniature import TRUST, miniature_config, world
from tests.fakes.runs import save_run
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import CheckpointError, Interrupted, UsageError
from tsgb.eval.request import plan, write_request
from tsgb.eval.runner import Evaluation
from tsgb.worker.build import make_registry
from tsgb.worker.evaluate import EvaluationProgress, evaluate

NAME = "reports/e1/progress-0.json"
CONFIG = miniature_config(
    {
        "evaluation": {
            "scripted": 8,
            "best_responses": 1,
            "warmup_steps": 1,
            "attack_steps": 1,
            "prompts": 8,
            "variance_batches": 0,
        }
    }
)


def without_times(run: RunStore, name: str) -> dict[str, Any]:
    """A cell without the times that its guards took, which no two runs share."""
    content = run.read_json(name)
    content.pop("guard_times", None)
    return content


class TestProgress:
    """In virtual time, on a disk: there each heartbeat is written before the call returns."""

    @pytest.fixture(autouse=True)
    def begin(self, tmp_path: Path) -> None:
        self.run = open_run(str(tmp_path / "r1"))
        self.seconds = 100.0
        self.stopped = False
        self.progress = EvaluationProgress(self.run, NAME, self.check, lambda: self.seconds)

    def check(self) -> None:
        if self.stopped:
            raise Interrupted("stopped")

    def told(self) -> dict[str, Any]:
        return self.run.read_json(NAME)

    def test_the_first_one_is_written_at_once_and_the_next_when_it_is_due(self) -> None:
        self.progress.filled(0, 40, "scripted")
        first = self.told()
        assert (first["done"], first["total"], first["label"]) == (0, 40, "scripted")
        self.seconds += 0.01
        self.progress.filled(1, 40, "T_s.0")
        assert self.told() == first
        self.seconds += 60
        self.progress.filled(2, 40, "B_far.0")
        assert (self.told()["done"], self.told()["label"]) == (2, "B_far.0")

    def test_the_last_one_is_never_left_out(self) -> None:
        self.progress.filled(39, 40, "B_far.0")
        self.progress.filled(40, 40, "done")
        self.progress.flush()
        assert (self.told()["done"], self.told()["label"]) == (40, "done")

    def test_a_model_that_is_being_built_is_told_with_the_cells_so_far(self) -> None:
        self.progress.filled(3, 40, "B_far.0")
        self.seconds += 60
        self.progress.building("B_far", 200, 900)
        told = self.told()
        assert (told["phase"], told["built"], told["build_total"]) == ("build B_far", 200, 900)
        assert (told["done"], told["total"]) == (3, 40)

    def test_an_answer_that_takes_long_is_no_stall(self) -> None:
        self.progress.going_on()
        self.progress.filled(1, 40, "B_far.0")
        before = self.told()
        self.seconds += 60
        self.progress.going_on()
        told = self.told()
        assert told["updated_at"] != before["updated_at"]
        assert (told["done"], told["label"]) == (1, "B_far.0")
        self.stopped = True
        with pytest.raises(Interrupted):
            self.progress.going_on()

    def test_a_signal_ends_a_build(self) -> None:
        self.stopped = True
        with pytest.raises(Interrupted):
            self.progress.building("B_far", 1, 900)


@pytest.mark.usefixtures("handlers")
class TestEvaluate:
    @pytest.fixture
    def run(self, tmp_path: Path) -> RunStore:
        """A trained run with a request for an evaluation on two targets."""
        ref = save_run(tmp_path / "r1", CONFIG, tmp_path / "cache")
        made = open_run(str(tmp_path / "r1"))
        write_request(made, "e1", {"selfplay": ref}, ["T_s", "B_far"])
        return made

    def test_parts_fill_every_cell_once_and_say_so(self, run: RunStore, tmp_path: Path) -> None:
        context = worker_context(tmp_path / "cache", trust=TRUST)
        for part in range(2):
            evaluate(context, run.run_url, "e1", part, 2)
        cells = plan(CONFIG, ["T_s", "B_far"])
        assert set(run.list("reports/e1/cells")) == {f"{cell.name}.json" for cell in cells}
        heartbeats = [run.read_json(f"reports/e1/progress-{part}.json") for part in range(2)]
        assert [told["label"] for told in heartbeats] == ["done", "done"]
        assert sum(told["total"] for told in heartbeats) == len(cells)

        before = {
            name: run.read_bytes(f"reports/e1/cells/{name}")
            for name in run.list("reports/e1/cells")
        }
        name = f"{cells[-1].name}.json"
        run.write_text(f"reports/e1/cells/{name}", '{"items": [')  # its worker was killed
        marked = f"{cells[0].name}.json"
        run.write_json(f"reports/e1/cells/{marked}", {"items": []})
        evaluate(context, run.run_url, "e1", 0, 1)
        assert run.read_json(f"reports/e1/cells/{marked}") == {"items": []}, "it was there already"
        assert run.read_bytes(f"reports/e1/cells/{name}") == before[name], "it is made again alike"

    def test_cells_of_another_dtype_are_made_anew_where_one_is_missing(
        self, run: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A run of an earlier version, or of another machine, may go on in another dtype."""
        context = worker_context(tmp_path / "cache", trust=TRUST)
        evaluate(context, run.run_url, "e1", 0, 1)
        folder, names = "reports/e1/cells", run.list("reports/e1/cells")
        made = {name: without_times(run, f"{folder}/{name}") for name in names}
        for name in names:
            run.write_json(f"{folder}/{name}", {"items": [], "dtype": "bfloat16"})
        evaluate(context, run.run_url, "e1", 0, 1)
        assert all(run.read_json(f"{folder}/{name}")["items"] == [] for name in names)

        run.delete(f"{folder}/{names[0]}")
        capsys.readouterr()
        evaluate(context, run.run_url, "e1", 0, 1)
        assert {name: without_times(run, f"{folder}/{name}") for name in names} == made
        told = capsys.readouterr().err
        assert told.count("was computed in bfloat16, this machine computes in float32") == (
            len(names) - 1
        )

    def test_a_signal_ends_it_and_no_cell_is_half_made(self, run: RunStore, tmp_path: Path) -> None:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            evaluate(signalled(tmp_path / "cache", trust=TRUST), run.run_url, "e1", 0, 1)
        for name in run.list_if_present("reports/e1/cells"):
            run.read_json(f"reports/e1/cells/{name}")

    def test_an_evaluation_that_nobody_asked_for(self, run: RunStore, tmp_path: Path) -> None:
        context = worker_context(tmp_path / "cache", trust=TRUST)
        with pytest.raises(UsageError, match="has no evaluation 'e2'"):
            evaluate(context, run.run_url, "e2", 0, 1)

    def test_a_guard_that_loads_nowhere_says_which_command_goes_back(
        self, run: RunStore, tmp_path: Path
    ) -> None:
        store = CheckpointStore(run)
        good = store.newest()
        assert good is not None
        files = store.read(good)
        store.claim()
        files["guard.safetensors"] = files["optim_guard.safetensors"]
        bad = store.publish(good.step, good.episode, files, CONFIG.fingerprint)
        write_request(run, "e3", {"selfplay": bad}, ["T_s"])
        context = worker_context(tmp_path / "cache", trust=TRUST)
        with pytest.raises(CheckpointError, match=f"`tsgb checkpoint reject {bad.url}`") as raised:
            evaluate(context, run.run_url, "e3", 0, 1)
        assert "\n" not in str(raised.value)
        assert not run.list_if_present("reports/e3/cells")

    def test_the_streams_are_told_of_and_can_be_stopped_while_they_are_scored(
        self, run: RunStore, tmp_path: Path
    ) -> None:
        """The scripted cell alone took longer than a stall on a slow machine."""
        context = worker_context(tmp_path / "cache", trust=TRUST)
        env, registry = world(), make_registry(CONFIG, context, lambda *_: None)
        evaluation = Evaluation(run, CONFIG, env, registry, "e1", context.open)
        told: list[str] = []
        with pytest.raises(Interrupted):
            evaluation.fill(0, 1, lambda *now: told.append(now[2]), stop_after(3))
        assert told == ["scripted"] * 4
        assert not run.list_if_present("reports/e1/cells")


def stop_after(calls: int) -> Callable[[], None]:
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise Interrupted("stopped")

    return check
