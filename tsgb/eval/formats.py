"""A summary in the formats of other programs: CSV, Markdown, LaTeX, JUnit.

Each is text made from the figures alone. Names come from users and stores, so each format escapes
them in its own way, and control characters are shown (`<U+202E>`).
"""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tsgb.data.characters import visible, visible_in_cell
from tsgb.eval import wording
from tsgb.eval.gates import METRICS, ON_TARGETS, GateOutcome
from tsgb.eval.records import Rate, Summary
from tsgb.eval.report import markdown_text, render_tables
from tsgb.eval.views import converged, pooled
from tsgb.eval.wording import in_words, title, too_many_failed

CSV_COLUMNS = ("guard", "target", "seed", "figure", "value", "low", "high", "n", "errors")
_CASE_FIGURES = ("adaptive_asr", "asr", "scripted_tpr", "fpr", "fpr_hard")
"""Figures that the case of a guard on a target tells."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def to_csv(summary: Summary) -> str:
    """One line a figure, of each seed and over all of them (no seed); shares are in [0, 1]."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    seen: set[tuple[str, int | None, str]] = set()
    for row in summary.results:
        for metric in (*METRICS, "asr_no_guard"):
            rate: Rate | None = getattr(row, metric)
            depends = metric in ON_TARGETS or metric == "asr_no_guard"
            key = (row.guard, row.seed, metric)
            if rate is None or (not depends and key in seen):
                continue
            seen.add(key)
            target = visible_in_cell(row.target) if depends else ""
            seed = "" if row.seed is None else row.seed
            figures = (f"{x:.6g}" for x in (rate.value, rate.low, rate.high))
            writer.writerow(
                [visible_in_cell(row.guard), target, seed, metric, *figures, rate.n, rate.errors]
            )
    return buffer.getvalue()


def to_markdown(summary: Summary, outcomes: Sequence[GateOutcome] = ()) -> str:
    """The main tables for a comment on a pull request, after what became of the gates."""
    tables = render_tables(summary, "markdown")
    if not outcomes:
        return tables
    lines = "\n".join(f"- {markdown_text(str(outcome))}" for outcome in outcomes)
    return f"### Gates\n\n{lines}\n\n{tables}"


def to_latex(summary: Summary) -> str:
    r"""A table of the packages booktabs and graphicx: guards by targets, in percent.

    `\input` it where a table may stand. Adaptive figures of attackers that did not converge are
    lower bounds and marked so.
    """
    targets = [target.name for target in summary.targets]
    heads = [f"Adaptive ASR, {name}" for name in targets]
    heads = ["Guard", *heads, "TPR, reserved", "FPR", "FPR, hard"]
    seeds = ", ".join(map(str, summary.seeds))
    about = f"{_one_line(summary.eval_id)}: {_one_line(summary.env)}, seeds {seeds}"
    lines = [
        f"% {about}; percent with 95 % intervals",
        r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}",
        r"\toprule",
        " & ".join(_tex(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    for guard in summary.guards:
        rows = [pooled(summary, guard, name) for name in targets]
        cells = [
            _tex_rate(row.adaptive_asr, bound=not converged(summary, row.target)) for row in rows
        ]
        cells += [_tex_rate(x) for x in (rows[0].scripted_tpr, rows[0].fpr, rows[0].fpr_hard)]
        lines.append(" & ".join([_tex(title(guard)), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    """Not every engine and font has other letters than ASCII's, so they are shown by number."""
    shown = (c if c.isascii() else f"<U+{ord(c):04X}>" for c in visible(text))
    return "".join(_LATEX.get(char, char) for char in "".join(shown))


def _one_line(text: str) -> str:
    return visible(text).encode("ascii", "replace").decode()


def _tex_rate(rate: Rate | None, *, bound: bool = False) -> str:
    if rate is None:
        return "--"
    low, high = (f"{100 * x:.1f}" for x in (rate.low, rate.high))
    mark = r"$\geq$\," if bound else ""
    return f"{mark}{100 * rate.value:.1f} ({low}--{high})"


@dataclass(frozen=True, slots=True)
class _JunitCase:
    """One test case; a server follows it from build to build by its group and name."""

    group: str
    """Kind of case."""
    name: str
    """Name without figures, which change."""
    told: str
    """What was found, with the figures."""
    ending: Literal["", "failure", "error", "skipped"] = ""
    """Element that says how it ended; empty if it passed."""


def to_junit(summary: Summary, outcomes: Sequence[GateOutcome] = ()) -> str:
    """A test suite as CI servers read it: validity, gates, guards on targets, and the verdict.

    A gate that does not hold is a failure and an invalid evaluation an error. What was not measured
    and a condition of the verdict that is not met are skipped: they are findings, and no faults of
    a build. It has no element or attribute that the strictest of these servers would refuse.
    """
    cases = list(_junit_cases(summary, outcomes))
    endings = Counter(case.ending for case in cases)
    counts = {
        "tests": str(len(cases)),
        "failures": str(endings["failure"]),
        "errors": str(endings["error"]),
    }
    root = ET.Element("testsuites", {"name": "tsgb", **counts})
    made = summary.provenance
    about = {
        "name": f"tsgb.{visible(summary.eval_id)}",
        **counts,
        "skipped": str(endings["skipped"]),
        "timestamp": made.created_at.replace(microsecond=0, tzinfo=None).isoformat(),
        "time": f"{made.wall_seconds or 0:.3f}",
    }
    suite = ET.SubElement(root, "testsuite", about)
    for case in cases:
        name = {"classname": f"tsgb.{case.group}", "name": visible(case.name), "time": "0"}
        element = ET.SubElement(suite, "testcase", name)
        if case.ending:
            ET.SubElement(element, case.ending, {"message": visible(case.told), "type": case.group})
        ET.SubElement(element, "system-out").text = visible(case.told)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _junit_cases(summary: Summary, outcomes: Sequence[GateOutcome]) -> Iterator[_JunitCase]:
    name = "enough items have an outcome"
    if summary.invalid:
        yield _JunitCase("validity", name, too_many_failed(summary.invalid), "error")
    else:
        yield _JunitCase("validity", name, "valid")
    for outcome in outcomes:
        yield _JunitCase("gate", outcome.name, str(outcome), "" if outcome.passed else "failure")
    for target in summary.targets:
        for guard in summary.guards:
            row = pooled(summary, guard, target.name)
            told = "; ".join(
                f"{wording.METRICS[metric]} {in_words(getattr(row, metric))}"
                for metric in _CASE_FIGURES
            )
            measured = row.asr is not None or row.adaptive_asr is not None
            ending = "" if measured else "skipped"
            yield _JunitCase("guard", f"{guard}[{target.name}]", told, ending)
    for condition in summary.verdict.conditions:
        name = condition.text.partition(": ")[0]
        yield _JunitCase("verdict", name, condition.text, "" if condition.met else "skipped")
