"""Puts the last results into docs/performance.md: whatever stands there between `figures` and `/figures`.

The text around is written by hand, and has no figures of its own. `make performance-page` runs it; `--check` only says
whether the page is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import instructions
import profile_items
import scaling
from harness import machine, report, results

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
SECTION = re.compile(r"(<!-- figures: ([a-z-]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


def goals() -> str:
    """The table of goals and its plot."""
    return of_last(
        bench.BENCH,
        "make bench",
        lambda run: "\n\n".join(
            [
                f"{sum(goal['reached'] for goal in run['goals'])} of {len(run['goals'])} goals reached.",
                report.goals_table(run["goals"]),
                f"![Each goal, and how far beyond it or short of it polyloop is]({plot_of(run, bench.BENCH)})",
                machine.described(run["machine"]),
            ]
        ),
    )


def missed() -> str:
    """The goals that were not reached."""
    return of_last(bench.BENCH, "make bench", lambda run: missed_list(run["goals"]))


def missed_list(found: list[dict[str, Any]]) -> str:
    lines = [
        f"- {goal['figure']}, {goal['goal']}: "
        + (report.measured(goal) if goal["measured"] else "it could not be measured")
        for goal in found
        if not goal["reached"]
    ]
    return "\n".join(lines) or "All goals are reached."


def everything() -> str:
    """Every figure of every contestant."""
    return of_last(bench.BENCH, "make bench", lambda run: report.figures_table(run["families"], run["samples"]))


def growth() -> str:
    """The curves."""
    return of_last(
        scaling.BENCH,
        "make bench-scaling",
        lambda run: "\n\n".join(
            [
                f"![Rates, starts and round trips over items, workers and bytes]({plot_of(run, scaling.BENCH)})",
                *(f"{curve['title']}, {curve['unit']}:\n\n{scaling.curve_table(curve)}" for curve in run["curves"]),
                machine.described(run["machine"]),
            ]
        ),
    )


def profile() -> str:
    """Where the time goes, by part and by function."""
    return of_last(
        profile_items.BENCH,
        "make profile",
        lambda run: "\n\n".join(
            [profile_items.described(found) for found in run["profiles"]]
            + [profile_items.functions_table(found) for found in run["profiles"]]
            + [machine.described(run["machine"])]
        ),
    )


def instruction_counts() -> str:
    """The baselines: what each path may cost, less the tolerance."""
    baseline = json.loads(instructions.BASELINE.read_text())
    rows = [
        [path if part == "all" else "", part, f"{count:,}"]
        for path, parts in baseline["counts"].items()
        for part, count in parts.items()
    ]
    tools = ", ".join(f"{name} {number}" for name, number in baseline["toolchain"].items())
    tolerances = f"{instructions.ENGINE_TOLERANCE:.0%} for the engine, {instructions.PYTHON_TOLERANCE:.0%} with Python"
    head = ["path", "part", "instructions an item"]
    return f"{report.table(head, rows)}\n\nTolerance: {tolerances}. Baselines taken with {tools}."


SECTIONS: dict[str, Callable[[], str]] = {
    "goals": goals,
    "missed": missed,
    "everything": everything,
    "profile": profile,
    "growth": growth,
    "instructions": instruction_counts,
}


def of_last(name: str, target: str, text: Callable[[dict[str, Any]], str]) -> str:
    """The text of the last run that is kept."""
    run = results.latest(name)
    return text(run) if run is not None else f"No run is kept yet: `{target}`."


def plot_of(run: dict[str, Any], name: str) -> str:
    """The plot's address, from the page."""
    return f"../benches/results/{results.stem(run['machine'], name)}.svg"


def filled(page: str) -> str:
    """The page with the sections of today.

    Raises:
        KeyError: the page names a section that there is not.
    """
    return SECTION.sub(lambda found: f"{found[1]}{SECTIONS[found[2]]()}\n{found[3]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    options = parser.parse_args()
    page = PAGE.read_text()
    text = filled(page)
    if options.check:
        if text != page:
            print("docs/performance.md is not what the results say: make performance-page", file=sys.stderr)
        return int(text != page)
    PAGE.write_text(text)
    print(f"{PAGE.relative_to(PAGE.parent.parent)} has the last results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
