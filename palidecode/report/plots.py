"""Plots as inline SVG with the page's font and colours.

matplotlib draws them: a plot takes 10 to 100 kB (plotly.js alone takes 4.8 MB), its text stays
text, and it needs no script, so the page can forbid all scripts but its own. matplotlib draws in
placeholder colours, which then become the page's CSS variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from palidecode.evaluation.coco.measures import Curve, ScoreFree

_FEW, _MOST_POINTS = 40, 600  # points of a line: that are marked, and in all

_INK, _MUTED, _LINE, _ACCENT, _WARM, _CARD = (f"#0{n}0{n}0{n}" for n in range(1, 7))
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    _ACCENT: "--accent",
    _WARM: "--warm",
    _CARD: "--card",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "palidecode",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": _MUTED,
    "axes.titlelocation": "left",
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "legend.labelcolor": _MUTED,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def curves_svg(curves: Sequence[Curve], name: str) -> Markup:
    """Plot precision over recall: the mean, then each class as ``<name>-curve-<n>``."""
    with _figure(4.6, 3.5) as (figure, out):
        axes = figure.add_subplot()
        for row, curve in enumerate(curves[1:]):
            (line,) = axes.plot(curve.recall, curve.precision, color=_MUTED, linewidth=0.8)
            line.set_alpha(0.3)
            line.set_gid(f"curve-{row}")
        for curve in curves[:1]:
            (line,) = axes.plot(curve.recall, curve.precision, color=_ACCENT, linewidth=2.4)
            line.set_gid("mean")
        _unit_axes(axes, "recall", "precision")
        _save(figure, out)
    return _inline(out, name, "Precision over recall")


def kinds_svg(kinds: Sequence[tuple[str, int, float | None]], name: str) -> Markup:
    """Plot the count of each kind of error, and the AP50 gained by fixing it."""
    gains = [gain for _, _, gain in kinds if gain is not None]
    with _figure(9.0 if gains else 6.0, 2.3) as (figure, out):
        columns = figure.subplots(1, 2 if gains else 1, sharey=True, squeeze=False)[0]
        positions = range(len(kinds))
        words = [word for word, _, _ in kinds]
        _bars(columns[0], positions, [count for _, count, _ in kinds], "{:,.0f}", _WARM)
        columns[0].set_title("count")
        columns[0].set_yticks(positions, words)
        columns[0].invert_yaxis()
        if gains:
            _bars(columns[1], positions, [gain or 0.0 for _, _, gain in kinds], "+{:.3f}", _ACCENT)
            columns[1].set_title("AP50 gained by fixing only this")
        for axes in columns:
            axes.tick_params(axis="y", length=0, labelcolor=_INK)
        _save(figure, out)
    return _inline(out, name, "Error kinds")


def calibration_svg(bins: Sequence[Mapping[str, float]], name: str) -> Markup:
    """Plot the share of right predictions over their score, and the counts of scores."""
    used = [part for part in bins if part["count"]]
    with _figure(4.6, 3.5) as (figure, out):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        x = [part["avg_confidence"] for part in used]
        y = [part["avg_accuracy"] for part in used]
        upper.vlines(x, x, y, color=_WARM, linewidth=5, alpha=0.3)
        upper.plot(x, y, color=_ACCENT, linewidth=1.6, marker="o", markersize=4.5)
        _unit_axes(upper, "", "share that is right")
        edges = [part["bin_lower"] for part in bins]
        counts = [part["count"] for part in bins]
        lower.bar(edges, counts, width=0.092, align="edge", color=_MUTED, alpha=0.6)
        lower.set_xlabel("score")
        lower.set_ylabel("predictions")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        lower.grid(False, axis="x")
        figure.align_ylabels()
        _save(figure, out)
    return _inline(out, name, "Calibration")


def f1_svg(score_free: ScoreFree, name: str) -> Markup:
    """Plot precision, recall and F1 over the IoU threshold."""
    with _figure(4.6, 3.5) as (figure, out):
        axes = figure.add_subplot()
        lines: tuple[tuple[str, Any, str, Any], ...] = (
            ("precision", score_free.precision, _MUTED, (0, (1, 1.5))),
            ("recall", score_free.recall, _MUTED, (0, (5, 2))),
            ("F1", score_free.f1, _ACCENT, "-"),
        )
        for word, values, color, style in lines:
            axes.plot(score_free.iou, values, color=color, linestyle=style, label=word)
        axes.set_ylim(0, 1.02)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_xlabel("IoU threshold")
        axes.legend(loc="lower left")
        _save(figure, out)
    return _inline(out, name, "F1 over the IoU threshold")


def sizes_svg(sizes: Sequence[dict[str, Any]], name: str) -> Markup:
    """Plot AP and AR of small, medium and large objects."""
    with _figure(4.6, 3.5) as (figure, out):
        axes = figure.add_subplot()
        for shift, key, color in ((-0.19, "AP", _ACCENT), (0.19, "AR", _MUTED)):
            for position, row in enumerate(sizes):
                known = row[key] is not None
                height = row[key] if known else 0.0
                axes.bar(
                    position + shift, height, 0.34, color=color, label=None if position else key
                )
                text = f"{height:.2f}" if known else "–"
                axes.text(position + shift, height + 0.02, text, ha="center", color=_MUTED)
        axes.set_xticks(range(len(sizes)), [row["size"] for row in sizes])
        axes.tick_params(axis="x", length=0, labelcolor=_INK)
        axes.set_ylim(0, 1.08)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(False, axis="x")
        axes.legend(loc="upper right", ncols=2, borderaxespad=0)
        _save(figure, out)
    return _inline(out, name, "AP and AR by size")


def steps_svg(
    steps: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    name: str,
    *,
    window: int | None = None,
) -> Markup:
    """Plot numbers over the steps of a training; `window` adds their mean over so many steps."""
    with _figure(4.6, 3.0) as (figure, out):
        axes = figure.add_subplot()
        for (label, values), color in zip(
            lines.items(), (_ACCENT, _WARM, _MUTED, _INK), strict=False
        ):
            if window is None:
                marker = "o" if len(steps) <= _FEW else None
                axes.plot(steps, values, color=color, linewidth=2, marker=marker, label=label)
                continue
            x, y = _thinned(steps, values, _MOST_POINTS)
            axes.plot(x, y, color=_MUTED, linewidth=0.8, alpha=0.5)
            x, y = _thinned(steps, values, max(1, len(values) // window))
            axes.plot(x, y, color=color, linewidth=2.2)
        axes.set_xlabel("step")
        axes.margins(y=0.1)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(lines) > 1:
            axes.legend(loc="lower right")
        _save(figure, out)
    return _inline(out, name, f"{name} over the steps")


def _thinned(
    steps: Sequence[float], values: Sequence[float], most: int
) -> tuple[list[float], list[float]]:
    """Return at most so many points, each the mean of neighbours."""
    parts = np.array_split(np.arange(len(values)), min(most, len(values)))
    x, y = np.asarray(steps, float), np.asarray(values, float)
    return [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]


def _bars(
    axes: Axes, positions: Sequence[int], values: Sequence[float], form: str, color: str
) -> None:
    axes.barh(positions, values, 0.62, color=color)
    largest = max(*values, 1e-9)
    for position, value in zip(positions, values, strict=True):
        axes.text(max(value, 0) + largest * 0.02, position, form.format(value), va="center")
    axes.set_xlim(min(0, *values), largest * 1.22)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(False, axis="y")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _unit_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel(x)
    axes.set_ylabel(y)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, io.StringIO]]:
    # No pyplot: it keeps figures alive, and may pick a backend that needs a screen.
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained"), io.StringIO()


def _save(figure: Figure, out: io.StringIO) -> None:
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)


def _inline(out: io.StringIO, name: str, title: str) -> Markup:
    """Strip the SVG of its file header and metadata, and apply the page's colours."""
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1 @>", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    text = re.sub(r"\n\s*", "\n", text)
    # Safe: no text in it comes from a file.
    return Markup(text.replace("@>", f'role="img" aria-label="{title}">', 1))
