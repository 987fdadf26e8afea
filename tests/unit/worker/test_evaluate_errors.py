"""An evaluation whose black box fails: what is asked, what is written, and how it is mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.contexts import worker_context
from tests.fakes.miniature import TRUST, miniature_config
from tests.fakes.runs import save_run
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.errors import InvalidResult
from tsgb.eval.additions import Additions
from tsgb.eval.records import Item, Summary
from tsgb.eval.request import write_request
from tsgb.types import CheckpointRef
from tsgb.worker.evaluate import evaluate
from tsgb.worker.report import report

pytestmark = pytest.mark.usefixtures("handlers")

SCRIPTED = 24
HARMFUL = 3 * SCRIPTED
FIXED = 2 * HARMFUL
"""Fixed prompts: as many benign ones."""
CONFIG = miniature_config(
    {
        "evaluation": {
            "scripted": SCRIPTED,
            "best_responses": 1,
            "warmup_steps": 1,
            "attack_steps": 1,
            "prompts": 8,
            "variance_batches": 0,
            "bootstrap": 100,
        }
    }
)


class Bot:
    """A user's black box, whose server is down for some prompts."""

    name, version = "bot", "1"
    asked: list[str]
    is_down: Callable[[str], bool]

    def generate(self, prompt: str) -> str:
        Bot.asked.append(prompt)
        if Bot.is_down(prompt):
            raise ConnectionError("no route")
        return "a0 COMPLY"


class Judge:
    name, version = "judge", "1"

    def judge(self, response: str, is_benign: bool) -> bool:
        return False


BOT = f"{__name__}:Bot"


def up(_prompt: str) -> bool:
    return False


def down(_prompt: str) -> bool:
    return True


def half(prompt: str) -> bool:
    return sum(map(ord, prompt)) % 2 == 1


class Evaluated:
    """Evaluations of one run on its surrogate and the black box."""

    def __init__(self, folder: Path, ref: CheckpointRef, run: RunStore) -> None:
        self._context = worker_context(folder / "cache", trust=TRUST)
        self._ref = ref
        self.run = run
        self.complaint: str | None = None
        """What `tsgb worker report` ended with, if the evaluation is not valid."""

    def __call__(
        self, is_down: Callable[[str], bool], eval_id: str = "e1", *, parts: int = 1, **own: Any
    ) -> Summary:
        """Give a command again, or for the first time; the questions are those of this command."""
        Bot.asked, Bot.is_down = [], is_down
        own = {"target_class": [BOT], **own}
        write_request(self.run, eval_id, {"selfplay": self._ref}, ["T_s", "Bot"], **own)
        own.pop("fresh", None)
        for part in range(parts):
            evaluate(self._context, self.run.run_url, eval_id, part, parts, added=Additions(**own))
        self.complaint = None
        try:
            report(self._context, [self.run.run_url], eval_id)
        except InvalidResult as error:
            self.complaint = str(error)
        return Summary.model_validate_json(self.text(eval_id, "summary.json"))

    def text(self, eval_id: str, name: str) -> str:
        return self.run.read_text(f"reports/{eval_id}/{name}")

    def items(self, eval_id: str = "e1") -> list[Item]:
        lines = self.text(eval_id, "results.jsonl").splitlines()
        return [Item.model_validate_json(line) for line in lines]


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    ref = save_run(tmp_path / "r1", CONFIG, tmp_path / "cache")
    return Evaluated(tmp_path, ref, open_run(str(tmp_path / "r1")))


def bot_errors(items: list[Item]) -> Counter[str | None]:
    return Counter(i.error for i in items if i.target == "Bot" and i.source != "adaptive")


def test_a_black_box_that_is_down_costs_twenty_questions_of_each_class(
    evaluated: Evaluated,
) -> None:
    summary = evaluated(down, parts=2)
    assert len(Bot.asked) == 40
    assert evaluated.complaint is not None
    assert evaluated.complaint.startswith("not valid: 72 of 72 items (100.0 %) have no outcome")
    failed, benign = summary.invalid
    assert (benign.what, benign.common) == ("benign prompts to Bot", failed.common)
    assert (failed.what, failed.errors, failed.total) == (
        "harmful prompts to Bot",
        HARMFUL,
        HARMFUL,
    )
    assert failed.common == {"not asked": HARMFUL - 20, "ConnectionError": 20}
    page = evaluated.text("e1", "report.html")
    assert page.index("<strong>Not valid</strong>") < page.index("<table")
    assert f"{HARMFUL} of {HARMFUL} items (100.0 %) have no outcome: harmful prompts to" in page
    assert "Bot.0.json" not in evaluated.run.list("reports/e1/cells"), "nobody attacks it"
    assert any(
        "adaptive attacks" in gap and "Bot" in gap for gap in summary.provenance.not_measured
    )

    cells = {
        name: evaluated.run.read_bytes(f"reports/e1/cells/{name}")
        for name in evaluated.run.list("reports/e1/cells")
    }
    healed = evaluated(up, parts=2)
    assert not healed.invalid
    assert evaluated.complaint is None
    assert len(Bot.asked) >= FIXED, "all of them, and then attacks"
    assert "<strong>Not valid</strong>" not in evaluated.text("e1", "report.html")
    assert bot_errors(evaluated.items()) == {None: FIXED}
    assert evaluated.run.read_bytes("reports/e1/cells/T_s.0.json") == cells["T_s.0.json"]
    assert "Bot.0.json" in evaluated.run.list("reports/e1/cells")


def test_errors_on_half_of_the_prompts_have_bounds_and_are_asked_again(
    evaluated: Evaluated,
) -> None:
    summary = evaluated(half)
    answered = [prompt for prompt in Bot.asked if not half(prompt)]
    assert len(Bot.asked) <= 2 * 60
    failed, benign = summary.invalid
    assert failed.errors + benign.errors == FIXED - len(answered)
    [row] = [r for r in summary.results if (r.guard, r.target, r.seed) == ("none", "Bot", None)]
    assert row.asr_no_guard is not None
    assert (row.asr_no_guard.n, row.asr_no_guard.errors) == (
        HARMFUL - failed.errors,
        failed.errors,
    )
    assert row.over_refusal_no_guard is not None
    assert row.over_refusal_no_guard.errors == benign.errors
    assert row.asr_no_guard.low < row.asr_no_guard.value < row.asr_no_guard.high
    errors = bot_errors(evaluated.items())
    assert errors.total() == FIXED
    assert errors[None] == len(answered)

    assert not evaluated(up).invalid
    asked = Counter(Bot.asked[: FIXED - len(answered)])
    assert not asked & Counter(answered), "what was answered is not asked again"
    assert bot_errors(evaluated.items()) == {None: FIXED}


def test_another_evaluation_with_another_judge_asks_no_fixed_prompt(evaluated: Evaluated) -> None:
    """Its fresh attackers learn from other judgements, so only their prompts are new."""
    assert not evaluated(up).invalid
    first = Bot.asked[:FIXED]
    judged = evaluated(up, "e2", judge_class=f"{__name__}:Judge")
    assert not set(first) & set(Bot.asked)
    assert len(Bot.asked) < FIXED
    [row] = [r for r in judged.results if (r.guard, r.target, r.seed) == ("none", "Bot", None)]
    assert row.asr_no_guard is not None
    assert (row.asr_no_guard.value, row.asr_no_guard.n) == (1.0, HARMFUL)
    assert row.over_refusal_no_guard is not None
    assert (row.over_refusal_no_guard.value, row.over_refusal_no_guard.n) == (1.0, HARMFUL)
    assert not evaluated(up, "e3", fresh=True).invalid
    assert Counter(Bot.asked[:FIXED]) == Counter(first)
