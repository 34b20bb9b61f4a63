"""Plots as SVG, by matplotlib. Imported by who draws, so that figures can be taken without it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from .figures import OURS, rounded

REACHED, MISSED, REFERENCE = "#2a7f62", "#c8553d", "#555555"
RIVAL_COLOURS = ("#c8553d", "#4a6fa5", "#8c6bb1", "#b8860b")
FARTHEST = 100.0  # where bars end, also of what has no ratio
PANELS_IN_ROW = 2
CAPTION_WIDTH = 120

# The same figures give the same bytes.
pyplot.rcParams.update({"svg.hashsalt": "polyloop", "svg.fonttype": "none", "font.size": 9})


def goals_plot(goals: list[dict[str, Any]], caption: str, path: Path) -> None:
    """A bar for each goal: how far beyond it, or short of it, on a scale of ratios."""
    scores = [score(goal) for goal in goals]
    colours = [REACHED if goal["reached"] else MISSED for goal in goals]
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(goals) + 1.6), layout="constrained")
    axes.barh(range(len(goals)), [value - 1 for value in scores], left=1, color=colours, height=0.65)
    for place, (goal, value) in enumerate(zip(goals, scores, strict=True)):
        side = "left" if goal["reached"] else "right"
        axes.annotate(
            _measured(goal),
            (value, place),
            (4 if side == "left" else -4, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.axvline(1, color=REFERENCE, linewidth=1)
    axes.set_yticks(range(len(goals)), [_label(goal) for goal in goals])
    axes.invert_yaxis()
    axes.set_xlabel("times the goal: right of the line is better than the goal")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, caption, path)


def score(goal: dict[str, Any]) -> float:
    """How many times the goal: 1 is just reached, 2 twice as good, a half half-way."""
    measured, bound = goal["measured"], float(goal["bound"])
    if measured is None:
        return 1 / FARTHEST
    value = float(measured["median"])
    better, worse = (value, bound) if goal["better"] == "more" else (bound, value)
    if worse == 0:
        return FARTHEST if better else 1.0
    return min(max(better / worse, 1 / FARTHEST), FARTHEST)


def curves_plot(curves: list[dict[str, Any]], caption: str, path: Path) -> None:
    """A panel for each curve: a line for each contestant, on logarithmic scales."""
    rows = -(-len(curves) // PANELS_IN_ROW)
    figure, panels = pyplot.subplots(
        rows, PANELS_IN_ROW, figsize=(4.8 * PANELS_IN_ROW, 3.8 * rows), layout="constrained", squeeze=False
    )
    for axes, curve in zip(panels.flat, curves, strict=False):
        _draw_curve(axes, curve["lines"])
        axes.set_title(curve["title"], fontsize=10)
        axes.set_xlabel(curve["x"])
        axes.set_ylabel(curve["unit"])
        axes.set_xscale("log", base=curve["base"])
        axes.set_yscale("log")
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
        axes.legend(frameon=False, fontsize=7)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    _save(figure, caption, path)


def _draw_curve(axes: Any, lines: Mapping[str, list[tuple[float, float, float, float]]]) -> None:
    """Each point is x, median, lowest and highest round."""
    colours = iter(RIVAL_COLOURS)
    for name, points in lines.items():
        colour = REACHED if name == OURS else next(colours)
        x, median, low, high = zip(*points, strict=True)
        axes.plot(
            x,
            median,
            marker="o",
            markersize=3.5,
            linewidth=1.8 if name == OURS else 1.1,
            color=colour,
            label=name,
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _label(goal: dict[str, Any]) -> str:
    return str(goal["figure"]) + ": " + str(goal["goal"]).partition(" (")[0]


def _measured(goal: dict[str, Any]) -> str:
    if goal["measured"] is None:
        return "failed"
    return rounded(goal["measured"]["median"]) + (" x" if goal["against"] else f" {goal['unit']}")


def _save(figure: Any, caption: str, path: Path) -> None:
    figure.supxlabel("\n".join(textwrap.wrap(caption, CAPTION_WIDTH)), fontsize=6.5, color=REFERENCE)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    # matplotlib ends lines of paths with blanks.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
