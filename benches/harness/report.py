"""Figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .figures import Spread, known, rounded


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; cells are text."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def goals_table(goals: list[dict[str, Any]]) -> str:
    """Every goal, what was measured, and whether it was reached."""
    rows, before = [], None
    for goal in goals:
        work = goal["figure"] if goal["figure"] != before else ""
        before = goal["figure"]
        ours, theirs = _value(goal["ours"], goal["unit"]), _value(goal["theirs"], goal["unit"])
        rows.append([work, ours, theirs, measured(goal), goal["goal"], "yes" if goal["reached"] else "**no**"])
    return table(["work", "polyloop", "rival", "ratio, or value", "goal", "reached"], rows)


def figures_table(families: list[dict[str, Any]], samples: dict[str, Any]) -> str:
    """Every figure of every contestant."""
    rows = []
    for family in families:
        for figure in family["figures"]:
            for contestant, values in samples[family["name"]].get(figure["name"], {}).items():
                spread = Spread.of(known(values))
                if spread is not None:
                    rows.append([figure["name"], contestant, str(spread), figure["unit"]])
    return table(["work", "contestant", "median (lowest to highest round)", "unit"], rows)


def measured(goal: dict[str, Any]) -> str:
    """What the goal bounds: a ratio, or our value."""
    if goal["measured"] is None:
        return "failed"
    return f"{Spread(**goal['measured'])}" + (" x" if goal["against"] else f" {goal['unit']}")


def _value(spread: dict[str, float] | None, unit: str) -> str:
    return f"{rounded(spread['median'])} {unit}" if spread else ""
