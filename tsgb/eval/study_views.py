"""Tables and sentences of a study, for its page and for the terminal, without markup."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from tsgb.data.characters import visible
from tsgb.eval.evidence import AREAS, TARGET_METRICS
from tsgb.eval.records import Claim, Estimate
from tsgb.eval.study_claims import EVERYTHING, NOTHING
from tsgb.eval.study_evidence import ALONE
from tsgb.eval.study_records import Gain, LevelDiscovery, StudyFigure, StudySummary
from tsgb.eval.verdict import FROZEN, SELF_PLAY
from tsgb.eval.views import ABSENT, Sheet, TableCell, TableRow, rate_cell, unit_cell
from tsgb.eval.wording import METRICS, percent, signed_points, signed_unit, title

NAMES = METRICS | {
    "scripted_tpr": "reserved TPR",
    "auroc": "reserved AUROC",
    "pauroc": "reserved partial AUROC",
}
"""Names of figures in a study's tables."""
_NOTES = {
    "auroc": "against all benign",
    "pauroc": "FPR below 2 %, standardised",
    "scripted_tpr": "reserved techniques blocked",
    "fpr": "ordinary benign",
    "fpr_hard": "hard benign",
    "fpr_twins": "benign twins",
}


def plain_sentence(study: StudySummary) -> str:
    """Say in one sentence what was found, in words that need no page beside them."""
    verdicts = {claim.id: claim.verdict for claim in study.claims}
    opening = {
        "shown": "Self-play pays where the first attacker knows public techniques only",
        "not shown": "It is not shown that self-play pays, even where the first attacker knows "
        "public techniques only",
        "not measured": "Whether self-play pays was not measured in full",
    }[verdicts["P1"]]
    if verdicts["P1"] == "shown" and verdicts["P2"] == "shown":
        opening += ", and not measurably where it knows every technique"
    ends = dict.fromkeys((study.levels[0], study.levels[-1]))
    every = {level: _rates_at(study, level) for level in ends}
    rates = {level: by_target for level, by_target in every.items() if by_target}
    if not rates:
        return f"{opening}."
    parts: list[str] = []
    for level, by_target in rates.items():
        own, frozen = (mean(guard) for guard in zip(*by_target.values(), strict=True))
        shown = {NOTHING: "none", EVERYTHING: "all"}.get(level, f"{100 * level:g} %")
        told = f"at coverage {level:g}, where the first attacker was shown {shown} of the others"
        guards = (
            f"in {percent(own)} and {percent(frozen)}"
            if parts
            else f"fresh attackers get through the guard of self-play in {percent(own)} of their "
            f"attempts and through that of a frozen attacker in {percent(frozen)}"
        )
        parts.append(f"{guards} {told}")
    doubtful = any(
        study.gain("adaptive_asr", target, level) is None
        for level, by_target in rates.items()
        for target in by_target
    )
    among = "mean over targets, those in doubt included" if doubtful else "mean over targets"
    return f"{opening}: {', and '.join(parts)} ({among})."


def _rates_at(study: StudySummary, level: float) -> dict[str, tuple[float, float]]:
    """Return adaptive ASR of self-play and of frozen at a level, by target."""
    rates: dict[str, tuple[float, float]] = {}
    for target in study.targets:
        own, frozen = (
            study.figure(guard, "adaptive_asr", target.name, level) for guard in (SELF_PLAY, FROZEN)
        )
        if own is not None and frozen is not None:
            rates[target.name] = (own.rate.value, frozen.rate.value)
    return rates


def study_notes(study: StudySummary) -> list[str]:
    """Say what the study has, in sentences."""
    worlds = "; ".join(
        f"{world.name} with the seeds {', '.join(map(str, world.seeds))}" for world in study.worlds
    )
    levels = ", ".join(f"{level:g}" for level in study.levels)
    matched = sum(source.matched for source in study.sources)
    rate = (
        "Each guard is at the threshold at which it blocks the budgeted share of the benign "
        "prompts of the test, so that all are compared at one realised rate."
        if matched == len(study.sources)
        else f"In {matched} of {len(study.sources)} evaluations guards are at one realised "
        "false-positive rate; in the others at certified thresholds."
    )
    measured = (
        f"{study.env}: {worlds}. Levels of coverage: {levels}. A unit is one training, a seed in a "
        "world; figures are means over units, with 95 % intervals."
    )
    return [visible(measured), visible(rate)]


def gap_lines(study: StudySummary) -> list[str]:
    """Name what is missing and what is in doubt, a line each."""
    lines = [
        f"missing at coverage {gap.coverage:g}, {gap.world}: {gap.reason}" for gap in study.missing
    ]
    lines += [
        f"doubt at coverage {gap.coverage:g}, {gap.world}: {gap.reason}" for gap in study.left_out
    ]
    return [visible(line) for line in lines]


def study_claim_figure(claim: Claim) -> TableCell:
    """Return a claim's figure in its own unit."""
    if claim.figure is None:
        return ABSENT
    ends = [x for x in (claim.low, claim.high) if x is not None]
    if claim.id == "P3":
        return TableCell(percent(claim.figure), " to ".join(percent(x) for x in ends))
    unit = "points per unit of coverage" if claim.id == "P2" else "points"
    return TableCell(
        f"{signed_points(claim.figure)} {unit}", " to ".join(signed_points(x) for x in ends)
    )


def claims_sheet(study: StudySummary) -> Sheet:
    """Claims with their figures and verdicts."""
    rows = [
        TableRow(
            claim.id,
            f"{claim.id}: {claim.statement}",
            [study_claim_figure(claim), TableCell(claim.verdict, claim.note)],
        )
        for claim in study.claims
    ]
    return Sheet("Claims", [("Figure", "95 % interval"), ("Verdict", "")], rows)


def gains_sheet(study: StudySummary, world: str | None = None) -> Sheet:
    """Gains of self-play over the frozen attacker, a row for each figure and a column a level.

    Args:
        study: The study.
        world: Name of a world; None for the units of all.
    """
    where = f", {world}" if world else ""
    return Sheet(
        f"Gain of self-play over the frozen attacker{where}",
        [(f"Coverage {level:g}", "95 % interval") for level in study.levels],
        _gain_rows([gain for gain in study.gains if gain.world == world], study.levels),
    )


def _gain_rows(gains: Sequence[Gain], levels: Sequence[float]) -> list[TableRow]:
    found = {(gain.metric, gain.target, gain.coverage): gain for gain in gains}
    return [
        TableRow(
            metric,
            visible(f"{NAMES.get(metric, metric)}{f' on {target}' if target else ''}"),
            [_gain_cell(found.get((metric, target, level))) for level in levels],
        )
        for metric, target in dict.fromkeys((gain.metric, gain.target) for gain in gains)
    ]


def _gain_cell(gain: Gain | None) -> TableCell:
    if gain is None:
        return ABSENT
    signed = signed_unit if gain.metric in AREAS else signed_points
    num = len(gain.units)
    units = f"{num} unit{'' if num == 1 else 's'}"
    ends = f"{signed(gain.low)} to {signed(gain.high)}; {units}"
    return TableCell(signed(gain.value), ends, grey=not gain.differs)


def figures_sheet(study: StudySummary, level: float, world: str | None = None) -> Sheet:
    """Every guard's figures at one level.

    Args:
        study: The study.
        level: Level of coverage.
        world: Name of a world; None for the units of all.
    """
    here = [f for f in study.figures if (f.coverage, f.world) == (level, world)]
    found = {(f.guard, f.metric, f.target): f for f in here}
    asked: list[tuple[str, str | None]] = [
        (metric, target.name) for metric in TARGET_METRICS for target in study.targets
    ]
    asked += [(metric, None) for metric in ALONE]
    shown = [key for key in asked if any((f.metric, f.target) == key for f in here)]
    columns = [
        (NAMES.get(metric, metric), visible(target) if target else _NOTES.get(metric, ""))
        for metric, target in shown
    ]
    rows = [
        TableRow(
            guard,
            title(guard),
            [_figure_cell(found.get((guard, metric, target))) for metric, target in shown],
        )
        for guard in study.guards
        if any(f.guard == guard for f in here)
    ]
    where = f", {world}" if world else ""
    return Sheet(f"Coverage {level:g}{where}", columns, rows)


def _figure_cell(figure: StudyFigure | None) -> TableCell:
    if figure is None:
        return ABSENT
    cell = unit_cell if figure.metric in AREAS else rate_cell
    return cell(figure.rate)


def discovery_sheet(study: StudySummary) -> Sheet:
    """Techniques known and found, and what guards blocked of them before and after."""
    columns = [
        ("Known", "techniques shown"),
        ("Warm-up", "more that it uses"),
        ("Found later", "by an attacker of a round"),
        ("By round", "mean number, in order"),
        ("Blocked before", "the round that first shows it"),
        ("Blocked after", "that round"),
        ("Change", "points"),
        ("Others", "not shown by then, points"),
    ]
    rows = [
        TableRow(
            row.arm,
            f"{title(row.arm)}, coverage {row.coverage:g}",
            _discovery_cells(row),
        )
        for row in study.discovery
    ]
    return Sheet("Discovery", columns, rows)


def _discovery_cells(row: LevelDiscovery) -> list[TableCell]:
    rounds = " / ".join(f"{num:.1f}" for num in row.by_round.values())
    about = f"{row.prompts} verdicts, {row.finders} of {row.units} trainings"
    return [
        _count_cell(row.known),
        _count_cell(row.warm_up),
        _count_cell(row.later),
        TableCell(rounds) if rounds else ABSENT,
        ABSENT if row.before is None else TableCell(percent(row.before), about),
        ABSENT if row.after is None else TableCell(percent(row.after), about),
        _change_cell(row.change),
        _change_cell(row.others),
    ]


def _count_cell(count: Estimate) -> TableCell:
    if count.low is None or count.high is None or count.low == count.high:
        return TableCell(f"{count.value:.1f}")
    return TableCell(f"{count.value:.1f}", f"{max(0.0, count.low):.1f} to {count.high:.1f}")


def _change_cell(change: Estimate | None) -> TableCell:
    if change is None:
        return ABSENT
    if change.low is None or change.high is None:
        return TableCell(signed_points(change.value), "one unit")
    ends = f"{signed_points(change.low)} to {signed_points(change.high)}"
    return TableCell(signed_points(change.value), ends)


def parts_sheet(study: StudySummary) -> Sheet:
    """Gains over arms that differ in one part, a row for each pair."""
    asked = dict.fromkeys((gain.metric, gain.target) for gain in study.parts)
    found = {(g.guard, g.versus, g.coverage, g.metric): g for g in study.parts}
    pairs = dict.fromkeys((g.guard, g.versus, g.coverage) for g in study.parts)
    rows = [
        TableRow(
            versus,
            f"{title(guard)} over {title(versus)}, coverage {level:g}",
            [_gain_cell(found.get((guard, versus, level, metric))) for metric, _ in asked],
        )
        for guard, versus, level in pairs
    ]
    columns = [
        (NAMES.get(metric, metric), visible(target) if target else _NOTES.get(metric, ""))
        for metric, target in asked
    ]
    return Sheet("Parts of self-play", columns, rows)
