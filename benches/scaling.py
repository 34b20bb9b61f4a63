"""How cost grows: with items, with workers, with the size of what is sent. `make bench-scaling` runs it.

Turns as in `bench`; each gives the points of one contestant on one curve. Keeps the plot, the points and a page as
benches/results/<date>-scaling-<python>.{svg,json,md}.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness import machine, results
from harness.figures import Samples, Spread, known, rounded
from harness.report import table
from harness.turns import run_rounds
from rows.growth import CURVES

BENCH = "scaling"
ROUNDS = 5
FAMILIES = [curve.family for curve in CURVES]


def main() -> int:
    options = parse_arguments()
    families = [family for family in FAMILIES if not options.curve or family.name in options.curve]
    facts = machine.facts()
    samples, failures = run_rounds(BENCH, families, options.rounds, None)
    drawn = [curve for curve in CURVES if curve.family in families]
    result: dict[str, Any] = {
        "machine": facts,
        "rounds": options.rounds,
        "curves": [
            {
                "name": curve.family.name,
                "title": curve.family.title,
                "x": curve.x,
                "base": curve.base,
                "unit": curve.unit,
                "lines": lines(samples, curve.family.name),
            }
            for curve in drawn
        ],
        "failures": failures,
    }
    text = page(result)
    print("\n" + text)
    if not options.curve:
        keep(result, text)
    return 1 if failures else 0


def lines(samples: Samples, curve: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """By contestant: x, median, lowest and highest round."""
    by_contestant: dict[str, list[tuple[float, float, float, float]]] = {}
    for x, taken in samples[curve].items():
        for contestant, values in taken.items():
            spread = Spread.of(known(values))
            if spread is not None:
                by_contestant.setdefault(contestant, []).append((float(x), spread.median, spread.low, spread.high))
    return {name: sorted(points) for name, points in by_contestant.items()}


def page(result: dict[str, Any]) -> str:
    """The run as a page: a table for each curve."""
    parts = [
        f"# How cost grows, {result['machine']['taken_at'][:10]}",
        f"Medians of {result['rounds']} rounds; the lowest and the highest are in the .json file beside this.",
        *(f"{curve['title']}, {curve['unit']}:\n\n{curve_table(curve)}" for curve in result["curves"]),
        machine.described(result["machine"]),
        *(f"Failed: {failure}" for failure in result["failures"]),
    ]
    return "\n\n".join(parts) + "\n"


def curve_table(curve: dict[str, Any]) -> str:
    """A row for each contestant, a column for each point."""
    points = sorted({point[0] for line in curve["lines"].values() for point in line})
    rows = []
    for name, line in curve["lines"].items():
        medians = {x: rounded(median) for x, median, _, _ in line}
        rows.append([name, *(medians.get(x, "") for x in points)])
    return table([curve["x"], *(f"{x:,.0f}" for x in points)], rows)


def keep(result: dict[str, Any], text: str) -> None:
    """Write the three files."""
    from harness import plots

    path = results.store(result, BENCH)
    path.with_suffix(".md").write_text(text)
    plots.curves_plot(result["curves"], machine.described(result["machine"]), path.with_suffix(".svg"))
    print(f"kept as {path.relative_to(Path.cwd())}, .md and .svg")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [family.name for family in FAMILIES]
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--curve", action="append", choices=names, help="these only; keeps no files")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
