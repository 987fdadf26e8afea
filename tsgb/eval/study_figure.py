"""The figure of a study: what self-play gains, by what the first attacker knew.

Rows are figures and columns targets. Every training is a dot, beside its level so that none hides
another; the mean over all of them has its interval. Colours are those of `figures.py`, and worlds
also differ in shape, for a reader or a printer without colours.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from tsgb.data.characters import visible
from tsgb.eval.figures import INK, MUTED, STYLE, Canvas, colour, standalone, style, svg_of
from tsgb.eval.records import TargetRecord
from tsgb.eval.study_records import Gain, StudySummary
from tsgb.eval.wording import METRICS, signed_points

ROWS = ("adaptive_asr", "asr")
SHAPES = "os^vPX"
"""Markers of worlds."""
TINTS = ("selfplay", "sft", "oracle", "untrained", "frozen", "tfidf")
"""Guards whose colours stand for worlds."""
MEAN_SHAPE = "D"
SPREAD, STEP = 0.05, 0.011
"""Distance of a world's dots from their level, and of two dots from each other, in coverage."""
ACROSS = "coverage: share of the techniques that are not public which the first attacker knew"
LABEL = "What self-play gains over the frozen attacker, by coverage"


def gain_figure(study: StudySummary) -> Markup | None:
    """Return the figure in the colours of the page that it stands in; None without any gain."""
    targets = [t for t in study.targets if any(_gains(study, row, t.name) for row in ROWS)]
    rows = [row for row in ROWS if any(_gains(study, row, t.name) for t in targets)]
    if not targets:
        return None
    with style(STYLE | {"font.size": 9.5, "axes.titlesize": 10, "legend.fontsize": 9}):
        width = 1.2 + 2.35 * len(targets)
        figure: Canvas = Figure(figsize=(width, 0.95 + 2.2 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(targets), sharex=True, sharey="row", squeeze=False)
        for row, panels in zip(rows, grid, strict=True):
            for target, axes in zip(targets, panels, strict=True):
                _panel(axes, study, _gains(study, row, target.name))
            panels[0].set_ylabel(
                f"{METRICS[row]}: gain, points\n\u2191 self-play lets fewer through"
            )
        for target, axes in zip(targets, grid[0], strict=True):
            axes.set_title(_heading(target))
        figure.supxlabel(ACROSS, fontsize=9.5)
        _key(figure, grid[0][0], study)
        picture = svg_of(figure, LABEL, "gain")
    told = f"<title>{escape(LABEL)}</title><desc>{escape(description(study))}</desc>"
    head, end, rest = str(picture).partition(">")
    return Markup(f"{head}{end}{told}{rest}")  # noqa: S704 - its texts are escaped above


def gain_svg(study: StudySummary) -> str | None:
    """Return the figure as a document of its own, on white; None without any gain."""
    picture = gain_figure(study)
    if picture is None:
        return None
    head, end, rest = standalone(picture).partition(">")
    return f'{head}{end}<rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'


def description(study: StudySummary) -> str:
    """Return the means and intervals of the figure in words, for those who cannot see it."""
    sentences: list[str] = []
    for row in ROWS:
        for target in study.targets:
            told = "; ".join(
                f"at coverage {gain.coverage:g} {signed_points(gain.value)} points "
                f"({signed_points(gain.low)} to {signed_points(gain.high)})"
                for gain in _gains(study, row, target.name)
            )
            if told:
                sentences.append(f"{METRICS[row]} on {target.name}: {told}.")
    return visible(" ".join(["Gain, mean over trainings, with 95 % interval.", *sentences]))


def _gains(study: StudySummary, metric: str, target: str) -> list[Gain]:
    return [
        gain
        for gain in study.gains
        if (gain.metric, gain.target, gain.world) == (metric, target, None)
    ]


def _panel(axes: Canvas, study: StudySummary, gains: Sequence[Gain]) -> None:
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.axhline(0, color=MUTED, linewidth=1.1)
    axes.set_xticks(study.levels, [f"{level:g}" for level in study.levels])
    axes.set_xlim(study.levels[0] - 0.14, study.levels[-1] + 0.14)
    if not gains:
        axes.text(0.5, 0.5, "not measured", color=MUTED, ha="center", transform=axes.transAxes)
    for gain in gains:
        for index, world in enumerate(study.worlds):
            values = [
                unit.value
                for unit in sorted(gain.units, key=lambda unit: unit.seed)
                if unit.world == world.name
            ]
            places = _places(gain.coverage, index, len(study.worlds), len(values))
            axes.scatter(
                places,
                [100 * value for value in values],
                s=15,
                color=colour(TINTS[index % len(TINTS)]),
                marker=SHAPES[index % len(SHAPES)],
                alpha=0.75,
                linewidths=0,
                zorder=3,
            )
    axes.errorbar(
        [gain.coverage for gain in gains],
        [100 * gain.value for gain in gains],
        yerr=[
            [100 * (gain.value - gain.low) for gain in gains],
            [100 * (gain.high - gain.value) for gain in gains],
        ],
        color=INK,
        marker=MEAN_SHAPE,
        markersize=5,
        linewidth=0.9,
        elinewidth=1.6,
        capsize=3,
        zorder=4,
    )


def _places(level: float, index: int, num_worlds: int, num: int) -> list[float]:
    """Return where the dots of a world stand: beside the level, in the order of their seeds."""
    # The mean stands on the level itself.
    side = SPREAD if num_worlds == 1 else SPREAD * (2 * index / (num_worlds - 1) - 1)
    return [level + side + STEP * (place - (num - 1) / 2) for place in range(num)]


def _heading(target: TargetRecord) -> str:
    name = visible(target.name)
    if target.role == "surrogate":
        return f"{name}, the surrogate"
    if target.overlap is None:
        return name
    return f"{name}, overlap {target.overlap:.2g}"


def _key(figure: Canvas, axes: Canvas, study: StudySummary) -> None:
    """Put the legend above all panels."""
    for index, world in enumerate(study.worlds):
        axes.scatter(
            [],
            [],
            s=22,
            color=colour(TINTS[index % len(TINTS)]),
            marker=SHAPES[index % len(SHAPES)],
            label=f"a training in {visible(world.name)}",
        )
    axes.plot([], [], color=INK, marker=MEAN_SHAPE, markersize=5, label="mean, 95 % interval")
    figure.legend(loc="outside upper left", ncols=len(study.worlds) + 1, handlelength=1.4)
