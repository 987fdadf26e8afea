"""Two evaluations are compared on what both measured, and what cannot be compared is refused."""

import shutil
from pathlib import Path

import pytest
from scipy.stats import binomtest

from tests.fakes import evaluation as fake
from tests.fakes.stored_evaluation import ARMS, DRAWS, store_evaluation
from tsgb.errors import UsageError
from tsgb.eval.compare import PairedEvaluations, compare_evaluations
from tsgb.eval.comparison_page import comparison_notes
from tsgb.eval.judge_records import JudgeRecord
from tsgb.eval.records import FailedClass, Item, ItemSource
from tsgb.eval.stored import find_evaluation

WEAKER = {**ARMS, "selfplay": fake.Arm(0.6, 1.0, 4.5, -0.4)}


def side(directory: Path):
    stored = find_evaluation(str(directory))
    return stored.summary(), stored.items()


def compared(first: Path, second: Path) -> PairedEvaluations:
    return compare_evaluations(side(first), side(second), num_draws=DRAWS)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("first") / "e"
    store_evaluation(place)
    return place


def test_an_evaluation_does_not_differ_from_itself(earlier: Path) -> None:
    found = compared(earlier, earlier)
    assert found.changes == {}
    assert found.flips == []
    assert found.left_out == (0, 0)
    assert not any(figure.differs for figure in found.figures)
    assert all(f.difference == f.low == f.high == 0 or f.low <= 0 <= f.high for f in found.figures)
    for figure in found.figures:
        if figure.metric == "asr" and figure.guard != "none":
            assert (figure.worse, figure.better, figure.p_mcnemar) == (0, 0, 1.0)


def test_a_weaker_guard_is_found_with_its_flips(earlier: Path, tmp_path: Path) -> None:
    store_evaluation(tmp_path / "e", WEAKER, eval_id="eval-0002")
    found = compared(earlier, tmp_path / "e")
    assert (found.first, found.second, found.seeds) == ("eval-0001", "eval-0002", [0, 1, 2, 3, 4])
    figures = {(f.metric, f.guard, f.target): f for f in found.figures}
    adaptive = figures["adaptive_asr", "selfplay", "T_s"]
    assert adaptive.differs
    assert 0.2 < adaptive.low < adaptive.difference < adaptive.high
    tpr = figures["scripted_tpr", "selfplay", None]
    assert tpr.differs
    assert tpr.high < 0
    asr = figures["asr", "selfplay", "T_s"]
    assert asr.worse is not None
    assert asr.better is not None
    assert asr.worse > asr.better
    assert asr.p_mcnemar == binomtest(asr.worse, asr.worse + asr.better).pvalue
    turned = [f for f in found.flips if (f.guard, f.target) == ("selfplay", "T_s")]
    assert len(turned) == asr.worse + asr.better
    net = (asr.worse - asr.better) / asr.second.n
    assert asr.difference == pytest.approx(net, abs=1e-9)


def test_only_what_both_have_is_compared(earlier: Path, tmp_path: Path) -> None:
    def renamed(item: Item) -> Item:
        """Every third prompt is another one."""
        if item.source is ItemSource.ADAPTIVE or int(item.item_id.rsplit("-")[-1]) % 3:
            return item
        return item.model_copy(update={"item_id": f"other-{item.item_id}"})

    store_evaluation(tmp_path / "e", seeds=(3, 4, 5), changed=renamed)
    found = compared(earlier, tmp_path / "e")
    assert found.seeds == [3, 4]
    assert found.prompts == 2 * 7 * 32
    assert found.left_out == (2 * 7 * 16, 2 * 7 * 16)
    assert {f.first.n for f in found.figures if f.metric == "fpr"} == {64}
    assert found.changes["seeds"] == ("0, 1, 2, 3, 4", "3, 4, 5")


def test_what_cannot_be_paired_is_refused_in_one_line(earlier: Path, tmp_path: Path) -> None:
    store_evaluation(tmp_path / "seeds", seeds=(7, 8))
    with pytest.raises(UsageError, match=r"share no training seed: one has 0, 1, .*, the other 7"):
        compared(earlier, tmp_path / "seeds")
    store_evaluation(tmp_path / "guards", {"none": ARMS["none"], "sft": fake.ARMS["sft"]})
    with pytest.raises(UsageError, match="share no guard besides none"):
        compared(earlier, tmp_path / "guards")
    store_evaluation(
        tmp_path / "prompts", changed=lambda i: i.model_copy(update={"item_id": f"x{i.item_id}"})
    )
    with pytest.raises(UsageError, match="share no prompt"):
        compared(earlier, tmp_path / "prompts")


def test_what_else_differs_is_told(earlier: Path) -> None:
    summary, items = side(earlier)
    about = summary.provenance
    other = summary.model_copy(
        update={
            "dtype": "bfloat16",
            "thresholds": [
                t.model_copy(update={"value": 2.5}) if (t.guard, t.seed) == ("frozen", 3) else t
                for t in summary.thresholds
            ],
            "targets": [t.model_copy(update={"arch": "GRU d7"}) for t in summary.targets],
            "provenance": about.model_copy(update={"checkpoints": {"selfplay-0": "cd" * 32}}),
        }
    )
    found = compare_evaluations((summary, items), (other, items), num_draws=DRAWS)
    assert found.changes["dtype"] == ("-", "bfloat16")
    assert found.changes["threshold of frozen, seed 3"] == ("2.4", "2.5")
    assert found.changes["target B_mid"] == ("GRU d96", "GRU d7")
    assert found.changes["checkpoint selfplay-0"] == ("000000000000", "cdcdcdcdcdcd")
    assert found.changes["checkpoint selfplay-1"] == ("010101010101", "-")
    assert "commit" not in found.changes


def adaptive(found: PairedEvaluations, guard: str = "selfplay") -> set[str | None]:
    return {f.target for f in found.figures if (f.metric, f.guard) == ("adaptive_asr", guard)}


def test_a_lower_bound_is_compared_with_nothing(earlier: Path, tmp_path: Path) -> None:
    """Attackers that did not converge say nothing of how a guard changed."""
    arms = {**ARMS, "selfplay": fake.Arm(0.02, 0.6, 1.2, -0.4)}
    summary = store_evaluation(tmp_path / "e", arms, eval_id="eval-0002")
    bounds = {u.target for u in summary.unconverged if u.guard == "selfplay"}
    assert bounds
    targets = {target.name for target in summary.targets}
    for found in (compared(earlier, tmp_path / "e"), compared(tmp_path / "e", earlier)):
        assert adaptive(found) == targets - bounds
        told = " ".join(comparison_notes(found))
        assert all(f"did not converge on {target} against Self-play" in told for target in bounds)
        assert {(x.guard, x.target) for x in found.lower_bounds} >= {
            ("selfplay", target) for target in bounds
        }


def test_a_target_without_a_denominator_has_no_figure_of_a_guard(earlier: Path) -> None:
    summary, items = side(earlier)
    targets = [
        t.model_copy(update={"min_leaks": 10**6} if t.name == "B_mid" else {})
        for t in summary.targets
    ]
    other = summary.model_copy(update={"targets": targets})
    found = compare_evaluations((summary, items), (other, items), num_draws=DRAWS)
    guards = {f.guard for f in found.figures if f.target == "B_mid"}
    assert guards == {"none"}
    assert adaptive(found) == {"T_s", "B_near", "B_far"}


def test_nothing_differs_where_one_is_not_valid(earlier: Path, tmp_path: Path) -> None:
    store_evaluation(tmp_path / "e", WEAKER, eval_id="eval-0002")
    summary, items = side(tmp_path / "e")
    failed = FailedClass(what="harmful prompts to T_s", target="T_s", errors=40, total=240)
    broken = summary.model_copy(update={"invalid": [failed]})
    found = compare_evaluations(side(earlier), (broken, items), num_draws=DRAWS)
    assert found.invalid == ["eval-0002"]
    assert any("Not valid: eval-0002" in note for note in comparison_notes(found))
    assert found.figures
    assert not any(figure.differs for figure in found.figures)


def judged(earlier: Path, directory: Path, **facts: object) -> Path:
    """Copy an evaluation, as if a judge of these facts had judged it."""
    shutil.copytree(earlier, directory)
    record = JudgeRecord.model_validate({"name": "openai:m", "version": "a1", **facts})
    summary = find_evaluation(str(directory)).summary().model_copy(update={"judge": record})
    (directory / "summary.json").write_text(summary.model_dump_json())
    return directory


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"name": "openai:n"}, id="name"),
        pytest.param({"version": "b2"}, id="version"),
        pytest.param({"prompt_sha256": "f" * 64}, id="prompt"),
        pytest.param({"name": "exact", "version": "glyph", "exact": True}, id="world"),
    ],
)
def test_what_two_judges_judged_is_not_compared(
    earlier: Path, tmp_path: Path, other: dict[str, object]
) -> None:
    found = compared(judged(earlier, tmp_path / "a"), judged(earlier, tmp_path / "b", **other))
    assert found.judges is not None
    assert {figure.metric for figure in found.figures}.isdisjoint({"asr", "adaptive_asr"})
    assert {figure.metric for figure in found.figures} >= {"scripted_tpr", "fpr"}
    assert found.flips == []
    assert "judge" in found.changes
    assert any(
        note.startswith("Judged differently: the first by") for note in (comparison_notes(found))
    )


def test_one_fallible_judge_is_named_as_such(earlier: Path, tmp_path: Path) -> None:
    corrected = {"correction": "corrected for the judge's errors on 9 answers"}
    found = compared(judged(earlier, tmp_path / "a"), judged(earlier, tmp_path / "b", **corrected))
    assert found.judges is None
    assert [*found.changes] == ["errors of the judge"]
    assert any(figure.metric == "asr" for figure in found.figures)
    assert any("as judged in both" in note for note in comparison_notes(found))
    assert not any("as judged" in note for note in comparison_notes(compared(earlier, earlier)))


def test_slices_say_where_a_guard_became_weaker(earlier: Path, tmp_path: Path) -> None:
    store_evaluation(tmp_path / "e", WEAKER, eval_id="eval-0002")
    found = compared(earlier, tmp_path / "e")
    slices = {(s.kind, s.slice, s.guard): s for s in found.slices}
    assert {kind for kind, _, _ in slices} == {"stream", "technique", "family"}
    worse = slices["stream", "held_out", "selfplay"]
    assert worse.differs
    assert worse.high < 0
    tpr = {(f.metric, f.guard): f for f in found.figures}["scripted_tpr", "selfplay"]
    assert worse.difference == pytest.approx(tpr.difference, abs=1e-9)
    assert not any(s.differs for s in compared(earlier, earlier).slices)
