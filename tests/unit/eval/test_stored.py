"""A stored evaluation is found and read, and what is none is refused in one line."""

from pathlib import Path

import pytest

from tests.fakes.stored_evaluation import DRAWS, store_evaluation
from tsgb.errors import StoreError, UsageError
from tsgb.eval.records import Item, ItemSource, Summary
from tsgb.eval.stored import StoredEvaluation, find_evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    root = tmp_path_factory.mktemp("store") / "r1"
    return root, store_evaluation(root / "reports" / "e1")


@pytest.mark.parametrize(
    "where", ["", "reports/e1", "reports/e1/", "reports/e1/summary.json", "reports/e1/report.html"]
)
def test_it_is_found_by_its_directory_its_files_and_its_run(
    run: tuple[Path, Summary], where: str
) -> None:
    root, summary = run
    found = find_evaluation(f"{root}/{where}".rstrip("/") if where == "" else f"{root}/{where}")
    assert found.summary() == summary
    assert len(found.items()) == len((root / "reports/e1/results.jsonl").read_text().splitlines())
    assert found.games() == []


def test_figures_computed_anew_from_items_are_the_same(run: tuple[Path, Summary]) -> None:
    root, summary = run
    assert find_evaluation(str(root)).recomputed(num_draws=DRAWS) == summary


def test_the_share_of_errors_that_was_allowed_is_kept(tmp_path: Path) -> None:
    """Figures computed anew are not valid by another rule than the first ones."""

    def lost(item: Item) -> Item:
        ids = {"wide-1", "wide-2", "static-1", "static-2"}  # four of 144 of a seed
        if item.source is not ItemSource.SCRIPTED or item.item_id not in ids:
            return item
        return item.model_copy(update={"violated": None, "error": "http_500"})

    allowed = {"max_error_rate": 0.05}
    first = store_evaluation(tmp_path / "e", changed=lost)
    assert first.invalid
    document = first.model_copy(update=allowed).model_dump_json()
    (tmp_path / "e" / "summary.json").write_text(document)
    assert find_evaluation(str(tmp_path / "e")).recomputed(num_draws=DRAWS).invalid == []


def refused(found: StoredEvaluation, what: str) -> str:
    with pytest.raises((UsageError, StoreError)) as caught:
        getattr(found, what)()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "holds no summary.json" in refused(find_evaluation(str(tmp_path / "none")), "summary")
    place = tmp_path / "e1"
    store_evaluation(place)
    (place / "summary.json").write_text('{"eval_id": 3}')
    assert "summary.json is not of a format" in refused(find_evaluation(str(place)), "summary")
    lines = (place / "results.jsonl").read_text().splitlines()
    (place / "results.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]))
    assert "results.jsonl, line 3 is not of a format" in refused(
        find_evaluation(str(place)), "items"
    )
    (place / "transcripts.json").write_text("[1]")
    assert "transcripts.json is not of a format" in refused(find_evaluation(str(place)), "games")


def test_a_run_with_several_evaluations_asks_which(tmp_path: Path) -> None:
    for name in ("e1", "e2"):
        store_evaluation(tmp_path / "r1" / "reports" / name)
    with pytest.raises(UsageError, match=r"has 2 evaluations, e1, e2: name one"):
        find_evaluation(str(tmp_path / "r1"))
    (tmp_path / "r2" / "reports" / "e1").mkdir(parents=True)
    with pytest.raises(UsageError, match="has no finished evaluation"):
        find_evaluation(str(tmp_path / "r2"))
