"""`tsgb report` and `tsgb compare`: forms, gates and exit codes."""

import json
from pathlib import Path

import pytest

from tests.fakes.command_line import Run
from tests.fakes.stored_evaluation import store_evaluation
from tsgb.eval.records import Item, ItemSource


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store") / "r1" / "reports" / "eval-0001"
    store_evaluation(place)
    return place


def test_it_is_shown_again_in_each_form(tsgb: Run, evaluation: Path, tmp_path: Path) -> None:
    beginnings = {
        "text": "The self-play guard ",
        "markdown": "The self-play guard ",
        "html": "<!doctype html>",
        "json": '{\n "schema_version"',
        "csv": "guard,target,seed,figure",
        "latex": "% eval-0001: glyph",
        "junit": "<?xml version",
    }
    for form, beginning in beginnings.items():
        ended = tsgb("report", str(evaluation), "--format", form)
        assert ended.code == 0
        assert ended.out.lstrip().startswith(beginning)
        path = tmp_path / "deep" / f"report.{form}"
        assert tsgb("report", str(evaluation), "--format", form, "--out", str(path)).code == 0
        assert path.read_text().strip() == ended.out.strip()


def test_figures_are_computed_anew(tsgb: Run, evaluation: Path) -> None:
    before = json.loads((evaluation / "summary.json").read_text())
    ended = tsgb("report", str(evaluation.parents[1]), "--recompute", "--format", "json")
    after = json.loads(ended.out)
    values = [
        [row["adaptive_asr"]["value"] for row in document["results"]]
        for document in (before, after)
    ]
    assert values[0] == values[1]


def test_a_gate_that_fails_has_an_exit_code_of_its_own(tsgb: Run, evaluation: Path) -> None:
    ended = tsgb("report", str(evaluation), "--gate", "fpr<=1", "--gate", "selfplay.asr[T_s]>=0")
    assert ended.code == 0
    ended = tsgb("report", str(evaluation), "--format", "junit", "--gate", "selfplay.fpr<=0")
    assert ended.code == 100
    assert 'failures="1"' in ended.out
    assert ended.err.startswith("failed: selfplay.fpr <= 0: ")
    ended = tsgb("report", str(evaluation), "--gate", "fpr")
    assert (ended.code, ended.out) == (2, "")


def test_logs_for_inspect_go_into_a_directory(tsgb: Run, evaluation: Path, tmp_path: Path) -> None:
    assert tsgb("report", str(evaluation), "--format", "inspect").code == 2
    out = tmp_path / "logs"
    assert tsgb("report", str(evaluation), "--format", "inspect", "--out", str(out)).code == 0
    assert len(list(out.glob("*_tsgb_eval-0001-*.json"))) == 4


def test_the_terminal_obeys_no_name_in_an_error_or_a_gate(tsgb: Run, tmp_path: Path) -> None:
    store_evaluation(tmp_path / "e")
    document = json.loads((tmp_path / "e" / "summary.json").read_text())
    name = "a\x1b[2J\u202eb"
    document["invalid"] = [{"what": f"prompts to {name}", "errors": 2, "total": 2}]
    for group in ("targets", "results"):
        for one in document[group]:
            for key in ("name", "target"):
                if one.get(key) == "B_far":
                    one[key] = name
    (tmp_path / "e" / "summary.json").write_text(json.dumps(document))
    ended = tsgb("report", str(tmp_path / "e"), "--gate", "adaptive_asr<=1")
    assert ended.code == 3
    assert ended.err.count("a<U+001B>[2J<U+202E>b") == 3
    assert "\x1b" not in ended.out + ended.err
    assert "\u202e" not in ended.out + ended.err


def test_no_name_leads_a_log_out_of_its_directory(tsgb: Run, tmp_path: Path) -> None:
    summary = store_evaluation(tmp_path / "e")
    document = summary.model_dump_json()
    for old, new in (("B_mid", "x/../../../../out"), ("B_far", "B:mid"), ("B_near", "B*mid")):
        document = document.replace(f'"{old}"', f'"{new}"')
    (tmp_path / "e" / "summary.json").write_text(document)
    (tmp_path / "e" / "results.jsonl").write_text("")
    out = tmp_path / "deep" / "er" / "logs"
    assert tsgb("report", str(tmp_path / "e"), "--format", "inspect", "--out", str(out)).code == 0
    found = [path for path in tmp_path.rglob("*.json") if path.name != "summary.json"]
    assert {path.parent for path in found} == {out}
    assert len(found) == 4


def test_a_file_that_cannot_be_written_is_one_line(
    tsgb: Run, evaluation: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = tsgb("report", str(evaluation), "--out", str(tmp_path / "file" / "report.txt"))
    assert ended.code == 2
    assert "cannot be written (" in ended.err


def test_two_evaluations(tsgb: Run, evaluation: Path, tmp_path: Path) -> None:
    other = tmp_path / "e2"
    store_evaluation(other, eval_id="eval-0002")
    page = tmp_path / "page.html"
    ended = tsgb("compare", str(evaluation), str(other), "--html", str(page))
    assert ended.code == 0
    assert "No share differs." in ended.out
    assert page.read_text().startswith("<!doctype html>")
    document = json.loads(tsgb("compare", str(evaluation), str(other), "--json").out)
    assert (document["first"], document["second"]) == ("eval-0001", "eval-0002")
    assert tsgb("compare", str(evaluation), str(tmp_path / "none")).code == 2


def test_an_invalid_evaluation_is_shown_and_ends_with_its_exit_code(
    tsgb: Run, tmp_path: Path
) -> None:
    def lost(item: Item) -> Item:
        if item.target != "T_s" or item.source is not ItemSource.SCRIPTED:
            return item
        return item.model_copy(update={"violated": None, "error": "http_500"})

    store_evaluation(tmp_path / "e", changed=lost)
    ended = tsgb("report", str(tmp_path / "e"), "--gate", "fpr<=1")
    assert ended.code == 3
    assert ended.out.startswith("Nothing can be read from this evaluation: 720 of 720 harmful ")
    assert "\nNot valid: " in ended.out
    assert "http_500" in ended.err
