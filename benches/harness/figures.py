"""What is measured, what it should reach, and whether it does. Pure: samples in, verdicts out.

A sample belongs to a round. Ratios are taken within a round, so that a slow minute of the machine divides out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

OURS = "polyloop"

# By family, figure and contestant: one value a round, None where the turn failed.
Samples = dict[str, dict[str, dict[str, list[float | None]]]]


class Better(Enum):
    """Which way a figure gets better."""

    MORE = "more"
    LESS = "less"


@dataclass(frozen=True)
class Goal:
    """A bound for our figure: absolute, or as a multiple of a contestant's figure in the same round.

    Parameters:
        bound: the number, in the figure's unit or as a multiple.
        against: the contestant; None for an absolute bound.
        of: that contestant's figure, if it is another one.
        note: what the bound stands for.
    """

    bound: float
    against: str | None = None
    of: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure that contestants are compared by."""

    name: str
    unit: str
    better: Better
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Family:
    """Figures that are taken together, and who takes them: each contestant gives a value for some or all of them."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    contestants: Mapping[str, Callable[[], Mapping[str, float]]]


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        return cls(statistics.median(values), min(values), max(values)) if values else None

    def __str__(self) -> str:
        return f"{rounded(self.median)} ({rounded(self.low)} to {rounded(self.high)})"


@dataclass(frozen=True)
class Verdict:
    """One goal of one figure, and how it stands. `measured` is what the goal bounds: our value, or its ratio."""

    family: str
    figure: str
    unit: str
    better: str
    bound: float
    against: str | None
    note: str
    ours: Spread | None
    theirs: Spread | None
    measured: Spread | None

    @property
    def reached(self) -> bool:
        if self.measured is None:
            return False
        more = self.better == Better.MORE.value
        return self.measured.median >= self.bound if more else self.measured.median <= self.bound

    @property
    def goal(self) -> str:
        """The bound in words."""
        sign = ">=" if self.better == Better.MORE.value else "<="
        words = f"{sign} {rounded(self.bound)} " + (f"x {self.against}" if self.against else self.unit)
        return f"{words} ({self.note})" if self.note else words

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached, "goal": self.goal}


def verdicts(families: list[Family], samples: Samples) -> list[Verdict]:
    """Every goal of these families, in their order."""
    return [
        _verdict(family, figure, goal, samples.get(family.name, {}))
        for family in families
        for figure in family.figures
        for goal in figure.goals
    ]


def _verdict(family: Family, figure: Figure, goal: Goal, taken: dict[str, dict[str, list[float | None]]]) -> Verdict:
    ours = taken.get(figure.name, {}).get(OURS, [])
    theirs = taken.get(goal.of or figure.name, {}).get(goal.against, []) if goal.against else []
    measured = ratios(ours, theirs) if goal.against else known(ours)
    return Verdict(
        family.name,
        figure.name,
        figure.unit,
        figure.better.value,
        goal.bound,
        goal.against,
        goal.note,
        Spread.of(known(ours)),
        Spread.of(known(theirs)),
        Spread.of(measured),
    )


def ratios(ours: list[float | None], theirs: list[float | None]) -> list[float]:
    """Ours over theirs, for each round that has both."""
    return [our / their for our, their in zip(ours, theirs, strict=False) if our is not None and their]


def known(values: list[float | None]) -> list[float]:
    """The rounds that gave a value."""
    return [value for value in values if value is not None]


def rounded(value: float) -> str:
    """Three digits that matter."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
