"""Figures of the report, as SVG that takes its colours from the page.

Drawn small, so that text stays readable on a narrow screen; the page lays several side by side.
Placeholder colours become CSS variables, hence one picture serves light and dark.
"""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from tsgb.data.characters import visible
from tsgb.eval.records import Curve, Rate, Roc, Summary
from tsgb.eval.wording import title

Canvas = Any
"""A figure or its axes: matplotlib leaves the types of their arguments partly unknown."""

INK, MUTED, LINE = "#010203", "#040506", "#070809"
PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
SERIES = ("none", "sft", "frozen", "selfplay", "tfidf", "untrained", "oracle")
MARKERS = "osD^vPX"
LIGHT = {
    "ink": "#1c1f23",
    "muted": "#5b6470",
    "line": "#dcdfe3",
    "s0": "#6d7681",
    "s1": "#b26a00",
    "s2": "#c2410c",
    "s3": "#0b6bb8",
    "s4": "#7c4dbd",
    "s5": "#8d8575",
    "s6": "#1a7f4b",
    "s7": "#a6336d",
}
"""Colours of pictures by daylight, by the page's variable; one that stands in no page has them."""
LEARNED = ("asr", "fpr", "fnr")
"""Series that say whether a guard learns."""
MAIN_GUARDS = ("none", "sft", "frozen", "selfplay")
MAX_CURVES = 10
MAX_TITLE = 80
"""Characters of the name of a series that are shown."""
SIZE = (4.4, 2.9)
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "font.size": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
}


def style(settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Matplotlib's settings are global: they hold inside the block only."""
    rc: Any = mpl.rc_context  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return rc(settings)


def colour(guard: str) -> str:
    """Placeholder of a guard's colour; guards without a colour of their own share the last one."""
    index = SERIES.index(guard) if guard in SERIES else len(SERIES)
    return f"#0a0b{index:02x}"


def css_colour(guard: str) -> str:
    """The CSS variable behind `colour`."""
    return f"var(--s{SERIES.index(guard) if guard in SERIES else len(SERIES)})"


def transfer(summary: Summary) -> Markup | None:
    """Adaptive ASR on each target, in the order of its overlap with the surrogate."""
    targets = sorted(
        summary.targets,
        key=lambda t: (-1.0 if t.overlap is None else t.overlap, t.role == "surrogate"),
    )
    guards = [g for g in MAIN_GUARDS if _points(summary, g, "adaptive_asr")]
    if not guards or not targets:
        return None
    with style(STYLE):
        figure, axes = _axes()
        for index, guard in enumerate(guards):
            shift = 0.16 * (index - (len(guards) - 1) / 2)
            for x, target in enumerate(targets):
                _dots(
                    axes,
                    x + shift,
                    _rate(summary, guard, "adaptive_asr", target.name),
                    _seeds(summary, guard, "adaptive_asr", target.name),
                    guard,
                )
            _handle(axes, guard)
        axes.set_xticks(
            range(len(targets)),
            [
                f"{visible(t.name)}\n{'?' if t.overlap is None else f'{t.overlap:.2g}'}"
                + ("\nsurrogate" if t.role == "surrogate" else "")
                for t in targets
            ],
        )
        axes.set_xlim(-0.5, len(targets) - 0.5)
        axes.set_xlabel("target, and its overlap with the surrogate's weaknesses")
        axes.set_ylabel("adaptive ASR")
        _percent(axes, "y")
        _legend(axes)
        return svg_of(figure, "Adaptive attack success rate by target", "transfer")


def guards_alone(summary: Summary) -> Markup | None:
    """Held-out TPR and hard-benign FPR of every guard, with every seed."""
    guards = [g for g in summary.guards if _points(summary, g, "scripted_tpr")]
    if not guards:
        return None
    target = summary.targets[0].name
    with style(STYLE):
        figure: Canvas = Figure(figsize=(SIZE[0], 0.75 + 0.3 * len(guards)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        metrics = (("scripted_tpr", "held-out TPR"), ("fpr_hard", "hard-benign FPR"))
        for axes, (metric, label) in zip(panels, metrics, strict=True):
            for y, guard in enumerate(guards):
                pooled = _rate(summary, guard, metric, target)
                seeds = _seeds(summary, guard, metric, target)
                _dots(axes, y, pooled, seeds, guard, across=True)
            axes.set_xlabel(label)
            axes.grid(visible=True, axis="x")
            axes.set_ylim(len(guards) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            _percent(axes, "x", full=metric == "scripted_tpr")
        panels[0].set_yticks(range(len(guards)), [_name(g) for g in guards])
        return svg_of(figure, "Held-out true-positive rate and hard-benign FPR by guard", "alone")


def roc(summary: Summary) -> Markup | None:
    """ROC on reserved techniques, with the operating point and its interval."""
    curves = [c for c in summary.roc if c.guard in SERIES and c.guard != "oracle"]
    if not curves:
        return None
    with style(STYLE):
        figure, axes = _axes()
        for curve in curves:
            _roc_curve(axes, curve)
        axes.set_xscale("log")
        axes.set_xlim(8e-4, 1.02)
        axes.set_xticks([0.001, 0.01, 0.1, 1.0], ["0.1 %", "1 %", "10 %", "100 %"])
        axes.minorticks_off()
        axes.axvline(0.01, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_xlabel("FPR over all benign streams")
        axes.set_ylabel("TPR, reserved techniques")
        _percent(axes, "y")
        _legend(axes)
        return svg_of(figure, "ROC on reserved techniques with operating points", "roc")


def training(curves: Sequence[Curve]) -> list[Markup]:
    """One small picture a series: every seed thin, the mean over seeds bold."""
    names: dict[str, None] = {}
    for curve in curves:
        for point in curve.points:
            names.update(dict.fromkeys(k for k in point if k != "step"))
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    chosen = list(names)[:MAX_CURVES]
    return [
        _training_figure(curves, arms, name, f"training-{index}")
        for index, name in enumerate(chosen)
    ]


def learning(curves: Sequence[Curve]) -> Markup | None:
    """ASR, FPR and FNR of every arm over its updates; None before there is any."""
    names = [n for n in LEARNED if any(n in point for c in curves for point in c.points)]
    if not names:
        return None
    with style(STYLE):
        figure: Canvas = Figure(figsize=(3.2 * len(names), 2.6), layout="constrained")
        for index, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), index + 1)
            axes.grid(visible=True, axis="y")
            for curve in curves:
                points = [(p["step"], p[name]) for p in curve.points if name in p]
                if points:
                    label = _name(curve.arm) if index == 0 else None
                    axes.plot(*zip(*points, strict=True), color=colour(curve.arm), label=label)
            axes.set_title(name.upper())
            axes.set_xlabel("update")
            _percent(axes, "y")
            if index == 0:
                _legend(axes)
        return svg_of(figure, "ASR, FPR and FNR while training", "learning")


def standalone(picture: Markup) -> str:
    """Return a picture as a document, in colours of its own, for a page that is not ours."""
    text = str(picture).replace("currentColor", LIGHT["ink"])
    for name, tint in LIGHT.items():
        text = text.replace(f"var(--{name})", tint)
    found = re.search(r'viewBox="([^"]*)"', text)
    assert found is not None
    _, _, width, height = found[1].split()
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * float(width):.0f}" '
        f'height="{2 * float(height):.0f}" font-family="sans-serif" '
        f'style="background:white" '
    )
    return text.replace("<svg ", head, 1)


def data_url(picture: Markup) -> str:
    """Return the same as a `data:` URL."""
    return f"data:image/svg+xml;base64,{b64encode(standalone(picture).encode()).decode()}"


def _training_figure(curves: Sequence[Curve], arms: Sequence[str], name: str, salt: str) -> Markup:
    with style(STYLE):
        figure, axes = _axes((3.4, 2.2))
        for arm in arms:
            series = [
                {p["step"]: p[name] for p in c.points if name in p} for c in curves if c.arm == arm
            ]
            series = [s for s in series if s]
            for one in series:
                axes.plot(
                    list(one), list(one.values()), color=colour(arm), linewidth=0.7, alpha=0.4
                )
            mean = _mean_series(series)
            if mean:
                axes.plot(list(mean), list(mean.values()), color=colour(arm), label=_name(arm))
        axes.set_title(visible(name.replace("_", " "), MAX_TITLE))
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        _legend(axes)
        return svg_of(figure, f"Training series {visible(name, MAX_TITLE)}", salt)


def _mean_series(series: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Mean at the steps that all seeds have."""
    if not series:
        return {}
    common = sorted(set(series[0]).intersection(*series[1:]))
    return {step: float(np.mean([one[step] for one in series])) for step in common}


def _roc_curve(axes: Canvas, curve: Roc) -> None:
    grid = np.maximum(curve.fpr, 8e-4)
    tint = colour(curve.guard)
    if curve.seed is not None:
        axes.plot(grid, curve.tpr, color=tint, linewidth=0.6, alpha=0.35)
        return
    axes.plot(grid, curve.tpr, color=tint)
    _handle(axes, curve.guard)
    x, y = curve.operating_fpr, curve.operating_tpr
    axes.errorbar(
        max(x.value, 9e-4),
        y.value,
        xerr=[[max(0.0, max(x.value, 9e-4) - max(x.low, 9e-4))], [max(0.0, x.high - x.value)]],
        yerr=[[y.value - y.low], [y.high - y.value]],
        color=tint,
        marker=_marker(curve.guard),
        markersize=6,
        elinewidth=1.4,
        zorder=5,
    )


def _dots(
    axes: Canvas,
    at: float,
    pooled: Rate | None,
    seeds: Sequence[float],
    guard: str,
    *,
    across: bool = False,
) -> None:
    """Every seed a dot, the pooled figure a marker with its interval as a bar."""
    tint = colour(guard)
    spread = at + np.linspace(-0.05, 0.05, len(seeds)) if len(seeds) > 1 else [at]
    if seeds:
        x, y = (seeds, spread) if across else (spread, seeds)
        axes.scatter(x, y, s=7, color=tint, alpha=0.45, linewidths=0, zorder=3)
    if pooled is None:
        return
    bar = [[pooled.value - pooled.low], [pooled.high - pooled.value]]
    axes.errorbar(
        pooled.value if across else at,
        at if across else pooled.value,
        xerr=bar if across else None,
        yerr=None if across else bar,
        color=tint,
        marker=_marker(guard),
        markersize=5,
        elinewidth=1.6,
        zorder=4,
    )


def _handle(axes: Canvas, guard: str) -> None:
    axes.plot([], [], color=colour(guard), marker=_marker(guard), markersize=5, label=_name(guard))


def _name(guard: str, most: int = 22) -> str:
    """A title that leaves room for the axes."""
    name = title(guard)
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"


def _marker(guard: str) -> str:
    return MARKERS[SERIES.index(guard)] if guard in SERIES else "*"


def _axes(size: tuple[float, float] = SIZE) -> tuple[Canvas, Canvas]:
    figure: Canvas = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _percent(axes: Canvas, which: str, *, full: bool = True) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(_percent_tick)
    if full:
        ticks = np.linspace(0, 1, 5 if which == "y" else 3)
        (axes.set_yticks if which == "y" else axes.set_xticks)(ticks)
        (axes.set_ylim if which == "y" else axes.set_xlim)(-0.03, 1.03)
    else:
        axes.set_xlim(left=0)


def _percent_tick(value: float, _: int) -> str:
    return f"{100 * value:.3g} %"


def _legend(axes: Canvas) -> None:
    _, labels = axes.get_legend_handles_labels()
    if labels:
        axes.figure.legend(loc="outside upper left", ncols=min(4, len(labels)), handlelength=1.6)


def _rate(summary: Summary, guard: str, metric: str, target: str) -> Rate | None:
    for row in summary.results:
        if (row.guard, row.target, row.seed) == (guard, target, None):
            return getattr(row, metric)
    return None


def _seeds(summary: Summary, guard: str, metric: str, target: str) -> list[float]:
    rates = [
        getattr(row, metric)
        for row in summary.results
        if (row.guard, row.target) == (guard, target) and row.seed is not None
    ]
    return [rate.value for rate in rates if rate is not None]


def _points(summary: Summary, guard: str, metric: str) -> bool:
    return any(getattr(r, metric) is not None for r in summary.results if r.guard == guard)


def svg_of(figure: Canvas, label: str, salt: str) -> Markup:
    """Serialise, then leave only what a page needs: no header, no metadata, no unused ids."""
    buffer = io.StringIO()
    with style({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{salt}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{salt}-\g<2>", text)
    text = re.sub(r"font(-family)?: (\d[\d.]*px )?'DejaVu Sans'[^;\"]*", _font, text)
    for placeholder, css in PAGE_COLOURS.items():
        text = text.replace(placeholder, css)
    text = re.sub(r"#0a0b(0\d)", lambda m: f"var(--s{int(m[1], 16)})", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(label)}"', 1))  # noqa: S704


def _font(match: re.Match[str]) -> str:
    """Keep the size, take the family from the page."""
    return f"font-size: {match[2].strip()}" if match[2] else "font-family: inherit"
