"""CSV, LaTeX and JUnit say what the summary says, and no name breaks out of them."""

import csv
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from lxml import etree

from tests.fakes import evaluation as fake
from tests.fakes.stored_evaluation import ARMS, store_evaluation
from tsgb.eval.formats import CSV_COLUMNS, to_csv, to_junit, to_latex, to_markdown
from tsgb.eval.gates import Gate, check_gates
from tsgb.eval.records import FailedClass, Summary
from tsgb.eval.wording import in_words

NASTY = '=cmd|"x"&<b>_{%$#}^~\\\u202e👽'


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    arms = {**ARMS, NASTY: fake.Arm(0.5, 1.0, 3.0, 0.1)}
    return store_evaluation(tmp_path_factory.mktemp("s") / "e", arms)


def test_csv_has_one_line_a_figure_and_no_formula(summary: Summary) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(summary))))
    assert tuple(lines[0]) == CSV_COLUMNS
    found = {(x["guard"], x["target"], x["seed"], x["figure"]): x for x in lines}
    assert len(found) == len(lines)
    row = next(
        r for r in summary.results if (r.guard, r.target, r.seed) == ("selfplay", "B_mid", 1)
    )
    assert row.adaptive_asr is not None
    line = found["selfplay", "B_mid", "1", "adaptive_asr"]
    assert float(line["value"]) == pytest.approx(row.adaptive_asr.value, rel=1e-5)
    assert int(line["n"]) == row.adaptive_asr.n
    assert ("selfplay", "", "", "fpr") in found
    assert {x["guard"][:2] for x in lines} == {"no", "fr", "se", "'="}
    assert "\u202e" not in to_csv(summary)


def test_markdown_begins_with_the_gates(summary: Summary) -> None:
    gates = [Gate.parse("selfplay.fpr<=1"), Gate.parse("selfplay.fpr<=0")]
    text = to_markdown(summary, check_gates(summary, gates))
    first, second = text.removeprefix("### Gates\n\n- ").split("\n\n")[0].split("\n- ")
    assert first.startswith("passed: selfplay.fpr &lt;= 1: ")
    assert second.startswith("failed: selfplay.fpr &lt;= 0: ")
    assert text.endswith(to_markdown(summary))
    assert "Gates" not in to_markdown(summary)


def test_latex_has_a_row_a_guard_and_escapes_names(summary: Summary) -> None:
    text = to_latex(summary)
    assert text.isascii()
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == len(summary.guards)
    columns = 1 + len(summary.targets) + 3
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        assert line.endswith(r"\\")
        assert not re.search(r"(?<!\\)[%#_^]", line)
    assert r"\begin{tabular}{l" + "r" * (columns - 1) + "}" in text
    assert r"\textbackslash{}<U" not in text
    assert r"\textless{}U+202E\textgreater{}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(summary: Summary, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(to_latex(summary))
    page = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}"
    )
    (tmp_path / "page.tex").write_text(page)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


def test_latex_takes_no_letter_of_another_script_for_a_command(summary: Summary) -> None:
    guards = [*summary.guards[:-1], "ж👽é"]
    results = [
        row.model_copy(update={"guard": "ж👽é"}) if row.guard == NASTY else row
        for row in summary.results
    ]
    text = to_latex(summary.model_copy(update={"guards": guards, "results": results}))
    shown = "".join(rf"\textless{{}}U+{code}\textgreater{{}}" for code in ("0436", "1F47D", "00E9"))
    assert f"{shown} & " in text
    assert text.isascii()


def test_bounds_are_marked(tmp_path: Path) -> None:
    arms = {**ARMS, "selfplay": fake.Arm(0.02, 0.6, 1.2, -0.4)}
    assert r"$\geq$\," in to_latex(store_evaluation(tmp_path / "e", arms))


def test_junit_counts_what_it_holds(summary: Summary) -> None:
    gates = [Gate.parse("selfplay.fpr<=1"), Gate.parse("selfplay.fpr<=0")]
    document = ET.fromstring(to_junit(summary, check_gates(summary, gates)))  # noqa: S314 - ours
    [suite] = document
    cases = list(suite)
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == "1"
    assert suite.get("errors") == "0"
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    [failure] = suite.findall("testcase/failure")
    assert "failed: selfplay.fpr <= 0" in str(failure.get("message"))
    unmet = [c for c in summary.verdict.conditions if not c.met]
    assert len(suite.findall("testcase/skipped")) == len(unmet)
    names = [str(case.get("name")) for case in cases]
    assert any("<U+202E>" in name for name in names)


def test_junit_of_an_invalid_evaluation_is_an_error(summary: Summary) -> None:
    failed = FailedClass(what="harmful prompts to Bot", target="Bot", errors=200, total=402)
    invalid = summary.model_copy(update={"invalid": [failed]})
    document = ET.fromstring(to_junit(invalid))  # noqa: S314 - ours
    [error] = document.findall("testsuite/testcase/error")
    assert "harmful prompts to Bot" in str(error.get("message"))
    assert document.get("errors") == "1"


def valid_junit(text: str) -> None:
    schema = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))
    schema.assertValid(etree.fromstring(text.encode()))


def test_junit_is_of_the_form_that_servers_accept(summary: Summary) -> None:
    gates = check_gates(summary, [Gate.parse("fpr<=1"), Gate.parse("selfplay.fpr<=0")])
    valid_junit(to_junit(summary, gates))
    failed = FailedClass(what="harmful prompts to Bot", target="Bot", errors=200, total=402)
    valid_junit(to_junit(summary.model_copy(update={"invalid": [failed]})))


def test_junit_has_a_case_of_a_lasting_name_for_each_guard_and_target(summary: Summary) -> None:
    def cases(text: str) -> dict[tuple[str, str], str]:
        root = ET.fromstring(text)  # noqa: S314 - ours
        found = {
            (str(x.get("classname")), str(x.get("name"))): "".join(x.itertext())
            for x in root.iter("testcase")
        }
        assert len(found) == len(list(root.iter("testcase")))
        return found

    results = [
        row.model_copy(update={"adaptive_asr": None, "asr": None})
        if (row.guard, row.target) == ("frozen", "T_s")
        else row
        for row in summary.results
    ]
    other = summary.model_copy(update={"results": results})
    first, second = cases(to_junit(summary)), cases(to_junit(other))
    assert first.keys() == second.keys(), "a server follows a case by its name"
    for target in summary.targets:
        for guard in ("none", "frozen", "selfplay"):
            assert ("tsgb.guard", f"{guard}[{target.name}]") in first
    told = first["tsgb.guard", "selfplay[T_s]"]
    row = next(r for r in summary.results if (r.guard, r.target) == ("selfplay", "T_s"))
    assert f"adaptive ASR {in_words(row.adaptive_asr)}" in told
    assert f"FPR {in_words(row.fpr)}" in told
    assert "adaptive ASR not measured" in second["tsgb.guard", "frozen[T_s]"]
    assert not any(re.search(r"\d %|points", name) for _, name in first)
